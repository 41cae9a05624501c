"""LCM LoRA files in the layouts that training scripts write: merged exactly, or refused with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import load_file, save_file

from core.conditioning import time_ids
from core.errors import UsageError
from core.lora import lora_file, merge_lora
from tests.random_models import POOLED, TOKENS, WIDTH, random_unet

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut"]
TARGETS += ["downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]
"""The layers of RORem's distillation."""


def call(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return unet(
        torch.randn(1, 9, 8, 8, generator=generator),
        torch.tensor(500),
        encoder_hidden_states=torch.randn(1, TOKENS, WIDTH, generator=generator),
        added_cond_kwargs={"text_embeds": torch.randn(1, POOLED, generator=generator), "time_ids": time_ids(1, 64, 64)},
        return_dict=False,
    )[0]


def trained(folder: Path, rank: int = 4, alpha: int = 4) -> Any:
    """A network with a live adapter of random weights, which is also written as RORem's script writes it."""
    unet = random_unet()
    unet.add_adapter(peft.LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=TARGETS))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    state = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(unet))
    StableDiffusionXLInpaintPipeline.save_lora_weights(folder, unet_lora_layers=state)
    return unet


def test_a_merged_adapter_equals_the_live_one(tmp_path: Path) -> None:
    live = trained(tmp_path)
    merged = random_unet()
    layers = merge_lora(merged, tmp_path)
    assert layers == len([name for name, _ in live.named_modules() if name.endswith("lora_A")])
    assert layers > 40
    names = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert {".lora_A." in name for name in names} == {True, False}, "the script mixes two styles of names, and both must be merged"
    assert float((call(merged) - call(random_unet())).abs().max()) > 1e-2
    assert float((call(merged) - call(live)).abs().max().detach()) < 1e-5
    assert {type(module).__module__.split(".")[0] for module in merged.modules()} <= {"torch", "diffusers"}
    assert merged.state_dict().keys() == random_unet().state_dict().keys()
    assert not any(parameter.requires_grad for parameter in merged.parameters())


def test_kohyas_names_and_alpha_are_read(tmp_path: Path) -> None:
    """``lora_unet_...lora_down`` with ``alpha``, as LCM's own adapter for SDXL is published."""
    trained(tmp_path)
    state = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    kohya: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer, _, end = name.removeprefix("unet.").partition(".lora")
        flat = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{flat}.lora_{'down' if end in {'_A.weight', '.down.weight'} else 'up'}.weight"] = tensor
        kohya[f"{flat}.alpha"] = torch.tensor(2.0)
    path = tmp_path / "kohya.safetensors"
    save_file(kohya, path)
    expected, found = random_unet(), random_unet()
    merge_lora(expected, tmp_path / "pytorch_lora_weights.safetensors", scale=0.5)
    merge_lora(found, path)
    assert float((call(found) - call(expected)).abs().max()) < 1e-5
    assert float((call(found) - call(random_unet())).abs().max()) > 1e-3


@pytest.mark.parametrize("damage", ["truncated", "unknown", "shape", "empty", "other"])
def test_files_that_do_not_fit_are_refused(tmp_path: Path, damage: str) -> None:
    trained(tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    state = load_file(path)
    name = next(name for name in state if ".lora_A." in name)
    says = "does not fit this UNet: "
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
        says = "cannot read the LoRA"
    elif damage == "unknown":
        for end in (".lora_A.weight", ".lora_B.weight"):
            state[f"unet.down_blocks.7.nothing{end}"] = torch.zeros(4, 4)
        says += "unknown layer down_blocks.7.nothing"
    elif damage == "shape":
        state[name] = state[name][:, :-1].contiguous()
        says += r".*not \["
    elif damage == "empty":
        state = {"unet.something": torch.zeros(1)}
        says += "unknown layer unet.something"
    else:
        state = {name.replace("unet.", "transformer."): value for name, value in state.items()}
        says += "unknown layer transformer."
    if damage != "truncated":
        save_file(state, path)
    before = random_unet()
    with pytest.raises(UsageError, match=says) as caught:
        merge_lora(before, tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_lora_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no LoRA: give a \.safetensors file"):
        lora_file(tmp_path)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UsageError, match="is no LoRA"):
        lora_file(tmp_path / "weights.bin")
    (tmp_path / "my.safetensors").touch()
    assert lora_file(tmp_path) == tmp_path / "my.safetensors"
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(UsageError, match="is no LoRA"):
        lora_file(tmp_path)


def test_a_model_may_bring_its_adapter(tmp_path: Path) -> None:
    """Whatever other weights are in its folder."""
    (tmp_path / "prompt_embeds.safetensors").touch()
    (tmp_path / "lcm").mkdir()
    own = tmp_path / "lcm" / "pytorch_lora_weights.safetensors"
    own.touch()
    assert lora_file(tmp_path) == own
