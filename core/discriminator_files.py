"""A discriminator's files, written and read: cleanplate's layout, and the one that RORem published.

Both hold the adapters and the head alone. Names in RORem's layout are those of diffusers (``unet.<module>.lora.down.weight``) and of its
head (``cls_pred_branch.<index>.weight``); the head may be a pickle, which is read as plain tensors and never executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from core.discriminator_config import (
    CONFIG_FILE,
    HEAD_FILES,
    LORA_FILE,
    WEIGHTS_FILE,
    DiscriminatorConfig,
    head_file,
    layout_of,
    read_config,
)
from core.discriminator_network import DiscriminatorNetwork
from core.errors import UsageError

HEAD_PREFIX: Final = "cls_pred_branch."
LORA_METADATA: Final = "lora_adapter_metadata"
_OWN_LORA: Final = re.compile(r"trunk\.(?P<module>.+)\.lora_(?P<half>[AB])\.default\.weight")
_PUBLISHED_LORA: Final = re.compile(r"unet\.(?P<module>.+)\.(?P<half>lora\.down|lora\.up|lora_A|lora_B)\.weight")
_HALVES: Final = {"A": "lora.down", "B": "lora.up", "lora_A": "lora.down", "lora_B": "lora.up"}


def save_discriminator(folder: Path, network: DiscriminatorNetwork, config: DiscriminatorConfig, dtype: torch.dtype) -> None:
    """Writes ``config.json`` and ``model.safetensors`` (adapters and head only) into ``folder``, each in one move."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS_FILE, save(_plain(network.trained_state(), dtype)))
    _write(folder / CONFIG_FILE, _config_bytes(config))


def save_published_discriminator(folder: Path, network: DiscriminatorNetwork, config: DiscriminatorConfig, dtype: torch.dtype) -> None:
    """Writes RORem's layout into ``folder``: the LoRA file, ``cls_pred_branch.pt``, and ``config.json``, which RORem's code leaves alone.

    Raises:
        UsageError: parts of the trunk were trained beside the adapters, for which that layout has no place.
    """
    if network.config.trained_parts:
        parts = ", ".join(network.config.trained_parts)
        raise UsageError(f"RORem's layout holds adapters and head only, and here {parts} was trained too; save it in cleanplate's layout")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_published_name(name): value for name, value in _plain(network.trained_state(), dtype).items()}
    head = {name: value for name, value in tensors.items() if name.startswith(HEAD_PREFIX)}
    adapter = {"unet.r": config.lora_rank, "unet.lora_alpha": config.lora_alpha}
    metadata = {"format": "pt", LORA_METADATA: json.dumps(adapter)}
    _write(folder / LORA_FILE, save({name: value for name, value in tensors.items() if name not in head}, metadata))
    torch.save(head, folder / f".{HEAD_FILES[1]}")
    (folder / f".{HEAD_FILES[1]}").replace(folder / HEAD_FILES[1])
    _write(folder / CONFIG_FILE, _config_bytes(config))


def load_discriminator(
    folder: Path, unet: Any, factor: int, config: DiscriminatorConfig | None = None, *, copied: bool = True
) -> DiscriminatorNetwork:
    """The network of the files in ``folder``, in either layout, on the trunk of ``unet``; float32, adapters not yet merged.

    Args:
        unet: the base model's ``UNet2DConditionModel``.
        factor: pixels per latent cell of its autoencoder.
        config: None: the folder's.
        copied: see ``core.discriminator_network.Trunk``.

    Raises:
        UsageError: a file is missing or broken, or its tensors are not exactly those that this UNet and configuration need.
    """
    layout = layout_of(folder) or "cleanplate"
    config = config or read_config(folder, layout)
    # files first: a fault in them is told before adapters and head are built
    own = _safetensors(folder / WEIGHTS_FILE) if layout == "cleanplate" else {}
    lora, head = folder / LORA_FILE, head_file(folder)
    adapters = _adapters(lora, config) if layout == "rorem" else {}
    branch = (_safetensors(head) if head.suffix == ".safetensors" else _plain_pickle(head)) if layout == "rorem" else {}
    network = DiscriminatorNetwork(unet, config, factor, copied=copied).float()
    if layout == "cleanplate":
        _fill(network, folder / WEIGHTS_FILE, own, {name: name for name in network.trained_state()})
    else:
        names = {_published_name(name): name for name in network.trained_state()}
        _fill(network, lora, adapters, {name: own_name for name, own_name in names.items() if not name.startswith(HEAD_PREFIX)})
        _fill(network, head, branch, {name: own_name for name, own_name in names.items() if name.startswith(HEAD_PREFIX)})
    return network


