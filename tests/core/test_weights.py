"""Weight files against their configuration: whole ones of every part pass, each kind of damage is one clear error."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.gpu import FULL
from core.errors import UsageError
from core.weights import Component, check_weights, expected_shapes, inspect_weights, read_header, weight_files
from tests.models import truncate, write_lone_unet, write_objectclear, write_pipeline

UNET_FILE = "diffusion_pytorch_model.safetensors"
PARTS: tuple[Component, ...] = ("unet", "vae", "text_encoder", "text_encoder_2", "image_prompt_encoder", "postfuse_module")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objectclear(tmp_path_factory.mktemp("models") / "oc")


@pytest.fixture
def unet(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model / "unet", tmp_path / "unet"))


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("part", PARTS)
def test_whole_parts_pass(model: Path, part: Component) -> None:
    report = check_weights(model / part, part)
    assert report.ok
    assert not report.fault
    assert report.dtypes == ("float32",)
    assert report.bytes == sum((model / part / name).stat().st_size for name in report.files)
    assert report.parameters * 4 < report.bytes


def test_numbers_are_counted_as_torch_counts_them(model: Path) -> None:
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        network = kind.from_pretrained(model / part)
        assert inspect_weights(model / part, part).parameters == sum(parameter.numel() for parameter in network.parameters())  # type: ignore[arg-type]


def test_full_size_parts_have_the_published_number_of_weights(tmp_path: Path) -> None:
    """UNet 2,567,478,084; fuse module 14.17 M (the papers' code)."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", **FULL.unet}))
    (tmp_path / "fuse").mkdir()
    (tmp_path / "fuse" / "config.json").write_text(json.dumps({"_class_name": "PostfuseModule", "embed_dim": 2048, "embed_dim_img": 768}))

    def count(part: Component, folder: Path) -> int:
        return sum(torch.Size(shape).numel() for shape in expected_shapes(folder, part).values())

    assert count("unet", tmp_path / "unet") == 2_567_478_084
    assert round(count("postfuse_module", tmp_path / "fuse") / 1e6, 2) == 14.17
    assert set(expected_shapes(tmp_path / "fuse", "postfuse_module")) == {
        f"{layer}.{kind}"
        for layer in ("mlp1.layernorm", "mlp1.fc1", "mlp1.fc2", "mlp2.layernorm", "mlp2.fc1", "mlp2.fc2", "layer_norm")
        for kind in ("weight", "bias")
    }


def test_half_precision_and_shards_are_read(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "half", variant="fp16")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        report = check_weights(tmp_path / "half" / part, part)  # type: ignore[arg-type]
        assert report.dtypes == ("float16",)
        assert all("fp16" in name for name in report.files)
    write_lone_unet(tmp_path / "sharded", shard_size="200KB")
    report = check_weights(tmp_path / "sharded", "unet")
    assert len(report.files) > 2
    assert report.parameters == check_weights(tmp_path / "half" / "unet", "unet").parameters


def test_fp16_shards_are_read(tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(write_lone_unet(tmp_path / "whole"))
    unet.half().save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="100KB")
    report = check_weights(tmp_path / "sharded", "unet")
    assert len(report.files) > 2
    assert report.dtypes == ("float16",)


def test_full_precision_is_read_where_both_are(unet: Path) -> None:
    shutil.copy(unet / UNET_FILE, unet / "diffusion_pytorch_model.fp16.safetensors")
    assert inspect_weights(unet, "unet").files == (UNET_FILE,)


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(unet: Path) -> None:
    edit(unet / UNET_FILE, lambda tensors: tensors.pop("conv_in.weight"))
    with pytest.raises(UsageError, match=r"1 tensors missing \(conv_in\.weight\)"):
        check_weights(unet, "unet")
    edit(unet / UNET_FILE, lambda tensors: tensors.update({"conv_in.weight": torch.zeros(32, 4, 3, 3), "stray": torch.zeros(1)}))
    report = inspect_weights(unet, "unet")
    assert not report.ok
    assert (report.missing, report.extra) == ((), ("stray",))
    assert report.misshapen == ("conv_in.weight is [32, 4, 3, 3], not [32, 9, 3, 3]",)


def test_many_faults_are_counted(unet: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors)[:10]:
            del tensors[name]

    edit(unet / UNET_FILE, drop)
    assert "10 tensors missing" in inspect_weights(unet, "unet").fault
    assert "and 7 more" in inspect_weights(unet, "unet").fault


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_a_tensor_is_refused(model: Path, tmp_path: Path, part: Component) -> None:
    folder = Path(shutil.copytree(model / part, tmp_path / part))
    path = next(folder.glob("*.safetensors"))
    name = next(name for name in expected_shapes(folder, part) if name in load_file(path))
    edit(path, lambda tensors: tensors.pop(name))
    assert inspect_weights(folder, part).missing == (name,)


def test_a_truncated_file_is_said(unet: Path) -> None:
    truncate(unet / UNET_FILE, 0.7)
    with pytest.raises(UsageError, match=r"is truncated: \d+ bytes of weights, \d+ by its header; fetch the model again$"):
        check_weights(unet, "unet")


def test_a_missing_or_wrong_shard_is_said(tmp_path: Path) -> None:
    write_lone_unet(tmp_path / "u", shard_size="200KB")
    files = weight_files(tmp_path / "u", "diffusion_pytorch_model")
    data = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(UsageError, match=rf"lacks {files[1].name} of {len(files)} shards"):
        check_weights(tmp_path / "u", "unet")
    shutil.copy(files[0], files[1])
    with pytest.raises(UsageError, match="does not hold"):
        check_weights(tmp_path / "u", "unet")
    files[1].write_bytes(data)
    assert check_weights(tmp_path / "u", "unet").ok
    index = tmp_path / "u" / f"{UNET_FILE}.index.json"
    for text in ("{}", '{"weight_map": {"a": "../../b"}}', '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(UsageError, match="weight_map"):
            check_weights(tmp_path / "u", "unet")


def test_pickles_are_refused_unread(unet: Path) -> None:
    (unet / UNET_FILE).unlink()
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model\.bin, a pickle: pickles are never loaded; convert it to safetensors$"):
        check_weights(unet, "unet")
    (unet / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match="has no weights"):
        check_weights(unet, "unet")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "has _class_name None; a unet needs UNet2DConditionModel"),
        ({"_class_name": "AutoencoderKL"}, "has _class_name 'AutoencoderKL'"),
        ({"_class_name": "UNet2DConditionModel", "down_block_types": ["NoSuchBlock"]}, "describes no unet"),
        ({"_class_name": "UNet2DConditionModel", "block_out_channels": "many"}, "describes no unet"),
    ],
)
def test_a_wrong_configuration_is_said(unet: Path, config: dict[str, Any], says: str) -> None:
    (unet / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=says) as caught:
        check_weights(unet, "unet")
    assert "\n" not in str(caught.value)


