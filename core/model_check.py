"""Whether a model is whole: each part against its configuration, and the parts against each other, without loading any weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from core.checkpoints import read_json
from core.errors import UsageError
from core.model_files import HEAD_FILES, PROMPT_FILE, TEXT_ENCODERS, ModelFiles
from core.weights import DTYPE_NAMES, Component, inspect_weights, read_header


@dataclass(frozen=True, slots=True)
class PartReport:
    """One part of a model.

    Attributes:
        part: ``unet``, ``vae``, ...; ``fit`` for the parts against each other.
        path: its folder or file.
        parameters: numbers in its weights; None where it has none, or they are in a pickle.
        dtype: their number formats, most frequent first.
        bytes: of its weight files.
        fault: what is wrong; empty where nothing is.
    """

    part: str
    path: Path
    parameters: int | None = None
    dtype: str | None = None
    bytes: int | None = None
    fault: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.fault


def check_model(files: ModelFiles) -> list[PartReport]:
    """A report for every part of a model. Nothing is raised for what is broken: the report says it."""
    networks: dict[str, Path | None] = {
        "unet": files.unet,
        "vae": files.vae,
        "image_prompt_encoder": files.image_encoder,
        "postfuse_module": files.fuse_module,
        **{name: files.prompt / name for name in TEXT_ENCODERS if (files.prompt / name).is_dir()},
    }
    parts = [_guarded(name, path, _network) for name, path in networks.items() if path is not None]
    parts.append(_guarded("scheduler", files.scheduler, _scheduler))
    if (files.prompt / PROMPT_FILE).is_file():
        parts.append(_guarded("prompt", files.prompt / PROMPT_FILE, _prompt))
    if files.discriminator is not None:
        parts += check_adapter(files.discriminator, "discriminator")
    if all(part.ok for part in parts):
        parts.append(PartReport("fit", files.root, fault="; ".join(_misfits(files))))
    return parts


def check_adapter(folder: Path, part: str) -> list[PartReport]:
    """A report for every weight file of a LoRA or a discriminator: whether it is whole. Whether it fits is seen when it is loaded."""
    reports = [_guarded(part, path, _file) for path in sorted(folder.glob("*.safetensors"))]
    head = folder / HEAD_FILES[0]
    if head.is_file():
        # a pickle is read by the discriminator's own loader, as plain tensors
        reports.append(PartReport(part, head, bytes=head.stat().st_size, fault="" if head.stat().st_size else f"{head} is empty"))
    return reports or [PartReport(part, folder, fault=f"{folder} has no weights: no .safetensors is in it; fetch it again")]


def _guarded(part: str, path: Path, check: Callable[[str, Path], PartReport]) -> PartReport:
    try:
        return check(part, path)
    except UsageError as error:
        return PartReport(part, path, fault=str(error))


def _network(part: str, folder: Path) -> PartReport:
    found = inspect_weights(folder, cast(Component, part))
    return PartReport(part, folder, found.parameters, ", ".join(found.dtypes), found.bytes, found.fault)


def _scheduler(part: str, folder: Path) -> PartReport:
    import diffusers

    name = str(read_json(folder / "scheduler_config.json").get("_class_name"))
    kind = getattr(diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    return PartReport(part, folder, fault="" if known else f"diffusers {diffusers.__version__} has no scheduler {name!r}")


def _prompt(part: str, path: Path) -> PartReport:
    report = _file(part, path)
    found = read_header(path)
    for name, sides in (("prompt_embeds", 3), ("pooled_prompt_embeds", 2)):
        if name not in found:
            raise UsageError(f"{path} lacks {name}; found {', '.join(sorted(found)) or 'nothing'}")
        shape = found[name].shape
        if len(shape) != sides or shape[0] != 1:
            raise UsageError(f"{path}: {name} is {list(shape)}; it must have {sides} sides, the first of 1")
    return report


def _file(part: str, path: Path) -> PartReport:
    found = read_header(path)
    formats = dict.fromkeys(DTYPE_NAMES.get(info.dtype, info.dtype) for info in found.values())
    return PartReport(part, path, sum(info.count for info in found.values()), ", ".join(formats), path.stat().st_size)


def _misfits(files: ModelFiles) -> list[str]:
    """What of the parts' sizes does not agree."""
    unet, vae = (read_json(folder / "config.json") for folder in (files.unet, files.vae))
    width, pooled = _prompt_widths(files.prompt)
    latents = vae.get("latent_channels", 4)
    pairs: list[tuple[str, Any, str, Any]] = [
        ("the UNet's in_channels", unet.get("in_channels"), f"an inpainting UNet for {latents} latent channels takes", 2 * latents + 1),
        ("the UNet's cross_attention_dim", unet.get("cross_attention_dim"), "the prompt's width is", width),
        (
            "the UNet's projection_class_embeddings_input_dim",
            unet.get("projection_class_embeddings_input_dim"),
            "pooled prompt and six sizes make",
            pooled + 6 * (unet.get("addition_time_embed_dim") or 0),
        ),
    ]
    if files.fuse_module is not None and files.image_encoder is not None:
        fuse, encoder = (read_json(folder / "config.json") for folder in (files.fuse_module, files.image_encoder))
        pairs += [
            ("the fuse module's embed_dim", fuse["embed_dim"], "the prompt's width is", width),
            ("the fuse module's embed_dim_img", fuse["embed_dim_img"], "the image encoder gives", encoder.get("projection_dim", 512)),
        ]
    return [f"{name} is {found}, but {words} {wanted}" for name, found, words, wanted in pairs if found != wanted]


def _prompt_widths(folder: Path) -> tuple[int, int]:
    """Widths of a prompt's tokens and of its pooled embedding."""
    if (folder / PROMPT_FILE).is_file():
        found = read_header(folder / PROMPT_FILE)
        return found["prompt_embeds"].shape[-1], found["pooled_prompt_embeds"].shape[-1]
    first, second = (read_json(folder / name / "config.json") for name in TEXT_ENCODERS)
    return int(first["hidden_size"]) + int(second["hidden_size"]), int(second.get("projection_dim", 512))
