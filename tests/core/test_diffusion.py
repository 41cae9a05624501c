"""The diffusion eraser on every published layout, written with random weights: what is read is what runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from core.components import load_network, load_object_token
from core.crops import Crop, make_crop
from core.diffusion import DiffusionEraser, card_of
from core.eraser import EraserSettings, identity, load_eraser
from core.errors import UsageError
from core.model_card import OBJECTCLEAR
from core.model_files import find_model
from core.object_token import FuseModule
from core.remover import Remover
from tests.core.test_lora import trained
from tests.models import write_lone_unet, write_objectclear, write_pipeline
from tests.pictures import box_mask, gradient, with_object
from tests.random_models import WIDTH, random_prompt, random_unet, random_vae, scheduler

SMALL = {"size": 64, "steps": 3}
CPU = EraserSettings(device="cpu")


def carded(folder: Path, **card: Any) -> Path:
    """A model's folder with a card for small pictures."""
    (folder / "cleanplate.json").write_text(json.dumps({**SMALL, **card}))
    return folder


def scene(width: int = 200, height: int = 150) -> tuple[np.ndarray, np.ndarray]:
    mask = box_mask(width, height, (70, 50, 110, 90))
    return with_object(gradient(width, height), mask), mask


def erase(model: Path, settings: EraserSettings = CPU, seed: int = 1) -> np.ndarray:
    return load_eraser(str(model), settings).erase(*scene(), seed)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carded(write_pipeline(tmp_path_factory.mktemp("pipeline"), prompt_file=True))


@pytest.fixture(scope="module")
def objectclear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carded(write_objectclear(tmp_path_factory.mktemp("objectclear"), prompt_file=True))


def test_the_eraser_is_the_remover_on_the_folders_networks(pipeline: Path) -> None:
    eraser = load_eraser(str(pipeline), CPU)
    assert isinstance(eraser, DiffusionEraser)
    crop_pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = box_mask(64, 64, (20, 20, 40, 40))
    # the memory layout is the eraser's choice, and worth a rounding of the last bit
    unet, vae = (network.to(memory_format=torch.channels_last) for network in (random_unet(), random_vae()))
    remover = Remover(unet, vae, scheduler("euler"), random_prompt(), eraser.card)
    expected = remover.erase(torch.from_numpy(crop_pixels)[None], torch.from_numpy(mask)[None], [9]).pixels_BHW3[0].numpy()
    (fill,) = eraser.fill([Crop(crop_pixels, mask, mask / np.float32(255), 0, 0, 64)], [9])
    np.testing.assert_array_equal(fill.pixels, expected)
    assert fill.soft is None


def test_a_lone_unet_takes_the_rest_from_its_base(pipeline: Path, tmp_path: Path) -> None:
    lone = carded(write_lone_unet(tmp_path / "rorem"), base=str(pipeline))
    files = find_model(str(lone))
    assert (files.kind, files.unet, files.vae) == ("remover", lone, pipeline / "vae")
    whole = tmp_path / "whole"
    shutil.copytree(pipeline, whole)
    random_unet(seed=1).save_pretrained(whole / "unet")
    np.testing.assert_array_equal(erase(lone), erase(whole))
    assert not np.array_equal(erase(lone), erase(pipeline))


