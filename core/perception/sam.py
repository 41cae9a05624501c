"""Segment Anything (Kirillov et al. 2023) and SAM 2 (Ravi et al. 2024) through transformers.

Photos are brought to the network's square here and not by transformers' processors: the one for SAM 2 needs torchvision, and a click must
take the same way in both. SAM keeps the aspect and pads at the right and the bottom, SAM 2 squashes (the papers' released code).

Legend for shape suffixes: B batch, H W picture sides in pixels, S side of the network's square, h w sides of its masks, P prompts of one
kind, K candidate masks.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from PIL import Image

from core.checkpoints import read_json
from core.errors import UsageError
from core.images import Pixels
from core.perception.pretrained import find_model, load_network
from core.perception.prompt import Prompt, Segmentation, check_mask, check_photo, fit_prompt

FAMILIES: Final = {"sam": "SamModel", "sam2": "Sam2Model", "sam2_video": "Sam2Model"}
"""transformers' class for each ``model_type``; the published SAM 2 folders say ``sam2_video``, and hold the image model."""

_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, as both families were trained
_DEVIATION: Final = np.array([0.229, 0.224, 0.225], np.float32)


def _image_config(folder: Path) -> Any:
    """The configuration of the image model inside a SAM 2 video model; transformers would take it as it is, but warn at every start."""
    import transformers

    config = read_json(folder / "config.json")
    parts: dict[str, Any] = {}
    for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        if not isinstance(config.get(name), dict):
            raise UsageError(f"{folder / 'config.json'} has no {name}; fetch the model again")
        parts[name] = {**config[name], "model_type": config[name].get("model_type", "").replace("sam2_video", "sam2")}
    return transformers.Sam2Config(**parts)


class SamSegmenter:
    """A promptable network behind ``Segmenter``. The costly half, the embedding of a photo, is kept for further clicks on it.

    Args:
        model: a folder, ``s3://`` folder or hub id of a SAM or SAM 2 model.
        device: see ``core.device.pick_device``.
        dtype: of the image encoder; ``auto`` is float32 on a CPU and bfloat16 on a GPU. Clicks and masks are float32 always.
        keep: embeddings of so many photos are kept (4 MiB each for SAM, 16 MiB for SAM 2).

    Raises:
        UsageError: the model is missing, of another kind or broken; ``keep`` is less than 1.
    """

    def __init__(self, model: str, *, device: str = "auto", dtype: str = "auto", keep: int = 8) -> None:
        if keep < 1:
            raise UsageError(f"embeddings of 1 photo or more are kept, got {keep}")
        folder, self.family = find_model(model, FAMILIES, "segmenter")
        import transformers

        from core.device import pick_device, pick_dtype

        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        config = _image_config(folder) if self.family == "sam2_video" else None
        self.network = load_network(getattr(transformers, FAMILIES[self.family]), folder, self.device, config)
        self._side = int(self.network.config.prompt_encoder_config.image_size)
        self._keep = keep
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()  # one network, many threads of a server

    def segment(self, photo: Pixels, prompt: Prompt) -> Segmentation:
        """See ``Segmenter.segment``; the score is the network's own estimate of the mask's IoU.

        One click alone is ambiguous, so that the best of three candidates is taken for it; more than that gives the single mask
        (Kirillov et al. 2023, section 3, "Resolving ambiguity").
        """
        check_photo(photo)
        height, width = photo.shape[:2]
        prompt = fit_prompt(prompt, width, height)
        import torch

        with self._lock, torch.inference_mode():
            output = self.network(
                image_embeddings=self._embedding(photo),
                multimask_output=prompt.box is None and len(prompt.clicks) == 1,
                **self._prompt_tensors(prompt, width, height),
            )
            scores_K, masks_Khw = output.iou_scores[0, 0].float(), output.pred_masks[0, 0].float()
            best = int(scores_K.argmax())
            mask = self._full_size(masks_Khw[best], width, height)
        return Segmentation(check_mask(mask, "the segmenter"), float(scores_K[best].clamp(0, 1)))

    def _square(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the photo inside the network's square."""
        if self.family != "sam":
            return self._side, self._side
        scale = self._side / max(width, height)
        return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))

    def _embedding(self, photo: Pixels) -> Any:
        key = hashlib.blake2b(np.ascontiguousarray(photo).data, digest_size=16, salt=str(photo.shape[1]).encode()).digest()
        if key not in self._kept:
            self._kept[key] = self._embed(photo)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _embed(self, photo: Pixels) -> Any:
        import torch

        size = self._square(photo.shape[1], photo.shape[0])
        resized = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR), np.float32)
        square = np.zeros((self._side, self._side, 3), np.float32)
        square[: size[1], : size[0]] = (resized / 255 - _MEAN) / _DEVIATION
        pixels_B3SS = torch.from_numpy(square).permute(2, 0, 1)[None].to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = self.network.get_image_embeddings(pixels_B3SS)
        return [level.float() for level in found] if isinstance(found, list | tuple) else found.float()

    def _prompt_tensors(self, prompt: Prompt, width: int, height: int) -> dict[str, Any]:
        import torch

        inner = self._square(width, height)
        scale = torch.tensor([inner[0] / width, inner[1] / height], device=self.device)
        tensors: dict[str, Any] = {}
        if prompt.clicks:
            points_P2 = torch.tensor([[click.x, click.y] for click in prompt.clicks], device=self.device) * scale
            tensors["input_points"] = points_P2[None, None]
            tensors["input_labels"] = torch.tensor([int(click.positive) for click in prompt.clicks], device=self.device)[None, None]
        if prompt.box is not None:
            tensors["input_boxes"] = (torch.tensor(prompt.box, device=self.device).view(2, 2) * scale).view(1, 1, 4)
        return tensors

    def _full_size(self, logits_hw: Any, width: int, height: int) -> Pixels:
        """(H, W) uint8, 0 or 255: the logits without the padding, enlarged to the photo, above 0."""
        from torch.nn.functional import interpolate

        inner = self._square(width, height)
        logits_11SS = interpolate(logits_hw[None, None], (self._side, self._side), mode="bilinear", align_corners=False)
        # OpenCV enlarges in a tenth of torch's memory traffic, with the same sampling points
        logits = logits_11SS[0, 0, : inner[1], : inner[0]].cpu().numpy()
        return np.where(cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0, 255, 0).astype(np.uint8)
