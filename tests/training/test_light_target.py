"""A card whose texture is ``light``: the remover learns the light between source and target, by the same formula as any picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from core.errors import UsageError
from core.model_card import FILE_NAME
from core.relighting import LIGHT_GAIN, LIGHT_RANGE
from tests.models import write_pipeline
from tests.training.test_remover_objective import assert_equal, gradients, items, parts, reference
from training.build import build_objective
from training.objective import Batch
from training.pair_augmentation import PairAugmentation
from training.remover import RemoverObjective
from training.remover_parts import RemoverParts
from training.remover_settings import RemoverSettings
from training.settings import DataSettings, TrainSettings


def with_light_as_target(batch: Batch) -> Any:
    """The batch with pictures of light for targets: log of the quotient of means over 3 x 3 pixels, grey where nothing changes."""
    means = []
    for pixels in (batch.target_BHW3, batch.source_BHW3):
        picture = pixels.permute(0, 3, 1, 2).float() + 1
        # only what lies inside counts in a mean
        count = F.conv2d(torch.ones_like(picture[:, :1]), torch.ones(1, 1, 3, 3), padding=1)
        means.append(F.conv2d(picture.flatten(0, 1)[:, None], torch.ones(1, 1, 3, 3), padding=1)[:, 0].unflatten(0, (-1, 3)) / count)
    quotient = torch.log(means[0] / means[1]) / torch.log(torch.tensor(LIGHT_RANGE))
    # no Batch, whose pictures are bytes
    light_BHW3 = ((quotient.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    return SimpleNamespace(seeds_B=batch.seeds_B, source_BHW3=batch.source_BHW3, target_BHW3=light_BHW3, mask_BHW=batch.mask_BHW)


def light_parts(prediction: str = "epsilon") -> RemoverParts:
    made = parts(prediction)
    return replace(made, card=replace(made.card, texture="light"))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_and_gradients_equal_the_formula_with_the_light_as_target(prediction: str) -> None:
    made = light_parts(prediction)
    batch = items(3)
    objective = RemoverObjective(made, RemoverSettings(conditioning="full"))
    found = objective.loss(batch)
    tokens, pooled = made.prompt.tokens_1TD.expand(3, -1, -1), made.prompt.pooled_1P.expand(3, -1)
    by_hand = reference(made, with_light_as_target(batch), kind="full", tokens=tokens, pooled=pooled, gain=LIGHT_GAIN)
    expected = ((by_hand["predicted"] - by_hand["goal"]) ** 2).mean()
    assert float((found.total - expected).abs().detach()) < 1e-5
    assert_equal(gradients(objective, found.total), gradients(objective, expected))


def test_other_shadows_are_for_data_whose_holes_are_filled(tmp_path: Path) -> None:
    model = str(write_pipeline(tmp_path / "model", prompt_file=True))
    data = DataSettings(sizes=(64,), augmentation=PairAugmentation(shadow_depth=(0.1, 0.3)))
    settings = TrainSettings(objective="remover", model=model, data=data)
    with pytest.raises(UsageError, match=r"holes are filled already.*set it to null"):
        build_objective(settings)
    card = json.loads((tmp_path / "model" / FILE_NAME).read_text()) if (tmp_path / "model" / FILE_NAME).exists() else {}
    (tmp_path / "model" / FILE_NAME).write_text(json.dumps({**card, "texture": "light"}))
    assert build_objective(settings).parts.card.texture == "light"  # type: ignore[attr-defined]


def test_cached_latents_are_refused() -> None:
    made = light_parts()
    moments = torch.zeros(2, 8, 8, 8)
    batch = replace(items(2), target_moments_B2Lhw=moments, source_moments_B2Lhw=moments)
    with pytest.raises(UsageError, match="texture is light, and cached latents"):
        RemoverObjective(made, RemoverSettings(conditioning="full")).loss(batch)
