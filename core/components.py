"""The parts of a model: networks and scheduler, loaded from local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from core.checkpoints import HALF_MARK, read_json
from core.device import placed
from core.errors import UsageError
from core.object_token import FuseModule, ObjectToken
from core.weights import check_weights, weight_files

NetworkName = Literal["unet", "vae"]


def load_network(folder: Path, name: NetworkName, dtype: torch.dtype) -> Any:
    """A UNet (``name`` is ``unet``) or autoencoder (``vae``) in a folder of its own, in evaluation mode, without gradients.

    Raises:
        UsageError: the folder or a file of it is missing, truncated, or of another shape than its config says.
    """
    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[name]
    # from_pretrained only warns where weights are missing, and fills them with random numbers
    files = check_weights(folder, name).files
    variant = "fp16" if all(HALF_MARK in file for file in files) else None
    try:
        network = kind.from_pretrained(folder, torch_dtype=dtype, variant=variant, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UsageError(f"cannot load {folder}: {str(error).splitlines()[0][:300]}; fetch the model again") from error
    return _in_own_memory(network.eval().requires_grad_(False))


def _in_own_memory(network: Any) -> Any:
    """The network with its weights out of the mapped file, at addresses of torch's own choice.

    In the file they lie at any address, and on a CPU some kernels round differently there: the same weights in another file, sharded, say,
    would give other bytes.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network


def load_scheduler(folder: Path, kind: str | None = None, spacing: str | None = None) -> Any:
    """The scheduler of a diffusers folder, or of its ``scheduler/`` folder.

    Args:
        kind: name of diffusers' class; None: the one that ``scheduler_config.json`` names.
        spacing: ``timestep_spacing`` in place of the file's.

    Raises:
        UsageError: the file is missing, or there is no such class.
    """
    folder = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    config = read_json(folder / "scheduler_config.json")
    name = str(kind or config.get("_class_name"))
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise UsageError(f"{folder}: diffusers {diffusers.__version__} has no scheduler {name!r}")
    return found.from_config(config, **({"timestep_spacing": spacing} if spacing else {}))


def load_object_token(
    image_encoder: Path, fuse_module: Path, device: torch.device, dtype: torch.dtype, *, crop_box: bool = False
) -> ObjectToken:
    """ObjectClear's object token: the vision half of the CLIP model in ``image_encoder``, and the fuse module.

    Raises:
        UsageError: a file is missing or broken, or does not fit the other.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    check_weights(image_encoder, "image_prompt_encoder")
    check_weights(fuse_module, "postfuse_module")
    config = read_json(image_encoder / "config.json")
    width = int(config.get("projection_dim", 512))
    vision = {**config.get("vision_config", config), "projection_dim": width}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
    # a whole CLIP model: its text half stays on the disk
    _load(encoder, image_encoder, "model", [name for name, _ in encoder.named_parameters()])
    sizes = read_json(fuse_module / "config.json")
    fuse = FuseModule(int(sizes["embed_dim"]), int(sizes["embed_dim_img"]))
    _load(fuse, fuse_module, "diffusion_pytorch_model", list(fuse.state_dict()))
    if width != sizes["embed_dim_img"]:
        raise UsageError(f"{image_encoder} gives {width} numbers an object, {fuse_module} takes {sizes['embed_dim_img']}: not of one model")
    for network in (encoder, fuse):
        placed(network.eval().requires_grad_(False), device, dtype, channels_last=False)
    return ObjectToken(encoder, fuse, crop_box=crop_box)


def _load(network: torch.nn.Module, folder: Path, stem: str, names: list[str]) -> None:
    """Fill a network with tensors of files that ``check_weights`` has found whole."""
    wanted: dict[str, torch.Tensor] = {}
    for path in weight_files(folder, stem):
        try:
            with safe_open(path, framework="pt") as file:
                wanted |= {name: file.get_tensor(name) for name in set(names) & set(file.keys())}
        except (OSError, SafetensorError) as error:
            raise UsageError(f"cannot load {path}: {' '.join(str(error).split())[:300]}; fetch the model again") from error
    network.load_state_dict(wanted, strict=False)