def test_other_parts_in_the_wrong_place_are_said(model: Path) -> None:
    with pytest.raises(UsageError, match="model_type 'clip'; a text_encoder needs clip_text_model"):
        check_weights(model / "image_prompt_encoder", "text_encoder")
    with pytest.raises(UsageError, match="a postfuse_module needs PostfuseModule"):
        check_weights(model / "vae", "postfuse_module")
    with pytest.raises(UsageError, match=r"has no config\.json"):
        check_weights(model / "nowhere", "vae")


def test_names_of_older_libraries_pass_and_load(model: Path, tmp_path: Path) -> None:
    """transformers before 5 put ``text_model.`` before a text encoder's names, and wrote its position ids."""
    folder = Path(shutil.copytree(model / "text_encoder", tmp_path / "t"))
    whole = CLIPTextModel.from_pretrained(folder).state_dict()
    old = {f"text_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file({**old, "text_model.embeddings.position_ids": torch.arange(12)[None]}, folder / "model.safetensors", {"format": "pt"})
    assert check_weights(folder, "text_encoder").parameters == check_weights(model / "text_encoder", "text_encoder").parameters
    loaded = CLIPTextModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in whole.items())


def test_old_attention_names_of_an_autoencoder_pass_and_load(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model / "vae", tmp_path / "vae"))
    whole = AutoencoderKL.from_pretrained(folder).state_dict()

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name
            for today, before in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
                old = old.replace(today, before)
            tensors[old] = tensors.pop(name)

    edit(folder / UNET_FILE, rename)
    assert any(".query." in name for name in read_header(folder / UNET_FILE))
    assert check_weights(folder, "vae").ok
    loaded = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in whole.items())


def test_an_image_encoder_may_be_the_vision_half_alone(tmp_path: Path) -> None:
    config: Any = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, projection_dim=24
    )
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    assert check_weights(tmp_path, "image_prompt_encoder").ok


def test_of_a_whole_clip_model_the_vision_half_counts(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model / "image_prompt_encoder", tmp_path / "i"))
    edit(folder / "model.safetensors", lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("text_model.")])
    assert check_weights(folder, "image_prompt_encoder").ok
    edit(folder / "model.safetensors", lambda tensors: tensors.pop("visual_projection.weight"))
    assert inspect_weights(folder, "image_prompt_encoder").missing == ("visual_projection.weight",)


def header(entries: Any, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"\0" * 7, "truncated"),
        (struct.pack("<Q", 2**62) + b"{}", "no safetensors file, or truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git LFS pointer"),
        (struct.pack("<Q", 3) + b"\xff\xfe{", "cannot read"),
        (header([1]), "no JSON object"),
        (header({"a": 1}), "no known format"),
        (header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), "no known format"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4), "no known format"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4), "4 bytes for shape"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8), "leave gaps"),
        (header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"\0" * 4), "overlap"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 9), "too long"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 3), "truncated"),
    ],
)
def test_what_is_no_safetensors_file_is_said(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        read_header(path)


WHOLE = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(0, 4)}, {"format": "pt"})


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(WHOLE)
    found = {name: (info.dtype, info.shape, info.count) for name, info in read_header(tmp_path / "x").items()}
    assert found == {"a": ("F32", (2, 3), 6), "b": ("BF16", (5,), 5), "c": ("F32", (0, 4), 0)}


@settings(max_examples=200, deadline=None)
@given(kept=st.integers(0, len(WHOLE) - 1))
def test_every_truncation_is_seen(tmp_path_factory: pytest.TempPathFactory, kept: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(WHOLE[:kept])
    with pytest.raises(UsageError):
        read_header(path)


@settings(max_examples=300, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_an_error_of_ours_or_none(tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, value in places:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "bad.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(UsageError):
        assert sum(info.count for info in read_header(path).values()) <= len(WHOLE)
