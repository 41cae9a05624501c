"""Low-rank adapters that are merged into a network before it runs, so that they cost nothing: LCM's above all (RORem, section 3.3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError

from core.errors import UsageError

FILE_NAME: Final = "pytorch_lora_weights.safetensors"
OWN_FOLDER: Final = "lcm"
"""In a model's folder: the adapter for 4 steps that it brings."""
_PREFIX: Final = "unet."


def lora_fingerprint(file: Path) -> str:
    """16 hex digits for all bytes of an adapter's file."""
    digest = hashlib.blake2b(digest_size=8)
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """One layer's change: weight + alpha / rank * up @ down; for convolutions ``down`` has the layer's kernel and ``up`` is 1 x 1."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    def change(self) -> torch.Tensor:
        """What is added to the layer's weight, float32, in the weight's shape."""
        down, up = self.down.float(), self.up.float()
        product = up.flatten(1) @ down.flatten(1)
        return (product * (self.alpha / down.shape[0])).reshape(up.shape[0], *down.shape[1:])


def lora_file(path: Path) -> Path:
    """The adapter file that ``path`` is or holds, or that the model in the folder ``path`` brings in ``lcm/``.

    Raises:
        UsageError: it is neither a safetensors file nor a folder with one.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if (path / OWN_FOLDER / FILE_NAME).is_file():
        return path / OWN_FOLDER / FILE_NAME
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        named = [file for file in found if file.name == FILE_NAME] or found
        if len(named) == 1:
            return named[0]
    raise UsageError(f"{path} is no LoRA: give a .safetensors file, or a folder with {FILE_NAME}")


def read_lora(path: Path, unet_config: Any) -> dict[str, LoraLayer]:
    """The layers in a file or folder by the names of the UNet's modules.

    Names of peft, of older diffusers, and of kohya's scripts (``lora_unet_...`` with ``alpha``) are read through diffusers' own conversion;
    where there is no alpha it equals the rank. Files of diffusers' training scripts mix two of these styles, and diffusers' loader, which
    goes by the first name, then leaves out all attention layers without a word; so every tensor is accounted for here.

    Raises:
        UsageError: the file is broken, or holds anything but pairs of low-rank layers of a UNet.
    """
    from diffusers import StableDiffusionXLInpaintPipeline  # brings all of transformers

    file = lora_file(path)
    try:
        state, alphas = StableDiffusionXLInpaintPipeline.lora_state_dict(str(file), unet_config=unet_config, local_files_only=True)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UsageError(f"cannot read the LoRA {file}: {' '.join(str(error).split())[:300]}; fetch it again") from error
    state = _peft_names(state)
    alphas = {name.removesuffix(".alpha").partition(".lora_")[0]: value for name, value in _peft_names(alphas or {}).items()}
    layers: dict[str, LoraLayer] = {}
    wrong: list[str] = []
    for name, tensor in state.items():
        layer, _, end = name.partition(".lora_")
        if not name.startswith(_PREFIX) or end not in {"A.weight", "B.weight"} or f"{layer}.lora_B.weight" not in state:
            wrong.append(f"unknown layer {name}")
        elif end == "A.weight":
            layers[layer.removeprefix(_PREFIX)] = LoraLayer(tensor, state[f"{layer}.lora_B.weight"], alphas.get(layer, len(tensor)))
    _refuse(file, wrong if wrong or layers else ["it holds no low-rank layers"])
    return layers


def _peft_names(values: dict[str, Any]) -> dict[str, Any]:
    """``layer.lora_A.weight`` and ``layer.lora_B.weight``, whatever diffusers called them before peft."""
    return {name.replace(".processor.", "."): value for name, value in convert_unet_state_dict_to_peft(values).items()}


def merge_lora(unet: Any, path: Path, scale: float = 1.0) -> int:
    """Add the adapter in ``path`` to the network's weights, and return how many layers it changed.

    Do it in float32: in bfloat16 the small changes would be rounded away.

    Raises:
        UsageError: as ``read_lora``; or the adapter holds a layer that this network does not have, or has in another shape.
    """
    layers = read_lora(path, unet.config)
    modules = dict(unet.named_modules())
    changes = {name: layer.change() * scale for name, layer in layers.items()}
    wrong = []
    for name, change in changes.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            wrong.append(f"unknown layer {name}")
        elif weight.shape != change.shape:
            wrong.append(f"{name} is {list(change.shape)}, not {list(weight.shape)}")
    _refuse(lora_file(path), wrong)
    with torch.no_grad():
        for name, change in changes.items():
            weight = modules[name].weight
            weight += change.to(weight)
    return len(changes)


def _refuse(file: Path, wrong: list[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(f"{file} does not fit this UNet: {'; '.join(wrong[:3])}{more}; it was trained for another model")
