"""Recipes: what they say, how they are put together, and what is answered to a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from training.lcm import LcmSettings
from training.mask_augmentation import HAND_DRAWN, MaskAugmentation
from training.negatives import NegativeSettings
from training.optimisers import OptimiserSettings
from training.pair_augmentation import PairAugmentation
from training.remover_settings import RemoverSettings
from training.settings import (
    RECIPES,
    DataSettings,
    LoopSettings,
    ObjectiveName,
    TrainSettings,
    load_recipe,
    recipe_names,
)
from training.tiny_base import CARD

OF: dict[str, tuple[ObjectiveName, ...]] = {
    "discriminator": ("discriminator",),
    "lcm": ("lcm",),
    "lcm-guided": ("lcm",),
    "objectclear": ("remover",),
    "rorem": ("remover",),
    "rorem-mixed": ("remover",),
    "smoke": ("remover", "discriminator", "lcm"),
    "tiny-discriminator": ("discriminator",),
    "tiny-lcm": ("lcm",),
    "tiny-remover": ("remover",),
    "tiny-remover-second": ("remover",),
}
"""Every recipe that is shipped, and what it is for."""
def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def refused(name: str, objective: ObjectiveName, changes: dict[str, Any] | None = None) -> str:
    """The line that a wrong recipe is answered with."""
    with pytest.raises(UsageError) as caught:
        load_recipe(name, objective, changes)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_the_recipes_are_those_that_this_file_knows() -> None:
    assert recipe_names() == sorted(OF)
    for objective in get_args(ObjectiveName):
        assert recipe_names(objective) == sorted(name for name, objectives in OF.items() if objective in objectives)


@pytest.mark.parametrize(("name", "objective"), [(name, objective) for name, objectives in OF.items() for objective in objectives])
def test_every_recipe_loads_for_its_objective_and_survives_yaml(name: str, objective: ObjectiveName, tmp_path: Path) -> None:
    loaded = load_recipe(name, objective)
    assert loaded.objective == objective
    assert load_recipe(written(tmp_path, "again.yaml", yaml.safe_dump(loaded.as_dict())), objective) == loaded


@pytest.mark.parametrize(("name", "other"), [("rorem", "lcm"), ("tiny-lcm", "discriminator"), ("discriminator", "remover")])
def test_a_recipe_of_another_objective_is_refused_with_those_that_would_do(name: str, other: ObjectiveName) -> None:
    line = refused(name, other)
    assert f"recipe {name} is for the {OF[name][0]}" in line
    assert all(one in line for one in recipe_names(other))


def test_rorem_has_the_numbers_of_the_released_script() -> None:
    found = load_recipe("rorem", "remover")
    assert found.model == "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
    remover, optimiser, loop = found.remover, found.optimiser, found.loop
    assert (remover.conditioning, remover.object_token, remover.attention_weight, remover.lora) == ("masked", "none", 0.0, None)
    assert (remover.min_snr_gamma, remover.mask_weight) == (None, 1.0)
    assert (loop.steps, found.data.batch_size, loop.micro_batch_size, found.data.sizes) == (50_000, 128, 16, (512,))
    assert (optimiser.name, optimiser.learning_rate, optimiser.schedule) == ("adamw", 5e-5, "constant")
    assert (optimiser.betas, optimiser.eps, optimiser.weight_decay, optimiser.clip_norm) == ((0.9, 0.999), 1e-8, 1e-2, 1.0)
    assert optimiser.warmup_steps == 500
    pair = found.data.augmentation
    assert (pair.flip, pair.brightness, pair.contrast, pair.saturation, pair.hue, pair.blank) == (0.5, 0, 0, 0, 0, 0)
    assert pair.mask == HAND_DRAWN
    # ours beside the release's: a null branch for guidance, and averaged weights
    assert (remover.condition_dropout, loop.ema_decay) == (0.1, 0.9999)


def test_objectclear_has_the_numbers_of_the_released_script() -> None:
    found = load_recipe("objectclear", "remover")
    assert found.image_encoder == "openai/clip-vit-large-patch14"
    remover, optimiser, loop = found.remover, found.optimiser, found.loop
    assert (remover.conditioning, remover.object_token, remover.attention_weight) == ("full", "frame", 0.01)
    assert (remover.attention_background_weight, remover.attention_layers) == (1.0, ())
    assert (loop.steps, found.data.batch_size, loop.micro_batch_size, found.data.sizes) == (100_000, 32, 4, (512,))
    assert (optimiser.learning_rate, optimiser.schedule, optimiser.warmup_steps) == (1e-5, "cosine", 500)
    assert (optimiser.betas, optimiser.weight_decay, optimiser.clip_norm, optimiser.final_share) == ((0.9, 0.999), 1e-4, 1.0, 0.0)
    assert (loop.seed, loop.checkpoint_every) == (42, 5000)
    pair = found.data.augmentation
    assert (pair.flip, pair.brightness, pair.contrast, pair.saturation, pair.hue, pair.blank) == (0.5, 0.2, 0.2, 0.2, 15, 0.0)
    assert pair.mask == MaskAugmentation(dilate=0.67, erode=0.165)
    assert (remover.condition_dropout, loop.ema_decay) == (0.1, 0.9999)


def test_the_discriminator_has_the_numbers_of_the_released_script() -> None:
    found = load_recipe("discriminator", "discriminator")
    shape, optimiser, loop = found.discriminator, found.optimiser, found.loop
    assert (shape.lora_rank, shape.lora_alpha, shape.head_channels, shape.trained_parts) == (4, 4, None, ())
    assert shape.threshold == 0.9
    assert (optimiser.learning_rate, optimiser.schedule, optimiser.weight_decay) == (1e-5, "constant", 1e-2)
    # the script's 32 a GPU on the 8 GPUs of the other two
    assert (loop.steps, loop.micro_batch_size, found.data.batch_size, loop.seed) == (15_000, 32, 32 * 8, 20240421)
    assert found.data.sizes == (512,)
    assert found.data.validation_items >= 1000  # calibration needs many


def test_lcm_has_the_numbers_of_the_paper_and_lcm_guided_those_of_the_code() -> None:
    found, guided = load_recipe("lcm", "lcm"), load_recipe("lcm-guided", "lcm")
    assert (found.lcm.points, found.lcm.loss, found.lcm.guidance) == (50, "l2", None)
    assert (found.lcm.sigma_data, found.lcm.timestep_scaling) == (0.5, 10.0)
    assert found.lora is not None
    assert (found.lora.rank, found.lora.alpha) == (64, 64.0)
    assert {"to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "time_emb_proj"} <= set(found.lora.targets)
    assert (found.loop.steps, found.data.batch_size, found.loop.micro_batch_size) == (20_000, 128, 16)
    assert (found.optimiser.learning_rate, found.optimiser.clip_norm) == (5e-5, 1.0)
    changed = found.as_dict()
    changed["lcm"]["guidance"] = [3.0, 10.0]
    assert guided.as_dict() == changed


def test_mixed_is_rorem_at_more_sizes_and_nothing_else() -> None:
    changed = load_recipe("rorem", "remover").as_dict()
    changed["data"] |= {"sizes": [512, 1024], "aspects": True}
    assert load_recipe("rorem-mixed", "remover").as_dict() == changed


@pytest.mark.parametrize("name", ["tiny-remover", "tiny-remover-second", "tiny-lcm", "tiny-discriminator"])
def test_the_embedded_models_train_on_a_cpu(name: str) -> None:
    found = load_recipe(name, OF[name][0])
    assert (found.data.sizes, found.data.batch_size, found.optimiser.schedule) == ((CARD.size,), 16, "cosine")
    assert not found.data.latents, "the autoencoders cost next to nothing, and the data need no other job"
    assert 0 < found.optimiser.warmup_steps < found.loop.steps
    assert found.loop.ema_decay is not None
    if found.objective == "remover":
        remover = found.remover
        assert (remover.conditioning, remover.object_token, remover.attention_weight) == ("full", "box", 0.05)


def test_bases_chain_and_the_nearest_recipe_wins(tmp_path: Path) -> None:
    under = written(tmp_path, "under.yaml", "base: rorem\nloop: {steps: 7, seed: 3}\ndata:\n  augmentation: {hue: 9}\n")
    over = written(tmp_path, "over.yml", f"base: {under}\nloop: {{seed: 4}}\ndata:\n  sizes: [64]\n")
    changed = load_recipe("rorem", "remover").as_dict()
    changed["loop"] |= {"steps": 7, "seed": 4}
    changed["data"]["sizes"] = [64]
    changed["data"]["augmentation"]["hue"] = 9
    assert load_recipe(over, "remover").as_dict() == changed


def test_a_recipes_path_may_name_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "mine.yaml", "loop: {steps: 5}\n")
    monkeypatch.setenv("RECIPES_OF_MINE", str(tmp_path))
    assert load_recipe("$RECIPES_OF_MINE/mine.yaml", "lcm").loop.steps == 5


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "empty.yaml", ""), "lcm") == TrainSettings(objective="lcm")


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"base: {second}\n")
    second.write_text(f"base: {first}\n")
    line = refused(str(first), "remover")
    assert str(first) in line
    assert str(second) in line
    assert "take one base out" in line


def test_changes_by_dotted_name_win(tmp_path: Path) -> None:
    recipe = written(tmp_path, "mine.yaml", "base: rorem\nloop: {steps: 7}\n")
    changes = {"loop.steps": 9, "data.augmentation.mask.box": 0.2, "model": "tiny", "remover.lora.rank": 8}
    found = load_recipe(recipe, "remover", changes)
    assert (found.loop.steps, found.data.augmentation.mask.box, found.model) == (9, 0.2, "tiny")
    assert found.lora is not None
    assert found.lora.rank == 8
    # what they do not name stays
    assert (found.data.augmentation.mask.stroke, found.optimiser.learning_rate) == (0.16, 5e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loop.stepz": 3}, ["loop.stepz", "no such setting"]),
        ({"lop.steps": 3}, ["lop", "no such setting"]),
        ({"remover.lora.rnk": 3}, ["remover.lora.rnk", "no such setting"]),
        ({"data.augmentation.mask.bx": 0.1}, ["data.augmentation.mask.bx", "no such setting"]),
        ({"loop.steps": "many"}, ["loop.steps", "'many'", "integer"]),
        ({"loop.steps": 2.5}, ["loop.steps", "2.5", "integer"]),
        ({"loop.precision": "float16"}, ["loop.precision", "'float16'", "'float32' or 'bfloat16'"]),
        ({"loop.strategy": "deepspeed"}, ["loop.strategy", "'deepspeed'", "'ddp' or 'fsdp'"]),
        ({"optimiser.name": "lion"}, ["optimiser.name", "'lion'", "'adamw'", "'adafactor'"]),
        ({"remover.conditioning": "both"}, ["remover.conditioning", "'both'", "'masked'", "'full'"]),
        ({"loop.steps": 0}, ["loop.steps", "0", "1 or more"]),
        ({"loop.ema_decay": 1.0}, ["loop.ema_decay", "1.0", "0 to below 1"]),
        ({"data.sizes": [100]}, ["data.sizes", "100", "multiples of 8"]),
        ({"data.batch_size": 0}, ["data.batch_size", "0", "1 or more"]),
        ({"data.validation_share": 1.0}, ["data.validation_share", "1.0", "below 1"]),
        ({"optimiser.learning_rate": -1.0}, ["learning_rate", "-1.0", "above 0"]),
        ({"remover.attention_weight": 0.1}, ["attention", "object_token"]),
        ({"data.augmentation.mask.box": 0.9}, ["add up to", "lower some"]),
        ({"remover.lora.rank": 8, "loop.strategy": "fsdp"}, ["fsdp", "use ddp"]),
        ({"optimiser.name": "muon", "loop.strategy": "fsdp"}, ["muon", "whole matrices", "use ddp"]),
        ({"data.augmentation.shadow_depth": [0.3, 0.1]}, ["shadow_depth", "(0.3, 0.1)", "smaller one first"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_what_is_allowed(changes: dict[str, Any], said: list[str]) -> None:
    line = refused("rorem", "remover", changes)
    missing = [words for words in said if words not in line]
    assert not missing, line


def test_a_discriminator_of_several_sizes_is_refused() -> None:
    line = refused("discriminator", "discriminator", {"data.sizes": [512, 1024]})
    assert "one square size" in line


def test_a_discriminator_with_other_shadows_than_were_judged_is_refused() -> None:
    line = refused("discriminator", "discriminator", {"data.augmentation.shadow_depth": [0.1, 0.3]})
    assert "shadow_depth is for removers" in line


def test_many_wrong_names_are_counted() -> None:
    line = refused("smoke", "remover", {f"loop.wrong{number}": number for number in range(5)})
    assert "loop.wrong0 is 0" in line
    assert "and 2 more" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loop: [1, 2\n", "is not YAML"),
        ("- loop\n", "holds a list"),
        ("base: nowhere\n", "there is no recipe nowhere"),
        ("loop: 3\n", "loop is 3"),
    ],
)
def test_a_broken_file_is_said_to_be_one(text: str, said: str, tmp_path: Path) -> None:
    assert said in refused(written(tmp_path, "broken.yaml", text), "remover")


def test_a_recipe_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    assert all(name in refused("rorm", "remover") for name in OF)
    assert "nothing.yaml" in refused(str(tmp_path / "nothing.yaml"), "remover")


@pytest.mark.parametrize(("name", "objective"), [(name, objectives[0]) for name, objectives in OF.items()])
def test_everything_that_a_recipe_spells_out_is_in_its_settings(name: str, objective: ObjectiveName) -> None:
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    values.pop("base", None)

    def compare(said: Any, found: Any, path: str) -> None:
        if isinstance(said, dict):
            for inner, value in said.items():
                assert inner in found, f"{name}: {path}{inner} is no setting"
                compare(value, found[inner], f"{path}{inner}.")
        else:
            assert said == found, path

    compare(values, load_recipe(name, objective).as_dict(), "")


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 10**9),
    sizes=st.lists(st.integers(4, 256).map(lambda side: 8 * side), min_size=1, max_size=4),
    rate=st.floats(1e-9, 1.0),
    betas=st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999)),
    ema=st.none() | st.floats(0, 0.99999),
    guidance=st.none() | st.tuples(st.floats(0, 5), st.floats(5, 20)),
    shadow=st.floats(0, 10),
    hue=st.integers(0, 128),
    depth=st.none() | st.tuples(st.floats(0.01, 0.3), st.floats(0.3, 1)),
    layers=st.lists(st.sampled_from(["down_blocks.1", "mid_block"]), max_size=2),
)
def test_any_settings_come_back_from_their_dictionary(
    steps: int,
    sizes: list[int],
    rate: float,
    betas: tuple[float, float],
    ema: float | None,
    guidance: tuple[float, float] | None,
    shadow: float,
    hue: int,
    depth: tuple[float, float] | None,
    layers: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made = TrainSettings(
        objective="lcm",
        remover=RemoverSettings(attention_layers=tuple(layers)),
        lcm=LcmSettings(guidance=guidance),
        data=DataSettings(
            sizes=tuple(sizes),
            augmentation=PairAugmentation(hue=hue, shadow_depth=depth),
            negatives=NegativeSettings(shadow=shadow),
        ),
        optimiser=OptimiserSettings(learning_rate=rate, betas=betas, rate_scales={"unet.mid_block": 0.5}),
        loop=LoopSettings(steps=steps, ema_decay=ema),
    )
    path = tmp_path_factory.mktemp("settings") / "made.yaml"
    path.write_text(yaml.safe_dump(made.as_dict()))
    assert load_recipe(str(path), "lcm") == made