def test_objectclears_layout_runs_with_token_and_fusion(objectclear: Path) -> None:
    files = find_model(str(objectclear))
    assert files.kind == "objectclear"
    assert card_of(files, CPU) == replace(OBJECTCLEAR, **SMALL)
    assert files.image_encoder is not None
    assert files.fuse_module is not None
    token = load_object_token(files.image_encoder, files.fuse_module, torch.device("cpu"), torch.float32)
    whole_clip = CLIPModel.from_pretrained(files.image_encoder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pooled = whole_clip.vision_model(pixel_values=pixels).pooler_output
    assert torch.equal(token.encoder(pixels).image_embeds, whole_clip.visual_projection(pooled))
    state = load_file(files.fuse_module / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in token.fuse.state_dict().items())
    results = {fusion: erase(objectclear, replace(CPU, fusion=fusion)) for fusion in ("attention", "mask", "none")}  # type: ignore[arg-type]
    assert len({result.tobytes() for result in results.values()}) == 3
    changed = {fusion: int((result != scene()[0]).any(axis=2).sum()) for fusion, result in results.items()}
    assert changed["mask"] < changed["attention"] <= changed["none"]


def test_a_card_may_ask_for_a_box(objectclear: Path, tmp_path: Path) -> None:
    boxed = tmp_path / "boxed"
    shutil.copytree(objectclear, boxed)
    carded(boxed, object_token="box")
    assert not np.array_equal(erase(boxed), erase(objectclear))


def test_an_lcm_lora_is_merged_and_makes_4_calls(pipeline: Path, tmp_path: Path) -> None:
    trained(tmp_path)
    settings = replace(CPU, lcm_lora=str(tmp_path))
    eraser = load_eraser(str(pipeline), settings)
    assert isinstance(eraser, DiffusionEraser)
    calls: list[int] = []
    eraser.remover.unet.register_forward_pre_hook(lambda _, args: calls.append(int(args[1])))
    eraser.erase(*scene(), 1)
    assert calls == [999, 759, 499, 259]
    assert not np.array_equal(erase(pipeline, settings), erase(pipeline, replace(CPU, steps=4)))
    np.testing.assert_array_equal(
        erase(pipeline, settings), erase(pipeline, replace(settings, lcm_lora=str(tmp_path / "pytorch_lora_weights.safetensors")))
    )
    mine, plain = (identity(str(pipeline), chosen) for chosen in (settings, CPU))
    assert mine["fingerprint"] != plain["fingerprint"]
    assert (mine["steps"], mine["scheduler"]) == (4, "LCMScheduler")


def test_bytes_do_not_depend_on_how_the_weights_are_filed(pipeline: Path, tmp_path: Path) -> None:
    """In other files the same weights lie at other addresses, which some kernels are sensitive to."""
    sharded = tmp_path / "sharded"
    shutil.copytree(pipeline, sharded)
    (sharded / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    random_unet().save_pretrained(sharded / "unet", max_shard_size="300KB")
    assert len(list((sharded / "unet").glob("*.safetensors"))) > 1
    np.testing.assert_array_equal(erase(sharded), erase(pipeline))
    unet = load_network(sharded / "unet", "unet", torch.float32)
    assert {parameter.data_ptr() % 64 for parameter in unet.parameters()} == {0}


def test_half_precision_files_are_read(pipeline: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(pipeline, half)
    for name, network in (("unet", random_unet()), ("vae", random_vae())):
        (half / name / "diffusion_pytorch_model.safetensors").unlink()
        torch.nn.Module.to(network, torch.float16).save_pretrained(half / name, variant="fp16")
    off = np.abs(erase(half).astype(int) - erase(pipeline))
    assert off.mean() < 1
    assert load_network(half / "unet", "unet", torch.float32).dtype == torch.float32


def test_results_do_not_depend_on_the_batch(pipeline: Path) -> None:
    eraser = load_eraser(str(pipeline), CPU)
    crops = [make_crop(*scene(200 + 10 * index), eraser.rule) for index in range(5)]
    together = eraser.fill(crops, list(range(5)))
    for index in (4, 0, 2):
        (alone,) = eraser.fill([crops[index]], [index])
        np.testing.assert_array_equal(alone.pixels, together[index].pixels)  # type: ignore[union-attr]


def test_padded_batches_give_the_same_as_any_other_number(objectclear: Path) -> None:
    """What a GPU does, on the CPU: batches of one fixed size, the last one padded."""
    eraser = load_eraser(str(objectclear), CPU)
    eraser.batch_size = 4
    crops = [make_crop(*scene(200 + 10 * index), eraser.rule) for index in range(6)]
    together = eraser.fill(crops, list(range(6)))
    assert len(together) == 6
    for index in (5, 1):
        (alone,) = eraser.fill([crops[index]], [index])
        np.testing.assert_array_equal(alone.pixels, together[index].pixels)  # type: ignore[union-attr]
        np.testing.assert_array_equal(alone.soft, together[index].soft)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("damage", ["missing", "extra", "truncated", "shape", "absent"])
@pytest.mark.parametrize("part", ["unet", "vae", "postfuse_module", "image_prompt_encoder"])
def test_damaged_weights_are_one_clear_line(objectclear: Path, tmp_path: Path, part: str, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(objectclear, broken)
    name = "model.safetensors" if part == "image_prompt_encoder" else "diffusion_pytorch_model.safetensors"
    path = broken / part / name
    state = load_file(path)
    key = sorted(name for name in state if name.endswith("weight") and not name.startswith("text"))[0]
    if damage == "missing":
        del state[key]
    elif damage == "extra":
        state["not.there"] = torch.zeros(3)
    elif damage == "shape":
        state[key] = torch.zeros(3)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "absent":
        path.unlink()
    else:
        save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UsageError) as caught:
        load_eraser(str(broken), CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert str(broken / part) in message
    assert {"missing": key, "extra": "not.there", "shape": key, "truncated": name, "absent": name}[damage] in message


def test_parts_of_different_models_do_not_fit(objectclear: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(objectclear, mixed)
    folder = mixed / "postfuse_module"
    save_file(FuseModule(WIDTH, 8).state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "PostfuseModule", "embed_dim": WIDTH, "embed_dim_img": 8}))
    with pytest.raises(UsageError, match=r"gives 24 numbers an object, .* takes 8"):
        load_eraser(str(mixed), CPU)