def _adapters(path: Path, config: DiscriminatorConfig) -> dict[str, torch.Tensor]:
    """Tensors of a LoRA file; those that have peft's names get diffusers'."""
    found = _safetensors(path)
    _check_scale(path, config)
    adapters: dict[str, torch.Tensor] = {}
    for name, value in found.items():
        match = _PUBLISHED_LORA.fullmatch(name)
        known = f"unet.{match['module']}.{_HALVES.get(match['half'], match['half'])}.weight" if match else name
        adapters[name if known in found else known] = value
    return adapters


def _check_scale(path: Path, config: DiscriminatorConfig) -> None:
    """Newer versions of diffusers write rank and alpha into the file; a wrong alpha would load without a word and score wrongly."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(LORA_METADATA)
    try:
        said = json.loads(text) if text else {}
    except ValueError as error:
        raise UsageError(f"{path} has adapter metadata that is not JSON ({error}); fetch the model again") from error
    for name, key, value in (("lora_rank", "unet.r", config.lora_rank), ("lora_alpha", "unet.lora_alpha", config.lora_alpha)):
        if isinstance(said, Mapping) and said.get(key, value) != value:
            raise UsageError(f"{path} says {name} {said[key]}, the configuration {value}; write {name} into {CONFIG_FILE} beside it")


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {str(error).splitlines()[0][:300]}; fetch the model again") from error


def _plain_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken archive or pickle may raise anything; nothing in it is executed
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "nsupported" in line), lines[0] if lines else type(error).__name__)
        raise UsageError(
            f"cannot read {path} as plain tensors ({reason[:200]}); code in it is never executed: fetch it again, or take {HEAD_FILES[0]}"
        ) from error
    if not isinstance(values, Mapping) or not all(isinstance(name, str) and torch.is_tensor(value) for name, value in values.items()):
        raise UsageError(f"{path} holds a {type(values).__name__} that is no mapping of names to tensors; fetch the model again")
    return {name: value.detach() for name, value in values.items()}


def _fill(network: DiscriminatorNetwork, path: Path, found: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
    """Puts the tensors of a file into the network; ``names`` gives the network's name for every one that must be there."""
    state = network.state_dict()
    wrong = [f"missing {name}" for name in sorted(set(names) - set(found))]
    wrong += [f"unknown {name}" for name in sorted(set(found) - set(names))]
    shared = sorted(set(found) & set(names))
    for name in shared:
        shape, expected = list(found[name].shape), list(state[names[name]].shape)
        wrong += [f"{name} is {shape}, not {expected}"] if shape != expected else []
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        # names come from the file, and a message is one line of bounded length
        text = "; ".join(" ".join(item.split())[:160] for item in wrong[:3])
        raise UsageError(f"{path} does not fit the base model's UNet: {text}{more}; it was trained for another model")
    broken = [name for name in shared if not found[name].is_floating_point() or not bool(torch.isfinite(found[name]).all())]
    if broken:
        raise UsageError(f"{path} has values in {broken[0]} that are no finite numbers; fetch the model again")
    network.load_state_dict({names[name]: found[name].float() for name in shared}, strict=False)


def _published_name(name: str) -> str:
    """RORem's name for a tensor of ``DiscriminatorNetwork.trained_state``."""
    if name.startswith("head."):
        return HEAD_PREFIX + name.removeprefix("head.")
    match = _OWN_LORA.fullmatch(name)
    return f"unet.{match['module']}.{_HALVES[match['half']]}.weight" if match else name


def _plain(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}


def _config_bytes(config: DiscriminatorConfig) -> bytes:
    return (json.dumps(config.to_json(), indent=2) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(data)
    temporary.replace(path)
