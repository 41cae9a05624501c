"""A discriminator's files: RORem's published layout means what diffusers and plain torch make of it, and every fault in it is told."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from core.calibration import Isotonic, Temperature
from core.catalogue import SDXL_INPAINTING
from core.checkpoints import EMBEDDED, fingerprint
from core.discriminator import Discriminator
from core.discriminator_config import DiscriminatorConfig, find_discriminator, has_discriminator, layout_of, read_config
from core.discriminator_files import load_discriminator, save_discriminator, save_published_discriminator
from core.discriminator_network import DiscriminatorNetwork, make_head
from core.errors import UsageError
from core.model_files import find_model
from core.prompts import PromptEmbeddings, save_prompt
from tests.core.test_discriminator_network import SMALL

LORA, HEAD = "pytorch_lora_weights.safetensors", "cls_pred_branch.pt"
PROMPT = PromptEmbeddings(torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 16))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in diffusers layout with SDXL's geometry, an eighth of a pixel's side per latent cell, at a twentieth of its width."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    UNet2DConditionModel.from_config(SMALL).save_pretrained(folder / "unet")
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, block_out_channels=[8] * 4,
        norm_num_groups=4, latent_channels=4, layers_per_block=1, mid_block_add_attention=False, scaling_factor=0.13025,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    EulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLInpaintPipeline"}))
    save_prompt(folder / "prompt_embeds.safetensors", PROMPT)
    return folder


@pytest.fixture(scope="module")
def published(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as RORem's trainer writes it, by the functions of diffusers and peft that it calls."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("published")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    targets = r"(down_blocks|mid_block)\..*\.(to_q|to_k|to_v|to_out\.0)"
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    for name, value in unet.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(value, 0, 0.1)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionXLInpaintPipeline.save_lora_weights(save_directory=folder, unet_lora_layers=layers)
    head = make_head(64, 64, 16).state_dict()
    torch.save({f"cls_pred_branch.{name}": value for name, value in head.items()}, folder / HEAD)
    return folder


@pytest.fixture
def copied(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "published"))


def pictures(size: int = 512, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edited, source and mask."""
    rng = np.random.default_rng(seed)
    edited, source = (np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((size // 8, size // 8, 1))).astype(np.uint8) for _ in range(2))
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : size // 2, size // 3 : size // 2] = 255
    return edited, source, mask


@torch.no_grad()
def by_hand(base: Path, folder: Path, edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """The published head's logit through diffusers' own LoRA loader and whole UNet, and torch layers written out, in float64.

    The reference samples its latents and adds the noise of timestep 0; these are the means of that.
    """
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    tokens_1TD, pooled_1P = PROMPT.tokens_1TD.double(), PROMPT.pooled_1P.double()
    state, alphas = StableDiffusionXLInpaintPipeline.lora_state_dict(folder)
    unet.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    unet.double()
    vae = AutoencoderKL.from_pretrained(base / "vae").double()

    def latents(picture: np.ndarray) -> torch.Tensor:
        image = (torch.from_numpy(picture).double() / 127.5 - 1).permute(2, 0, 1)[None]
        return vae.encode(image).latent_dist.mean * 0.13025

    cells = torch.from_numpy((mask[::8, ::8] > 127).astype(np.float64))[None, None]
    seen: list[torch.Tensor] = []
    unet.mid_block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    added = {"text_embeds": pooled_1P, "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]])}
    unet(torch.cat([latents(edited), cells, latents(source)], 1), 0, encoder_hidden_states=tokens_1TD, added_cond_kwargs=added)
    weights = {name.removeprefix("cls_pred_branch."): v.double() for name, v in torch.load(folder / HEAD, weights_only=True).items()}
    feature = seen[0]
    for place, stride, padding in ((0, 2, 1), (3, 2, 1), (6, 4, 0)):
        feature = torch.nn.functional.conv2d(feature, weights[f"{place}.weight"], weights[f"{place}.bias"], stride, padding)
        feature = torch.nn.functional.group_norm(feature, 32, weights[f"{place + 1}.weight"], weights[f"{place + 1}.bias"])
        feature = torch.nn.functional.silu(feature)
    return float(torch.nn.functional.conv2d(feature, weights["9.weight"], weights["9.bias"]))


def test_the_published_folder_scores_as_its_authors_meant(base: Path, published: Path) -> None:
    """In float64; in float32 torch's group norm of channels-last tensors on a CPU is right to three digits only."""
    exact = Discriminator(published, base=base, device="cpu", dtype=torch.float64)
    discriminator = Discriminator(published, base=base, device="cpu")
    assert (discriminator.size, discriminator.config.activation, discriminator.calibrated) == (512, "softplus", False)
    for seed in range(2):
        items = pictures(seed=seed)
        expected = by_hand(base, published, *items)
        assert exact.judge(*([item] for item in items))[0].logit == pytest.approx(expected, abs=1e-5)
        (found,) = discriminator.judge(*([item] for item in items))
        assert found.logit == pytest.approx(expected, abs=5e-3)
        assert found.raw == pytest.approx(math.log1p(math.exp(found.logit)))
        assert found.probability == min(found.raw, 1.0)
        assert not found.resized


def to_safetensors(folder: Path) -> None:
    save_file(torch.load(folder / HEAD, weights_only=True), folder / "cls_pred_branch.safetensors")
    (folder / HEAD).unlink()


def to_peft_names(folder: Path) -> None:
    tensors = load_file(folder / LORA)
    assert all("lora.down" in name or "lora.up" in name for name in tensors)
    save_file({name.replace("lora.down", "lora_A").replace("lora.up", "lora_B"): value for name, value in tensors.items()}, folder / LORA)


def to_half(folder: Path) -> None:
    save_file({name: value.half() for name, value in load_file(folder / LORA).items()}, folder / LORA)
    torch.save({name: value.half() for name, value in torch.load(folder / HEAD, weights_only=True).items()}, folder / HEAD)


@pytest.mark.parametrize(("change", "tolerance"), [(to_safetensors, 0.0), (to_peft_names, 0.0), (to_half, 2e-2)])
def test_other_forms_of_the_same_weights_load(
    base: Path, published: Path, copied: Path, change: Callable[[Path], None], tolerance: float
) -> None:
    change(copied)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    plain, other = (load_discriminator(folder, unet, 8).trained_state() for folder in (published, copied))
    assert all(value.dtype == torch.float32 for value in other.values())
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance)


class Harmful:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def edit_lora(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / LORA)
        change(tensors)
        save_file(tensors, folder / LORA)

    return apply


def edit_head(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = torch.load(folder / HEAD, weights_only=True)
        changed = change(tensors)
        torch.save(tensors if changed is None else changed, folder / HEAD)

    return apply


def cut(name: str, share: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return apply


def rank(folder: Path) -> None:
    tensors = {name: value[:2] if "down" in name or "_A" in name else value[:, :2] for name, value in load_file(folder / LORA).items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / LORA)


def alpha(folder: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    save_file(load_file(folder / LORA), folder / LORA, metadata)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "adapter missing": (edit_lora(lambda t: t.pop(min(t))), r"missing unet\.down_blocks\.1\.\S+lora\.down\.weight"),
    "adapter unknown": (edit_lora(lambda t: t.update({"unet.up_blocks.0.x.lora.up.weight": torch.zeros(1)})), r"unknown unet\.up_blocks"),
    "text encoder": (edit_lora(lambda t: t.update({"text_encoder.q.lora.up.weight": torch.zeros(1)})), "unknown text_encoder"),
    "adapter twice": (edit_lora(lambda t: t.update({min(t).replace("lora.down", "lora_A"): torch.zeros(1)})), r"unknown unet\S+lora_A"),
    "names of lines": (edit_lora(lambda t: t.update({f"a\nb{'c' * 5000}": torch.zeros(1)})), "unknown a b"),
    "rank": (rank, r"is \[2, \d+\], not \[4, \d+\]"),
    "alpha": (alpha, "lora_alpha 8, the configuration 4"),
    "adapter not finite": (edit_lora(lambda t: t[min(t)].fill_(math.nan)), "no finite numbers"),
    "adapters cut": (cut(LORA, 0.5), "pytorch_lora_weights"),
    "adapters gone": (lambda folder: (folder / LORA).unlink(), "pytorch_lora_weights"),
    "head missing": (edit_head(lambda t: t.pop("cls_pred_branch.9.bias") and None), "missing cls_pred_branch.9.bias"),
    "head unknown": (edit_head(lambda t: {**t, "cls_pred_branch.12.weight": torch.zeros(1)}), "unknown cls_pred_branch.12.weight"),
    "head's prefix": (edit_head(lambda t: {name.removeprefix("cls_"): v for name, v in t.items()}), r"missing cls_pred_branch\.0"),
    "head's shape": (edit_head(lambda t: {**t, "cls_pred_branch.9.bias": torch.zeros(3)}), r"is \[3\], not \[1\]"),
    "head of integers": (edit_head(lambda t: {**t, "cls_pred_branch.9.bias": torch.zeros(1).int()}), "no finite numbers"),
    "head a list": (edit_head(lambda t: list(t.values())), "list"),
    "head with numbers": (edit_head(lambda t: {**t, "epoch": 3}), "no mapping of names to tensors"),
    "head cut": (cut(HEAD, 0.5), "plain tensors"),
    "head empty": (cut(HEAD, 0), "plain tensors"),
    "head gone": (lambda folder: (folder / HEAD).unlink(), "no head beside it"),
    "head no file of torch": (lambda folder: (folder / HEAD).write_bytes(b"<html>404</html>"), "plain tensors"),
    "both gone": (lambda folder: [(folder / name).unlink() for name in (HEAD, LORA)], "has no discriminator"),
    "config": (lambda folder: (folder / "config.json").write_text('{"sizes": 3}'), "unknown names sizes"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_published_files_is_one_clear_error(base: Path, copied: Path, name: str) -> None:
    change, match = FAULTS[name]
    change(copied)
    with pytest.raises(UsageError, match=match) as caught:
        Discriminator(copied, base=base, device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_pickle_is_never_executed(base: Path, copied: Path, tmp_path: Path, writer: str) -> None:
    touched = tmp_path / "touched"
    value = {"cls_pred_branch.0.weight": Harmful(touched)}
    if writer == "torch":
        torch.save(value, copied / HEAD)
    else:
        (copied / HEAD).write_bytes(pickle.dumps(value))
    with pytest.raises(UsageError, match="never executed") as caught:
        Discriminator(copied, base=base, device="cpu")
    assert not touched.exists()
    assert "\n" not in str(caught.value)
    torch.load(copied / HEAD, weights_only=False) if writer == "torch" else pickle.loads((copied / HEAD).read_bytes())
    assert touched.exists()  # the file is harmful indeed


def test_configuration_beside_the_published_files(base: Path, copied: Path) -> None:
    calibration = {"kind": "isotonic", "x": [-1, 0.5], "y": [0, 0.8]}
    (copied / "cleanplate.json").write_text(json.dumps({"base": str(base), "calibration": calibration, "licence": "OpenRAIL++-M"}))
    files = find_discriminator(copied)
    assert files.base.root == base
    assert files.config == DiscriminatorConfig(activation="softplus", base=str(base), calibration=Isotonic((-1, 0.5), (0, 0.8)))
    discriminator = Discriminator(copied, device="cpu")
    (found,) = discriminator.judge(*([item] for item in pictures()))
    assert discriminator.calibrated
    assert found.probability == pytest.approx(np.interp(found.logit, [-1, 0.5], [0, 0.8]))
    assert found.raw == pytest.approx(np.logaddexp(0, found.logit))


def test_base_of_the_published_files(base: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by the caller, by the configuration, by the model around; else SDXL-inpainting by its hub id."""
    whole = find_model(str(base))
    asked: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("core.discriminator_config.find_model", lambda name: asked.append(name) or whole)
        assert find_discriminator(published).base is whole
        assert find_discriminator(published, "owner/other").base is whole
    assert asked == [SDXL_INPAINTING, "owner/other"]
    around = Path(shutil.copytree(base, tmp_path / "around"))
    own = Path(shutil.copytree(published, around / "discriminator"))
    assert find_discriminator(around).base.root == around
    assert find_discriminator(around, base).base.root == base
    shutil.copytree(base, own / "beside")
    (own / "config.json").write_text(json.dumps({"base": "beside"}))
    assert find_discriminator(around).base.root == own / "beside"
    (own / "config.json").write_text(json.dumps({"base": "./nowhere"}))
    with pytest.raises(UsageError, match="nowhere"):
        find_discriminator(around)


def test_fingerprint_changes_with_every_file_that_decides(base: Path, copied: Path) -> None:
    seen = {find_discriminator(copied, base).fingerprint()}
    for change in (edit_head(lambda t: t["cls_pred_branch.9.bias"].add_(1) and None), alpha, to_safetensors):
        change(copied)
        seen.add(find_discriminator(copied, base).fingerprint())
    (copied / "config.json").write_text("{}")
    seen.add(find_discriminator(copied, base).fingerprint())
    assert len(seen) == 5
    assert find_discriminator(copied, base).fingerprint() in seen


@pytest.mark.parametrize("save", [save_discriminator, save_published_discriminator])
def test_what_is_saved_loads_again(base: Path, published: Path, tmp_path: Path, save: Callable[..., None]) -> None:
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    network = load_discriminator(published, unet, 8)
    config = replace(network.config, calibration=Temperature(1.7), base=str(base))
    save(tmp_path / "saved", network, config, torch.float32)
    assert layout_of(tmp_path / "saved") == ("cleanplate" if save is save_discriminator else "rorem")
    assert read_config(tmp_path / "saved", layout_of(tmp_path / "saved") or "cleanplate") == config
    again = load_discriminator(tmp_path / "saved", unet, 8)
    for name, value in network.trained_state().items():
        assert torch.equal(again.trained_state()[name], value)
    assert not [path for path in (tmp_path / "saved").iterdir() if path.name.startswith(".")]
    before, after = (Discriminator(folder, base=base, device="cpu") for folder in (published, tmp_path / "saved"))
    items = [[item] for item in pictures()]
    assert after.judge(*items)[0].logit == before.judge(*items)[0].logit


def test_diffusers_loads_what_is_saved_in_the_published_layout(base: Path, published: Path, tmp_path: Path) -> None:
    network = load_discriminator(published, UNet2DConditionModel.from_pretrained(base / "unet"), 8)
    save_published_discriminator(tmp_path, network, network.config, torch.float32)
    items = pictures(seed=3)
    assert by_hand(base, tmp_path, *items) == by_hand(base, published, *items)


def test_trained_parts_have_no_place_in_the_published_layout(base: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(EMBEDDED["tiny"] / "discriminator" / "base" / "unet")
    network = DiscriminatorNetwork(unet, DiscriminatorConfig(size=128, head_channels=256, trained_parts=("conv_in",)), 4)
    with pytest.raises(UsageError, match="conv_in"):
        save_published_discriminator(tmp_path, network, network.config, torch.float32)
    assert base.is_dir()


def test_a_folder_of_its_own_in_cleanplates_layout_needs_a_base(tmp_path: Path) -> None:
    tiny = EMBEDDED["tiny"]
    alone = Path(shutil.copytree(tiny / "discriminator", tmp_path / "alone"))
    assert has_discriminator(alone)
    items = pictures(128)
    expected = Discriminator(tiny, device="cpu").judge(*([i] for i in items))
    assert Discriminator(alone, device="cpu").judge(*([i] for i in items)) == expected, "its base is beside it"
    trunk = Path(shutil.move(alone / "base", tmp_path / "trunk"))
    values = json.loads((alone / "config.json").read_text())
    del values["base"]
    (alone / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="names no base"):
        find_discriminator(alone)
    assert Discriminator(alone, base=str(trunk), device="cpu").judge(*([i] for i in items)) == expected
    (alone / "config.json").write_text(json.dumps({**values, "base": "tiny"}))
    assert find_discriminator(alone).base.root == tiny
    base = tiny / "discriminator" / "base"
    assert find_discriminator(tiny).fingerprint() == f"{fingerprint(base)}-{fingerprint(tiny / 'discriminator')}"
    assert not has_discriminator(tmp_path)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"sizes": 1}, "unknown names sizes"),
        ({"size": "big"}, "size is 'big'"),
        ({"size": 0}, "size is 0"),
        ({"lora_rank": True}, "lora_rank"),
        ({"head_channels": 32}, "64, 96, 128"),
        ({"trained_parts": "conv_in"}, "list of names"),
        ({"activation": "relu"}, "sigmoid or softplus"),
        ({"temperature": 0}, "above 0"),
        ({"threshold": 1.5}, "threshold"),
        ({"base": ""}, "base"),
        ({"calibration": {"kind": "platt"}}, "allowed"),
        ({"calibration": {"kind": "temperature", "temperature": 2}, "temperature": 2}, "both given"),
    ],
)
def test_wrong_configurations_are_one_clear_error(tmp_path: Path, values: dict[str, Any], match: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=match) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_configuration_says_how_a_logit_becomes_a_score() -> None:
    logits = np.array([-30.0, -0.433, 0.378, 0.541, 5.0])
    plain, published = DiscriminatorConfig(), DiscriminatorConfig(activation="softplus")
    np.testing.assert_allclose(plain.probability(logits), 1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(published.raw(logits)[1:4], [0.5, 0.9, 1.0], atol=2e-3)
    np.testing.assert_allclose(published.probability(logits)[1:], [0.5, 0.9, 1.0, 1.0], atol=2e-3)
    assert not plain.calibrated
    assert not published.calibrated
    for fitted in (replace(published, temperature=2.0), replace(published, calibration=Temperature(2.0))):
        assert fitted.calibrated
        np.testing.assert_allclose(fitted.probability(logits), plain.probability(logits / 2))
        np.testing.assert_array_equal(fitted.raw(logits), published.raw(logits))
    assert DiscriminatorConfig(calibration=Temperature(1.0)).calibrated
