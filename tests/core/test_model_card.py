"""Cards: defaults of the published weights, a folder's own values, a caller's choices, and clear words for wrong ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.eraser import EraserSettings
from core.errors import UsageError
from core.model_card import OBJECTCLEAR, ModelCard, read_card, resolve_card
from core.object_token import PROMPT


def write(folder: Path, **values: object) -> Path:
    (folder / "cleanplate.json").write_text(json.dumps(values))
    return folder


def test_a_folder_without_a_card_has_the_defaults(tmp_path: Path) -> None:
    assert read_card(tmp_path) == ModelCard()
    assert read_card(tmp_path, OBJECTCLEAR) == OBJECTCLEAR


def test_the_published_models_cards() -> None:
    assert (ModelCard().conditioning, ModelCard().prompt, ModelCard().size, ModelCard().steps) == ("masked", "", 512, 50)
    assert (OBJECTCLEAR.conditioning, OBJECTCLEAR.prompt, OBJECTCLEAR.steps) == ("full", PROMPT, 20)
    assert OBJECTCLEAR.guidance_scale == 1.0, "2.5 is the script's default; no unconditional branch was ever trained"


def test_own_values_lie_over_the_defaults_and_other_names_are_left_alone(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, size=768, context=2, licence="MIT", base="x"), OBJECTCLEAR)
    assert card == replace(OBJECTCLEAR, size=768, context=2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"conditioning": "half"}, "conditioning is 'half'; allowed: 'masked', 'full', 'prefilled'"),
        ({"fusion": True}, "fusion is True; allowed"),
        ({"steps": "4"}, "steps is '4', which is no int"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"size": 512.0}, "size is 512.0, which is no int"),
        ({"null_branch": 1}, "null_branch is 1, which is no bool"),
        ({"steps": True}, "steps is True, which is no int"),
        ({"guidance_scale": None}, "guidance_scale is None, which is no float"),
        ({"timestep_spacing": "even"}, "timestep_spacing is 'even'; allowed: None, 'leading'"),
        ({"scheduler": 3}, "scheduler is 3, which is no str"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, values: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_card(write(tmp_path, **values))
    assert says in str(caught.value)
    assert str(tmp_path / "cleanplate.json") in str(caught.value)


def test_a_callers_choices_win() -> None:
    settings = EraserSettings(steps=7, context=3.0, dilate_px=0, fusion="none")
    card = resolve_card(ModelCard(mask_dilate_px=9), "m", settings)
    assert card == ModelCard(steps=7, context=3.0, mask_dilate_px=0, fusion="none")
    assert resolve_card(OBJECTCLEAR, "m", EraserSettings()) == OBJECTCLEAR


def test_an_lcm_lora_brings_its_scheduler_and_4_steps() -> None:
    card = resolve_card(ModelCard(timestep_spacing="leading"), "m", EraserSettings(lcm_lora="x"))
    assert (card.scheduler, card.steps, card.timestep_spacing) == ("LCMScheduler", 4, None)
    assert resolve_card(ModelCard(), "m", EraserSettings(lcm_lora="x", steps=2)).steps == 2


def test_choices_that_a_model_cannot_follow_are_refused() -> None:
    with pytest.raises(UsageError, match=r"guidance 2\.5 was asked for: m has no trained unconditional branch; use 1"):
        resolve_card(ModelCard(), "m", EraserSettings(guidance_scale=2.5))
    assert resolve_card(ModelCard(null_branch=True), "m", EraserSettings(guidance_scale=2.5)).guidance_scale == 2.5
    with pytest.raises(UsageError, match="no object token to attend to; use mask or none"):
        resolve_card(ModelCard(), "m", EraserSettings(fusion="attention"))
    with pytest.raises(UsageError, match="reinject_background and texture light"):
        resolve_card(ModelCard(reinject_background=True, texture="light"), "m", EraserSettings())
