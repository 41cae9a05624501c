"""Puts together what is shipped as ``tiny``: ``python -m training.tiny_release --help``.

The remover's folder with the discriminator in it and, where there is one, the adapter for 4 steps; every network in half precision, and the
card with the licence. A discriminator on a trunk of its own (``training.tiny_trunk``) brings it along, and what was trained of the trunk
is then in the trunk and not beside it, or it would be shipped twice. Nothing is computed here.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.checkpoints import read_json
from core.discriminator_config import CONFIG_FILE, FOLDER, WEIGHTS_FILE
from core.errors import UsageError
from core.lora import FILE_NAME as LORA_FILE
from core.lora import OWN_FOLDER as LCM_FOLDER
from core.model_card import FILE_NAME
from core.model_files import INDEX_FILE
from training.objective import published
from training.script import exit_status

logger = logging.getLogger(__name__)

FACTS: Final[dict[str, Any]] = {
    "licence": "Apache-2.0",
    "trained_by": "cleanplate train, recipes tiny-remover, tiny-remover-second, tiny-lcm and tiny-discriminator",
}
BASE_FOLDER: Final = "base"
UNET_FILE: Final = "diffusion_pytorch_model.safetensors"
_LEFT_OUT: Final = ("training", "lora", "README.md")


def release(remover: Path, discriminator: Path, output: Path, lcm: Path | None = None, trunk: Path | None = None) -> Path:
    """Writes the folder; parts of an earlier one there are replaced, its README stays.

    Args:
        remover: output of its training.
        discriminator: of its; on ``remover``, or on ``trunk``.
        lcm: of its.
        trunk: the model that the discriminator was trained on.

    Raises:
        UsageError: one of the folders is not what a training leaves.
    """
    needed = [(remover, INDEX_FILE), (remover, FILE_NAME), (discriminator, CONFIG_FILE)]
    parts = [(remover, ""), (discriminator, FOLDER)]
    if lcm is not None:
        needed.append((lcm, LORA_FILE))
        parts.append((lcm, LCM_FOLDER))
    if trunk is not None:
        needed.append((trunk, INDEX_FILE))
        parts.append((trunk, f"{FOLDER}/{BASE_FOLDER}"))
    for folder, file in needed:
        if not (folder / file).is_file():
            raise UsageError(f"{folder} has no {file}; give the output of cleanplate train")
    with published(output) as fresh:
        for source, part in parts:
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                place = path.relative_to(source)
                if place.parts[0] not in _LEFT_OUT:
                    target = fresh / part / place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _copied(path, target)
        (fresh / FILE_NAME).write_text(json.dumps({**read_json(remover / FILE_NAME), **FACTS}, indent=2) + "\n")
        config = read_json(discriminator / CONFIG_FILE)
        # wherever it was trained: its trunk is the remover around it, unless it brings one of its own
        config.pop("base", None)
        if trunk is not None:
            _fold(fresh / FOLDER)
            config |= {"base": BASE_FOLDER, "trained_parts": []}
        (fresh / FOLDER / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    return output


def _fold(discriminator: Path) -> None:
    """Moves what was trained of the trunk from the discriminator's file into the UNet of the base in the same folder."""
    own, unet = discriminator / WEIGHTS_FILE, discriminator / BASE_FOLDER / "unet" / UNET_FILE
    trained, weights = load_file(own), load_file(unet)
    moved = {name: name.removeprefix("trunk.").replace(".base_layer.", ".") for name in trained if _is_trunks(name)}
    wrong = sorted(place for name, place in moved.items() if place not in weights or weights[place].shape != trained[name].shape)
    if wrong:
        raise UsageError(f"the trunk's UNet has no {', '.join(wrong[:3])} like it; give the model that the discriminator was trained on")
    save_file(weights | {place: trained[name] for name, place in moved.items()}, unet, metadata={"format": "pt"})
    save_file({name: value for name, value in trained.items() if name not in moved}, own, metadata={"format": "pt"})


def _is_trunks(name: str) -> bool:
    return name.startswith("trunk.") and ".lora_" not in name


def _copied(path: Path, target: Path) -> None:
    if path.name == "config.json":
        # diffusers notes there which folder a network was loaded from, which is nobody else's business
        told = {name: value for name, value in read_json(path).items() if name != "_name_or_path"}
        target.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
        return
    if path.suffix != ".safetensors":
        shutil.copyfile(path, target)
        return
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no dictionary
        metadata = stored.metadata()
    halved = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in halved.items()}, target, metadata=metadata)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m training.tiny_release", description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--remover", type=Path, required=True, help="output of cleanplate train remover")
    parser.add_argument(
        "--discriminator", type=Path, required=True, help="output of cleanplate train discriminator, on that remover or on --trunk"
    )
    parser.add_argument("--trunk", type=Path, help="the model that the discriminator was trained on, where that is not the remover")
    parser.add_argument("--lcm", type=Path, help="output of cleanplate train lcm, on that remover")
    parser.add_argument("--output", type=Path, required=True, help="gets the model")
    options = parser.parse_args(argv)
    return exit_status(partial(_run, options))


def _run(options: argparse.Namespace) -> None:
    folder = release(options.remover, options.discriminator, options.output, options.lcm, options.trunk)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    logger.info("%s: %.1f MB", folder, size / 1e6)


if __name__ == "__main__":
    raise SystemExit(main())
