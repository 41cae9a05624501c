"""Loading the networks of perception through transformers: checked for kind, completeness and shape before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from core.checkpoints import locate, read_json
from core.errors import UsageError
from core.images import Pixels

if TYPE_CHECKING:
    import torch

GPU_BATCH: Final = 8


def find_model(model: str, families: Mapping[str, Any], noun: str) -> tuple[Path, str]:
    """The folder of ``model`` and its ``model_type``, one of ``families``.

    Args:
        model: a folder, ``s3://`` folder or hub id in transformers layout (see ``core.checkpoints.locate``).
        families: by ``model_type`` of ``config.json``.
        noun: what the caller needs, for messages.

    Raises:
        UsageError: there is no such model, or it is of another family.
    """
    folder = locate(model)
    family = str(read_json(folder / "config.json").get("model_type"))
    if family not in families:
        raise UsageError(f"{model} is a model of the kind {family!r}; a {noun} is one of the kind {' or '.join(families)}")
    return folder, family


def load_network(kind: Any, folder: Path, device: torch.device, config: Any = None) -> Any:
    """A network of the transformers class ``kind`` in float32 on ``device``, in evaluation mode, without gradients.

    Only safetensors are read. Faster arithmetic is a matter of ``torch.autocast`` where the network runs: coordinates and depths would lose
    too much in 16-bit weights.

    Args:
        config: transformers' configuration; None: the folder's.

    Raises:
        UsageError: a file is missing, truncated or of another shape than the configuration says, or a tensor is missing.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging as messages

    given = {} if config is None else {"config": config}
    bars = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()  # seconds of work, and a line that would stay in every log
    try:
        network, report = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True, **given
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"cannot load {folder}: {_first_line(error)}; fetch the model again") from error
    finally:
        if bars:
            messages.enable_progress_bar()
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(f"cannot load {folder}: its weights have no {', '.join(missing[:3])}{more}; fetch the model again")
    return network.eval().requires_grad_(False).to(device)


def load_part(kind: Any, folder: Path, **settings: Any) -> Any:
    """An image processor or tokenizer of a model's folder; ``settings`` go to its ``from_pretrained``.

    Raises:
        UsageError: its files are missing or broken.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True, **settings)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        raise UsageError(f"cannot load the {kind.__name__} of {folder}: {_first_line(error)}; fetch the model again") from error


class PhotoInput:
    """Photos as a network takes them, by the image processor of its folder.

    Pillow does the resizing even where torchvision is installed: a result must not depend on what else there is.
    """

    def __init__(self, folder: Path) -> None:
        import transformers

        self._processor = load_part(transformers.AutoImageProcessor, folder, backend="pil")

    def __call__(self, photo: Pixels) -> torch.Tensor:
        """(1, 3, h, w) float32 for a photo (H, W, 3) uint8 RGB."""
        return self._processor(images=photo, return_tensors="pt", input_data_format="channels_last")["pixel_values"]


def batches(pictures: list[torch.Tensor], size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Pictures of one shape together, at most ``size`` of them: no picture is padded to fit its neighbours, which would change its result.

    Args:
        pictures: (1, 3, h, w) each.

    Yields:
        Positions in ``pictures``, and the batch (B, 3, h, w).
    """
    import torch

    groups: dict[tuple[int, ...], list[int]] = {}
    for position, picture in enumerate(pictures):
        groups.setdefault(tuple(picture.shape), []).append(position)
    for positions in groups.values():
        for start in range(0, len(positions), size):
            part = positions[start : start + size]
            yield part, torch.cat([pictures[position] for position in part])


def batch_size(asked: int | None, device: torch.device) -> int:
    """``asked``, or one at a time on a CPU (where batches win nothing and results stay exactly those of single photos) and 8 on a GPU.

    Raises:
        UsageError: less than 1.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"a batch holds 1 photo or more, got {asked}")
    return asked or (1 if device.type == "cpu" else GPU_BATCH)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
