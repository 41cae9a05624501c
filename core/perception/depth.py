"""Depth: which part of a photo is nearer (Depth Anything V2, Yang et al. 2024), and whether a region is a flat surface.

Legend for shape suffixes: B batch, H W picture sides in pixels, h w sides at which the network runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import UsageError
from core.images import Pixels
from core.perception.pretrained import PhotoInput, batch_size, batches, find_model, load_network
from core.perception.prompt import check_photo

FAMILIES: Final = {"depth_anything": "DepthAnythingForDepthEstimation"}
MIN_REGION_PX: Final = 16
_NO_RELIEF: Final = 1e-5  # of the depth itself: less is rounding, which must not be stretched to a relief from 0 to 1
_FLATNESS_SIDE: Final = 256
_SMOOTH_REACH: Final = 4  # pixels; three standard deviations of the smoothing


class DepthEstimator:
    """Relative inverse depth of photos.

    Args:
        model: a folder, ``s3://`` folder or hub id (``depth-anything/Depth-Anything-V2-Small-hf``); the metric variants are turned over.
        device: see ``core.device.pick_device``.
        dtype: ``float32``, or ``bfloat16`` for speed: that has 8 bits, which show as steps on smooth ground.
        batch: photos at a time; None: 1 on a CPU, 8 on a GPU.

    Raises:
        UsageError: the model is missing, of another kind or broken.
    """

    def __init__(self, model: str, *, device: str = "auto", dtype: str = "float32", batch: int | None = None) -> None:
        folder, family = find_model(model, FAMILIES, "depth estimator")
        import transformers

        from core.device import pick_device, pick_dtype

        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.batch = batch_size(batch, self.device)
        self.network = load_network(getattr(transformers, FAMILIES[family]), folder, self.device)
        if self.network.head.max_depth is None:  # "null" in a configuration; transformers took that for 1 once and fails on it now
            self.network.head.max_depth = 1
        self._input = PhotoInput(folder)
        self._metric = getattr(self.network.config, "depth_estimation_type", "relative") == "metric"

    def estimate(self, photos: Sequence[Pixels]) -> list[NDArray[np.float32]]:
        """Inverse depth of each photo, from 0 (farthest point of that photo) to 1 (nearest); 0 everywhere where the network sees no relief.

        Args:
            photos: (H, W, 3) uint8 RGB each, of any sizes.

        Returns:
            (H, W) float32 each; a result depends on its photo alone.

        Raises:
            UsageError: a photo has another shape or dtype.
        """
        for photo in photos:
            check_photo(photo)
        import torch

        pixels = [self._input(photo) for photo in photos]
        found: dict[int, NDArray[np.float32]] = {}
        with torch.inference_mode():
            for positions, pixels_B3hw in batches(pixels, self.batch):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    depth_Bhw = self.network(pixels_B3hw.to(self.device)).predicted_depth.float()
                for position, depth_hw in zip(positions, depth_Bhw, strict=True):
                    found[position] = self._full_size(depth_hw, *photos[position].shape[:2])
        return [found[position] for position in range(len(photos))]

    def _full_size(self, depth_hw: Any, height: int, width: int) -> NDArray[np.float32]:
        from torch.nn.functional import interpolate

        if self._metric:  # metres: larger is farther
            depth_hw = 1 / depth_hw.clamp(min=1e-3)
        depth_HW = interpolate(depth_hw[None, None], (height, width), mode="bicubic", align_corners=False)[0, 0]
        low, high = depth_HW.min(), depth_HW.max()
        if high - low <= _NO_RELIEF * high.abs():
            return np.zeros((height, width), np.float32)
        return ((depth_HW - low) / (high - low)).cpu().numpy()


@dataclass(frozen=True, slots=True)
class Flatness:
    """How much like a plane a region is; see ``flatness``. Depths count in shares of the photo's depth range, lengths in longest sides.

    Attributes:
        area: share of the photo that was looked at.
        slope: length of the region's median depth gradient: 0 for a wall seen from the front, 1 and more for the ground.
        spread: 90th percentile of how far gradients are from their median: high where there are edges, steps and clutter.
        residual: root mean square distance from the plane that fits best: high where the surface is curved.
    """

    area: float
    slope: float
    spread: float
    residual: float

    def is_flat(self, *, max_spread: float = 1.0, max_residual: float = 0.02) -> bool:
        """Whether objects can be put on the region. The limits are ours, set on synthetic planes, steps and balls with 1 % noise."""
        return self.spread <= max_spread and self.residual <= max_residual


def flatness(depth: NDArray[np.float32], mask: Pixels) -> Flatness:
    """Gradient statistics of inverse depth in a region.

    ObjectClear's data step checks depth gradients (its paper, data section) but publishes neither statistic nor limit; this is our choice.
    The inverse depth of a plane is an affine function of pixel coordinates under perspective, whatever scale and shift the network adds, so
    a plane has one gradient everywhere: what counts is not how steep the gradient is but how much it varies. All is measured on a map whose
    longest side is 256 pixels at most, smoothed a little, so that neither the photo's size nor the network's grain matters.

    Args:
        depth: (H, W) float32 inverse depth, 0 to 1, as ``DepthEstimator.estimate`` gives it.
        mask: (H, W) uint8, non-zero = the region.

    Raises:
        UsageError: shapes differ, or fewer than 16 pixels (of that map) of the region are 4 and more away from its border, where gradients
            are those of the edge.
    """
    if depth.ndim != 2 or depth.shape != mask.shape:
        raise UsageError(f"depth and mask are (H, W) of one photo, got {depth.shape} and {mask.shape}")
    scale = min(1.0, _FLATNESS_SIDE / max(depth.shape))
    size = max(1, round(depth.shape[1] * scale)), max(1, round(depth.shape[0] * scale))
    region = cv2.resize((mask > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.999
    reach = 2 * _SMOOTH_REACH + 1
    inner = cv2.erode(region.astype(np.uint8), np.ones((reach, reach), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if (count := int(inner.sum())) < MIN_REGION_PX:
        raise UsageError(f"flatness needs {MIN_REGION_PX} pixels well inside the region, got {count}; use a larger region")
    small = cv2.resize(depth.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(small, (reach, reach), _SMOOTH_REACH / 3)
    longest = max(size)
    down, across = (np.gradient(smooth, axis=axis)[inner] * longest for axis in (0, 1))
    middle_down, middle_across = np.median(down), np.median(across)
    rows, columns = np.nonzero(inner)
    basis = np.stack([rows / longest, columns / longest, np.ones(count)], axis=1)
    values = smooth[inner].astype(np.float64)
    plane, *_ = np.linalg.lstsq(basis, values, rcond=None)
    return Flatness(
        area=count / inner.size,
        slope=float(np.hypot(middle_down, middle_across)),
        spread=float(np.percentile(np.hypot(down - middle_down, across - middle_across), 90)),
        residual=float(np.sqrt(np.mean((values - basis @ plane) ** 2))),
    )
