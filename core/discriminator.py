"""The discriminator: the probability that an erasure succeeded (RORem, sections 1.3 and 3; design D).

It sees the edited picture, the mask and the *full* source, so that it can tell a source that came back unchanged. Unlike the reference,
latents are posterior means without noise, so that a score is a function of its inputs, and the score is a calibrated probability; what
the head itself gives (the softplus of RORem's published one) stands beside it.

Legend for shape suffixes: N items, L latent channels, H W picture sides in pixels, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch

from core.components import load_network
from core.conditioning import downsampling_factor, encode_latents, image_batch, latent_mask, mask_batch
from core.device import pick_device
from core.discriminator_config import find_discriminator
from core.discriminator_files import load_discriminator
from core.model_card import read_card
from core.prompts import load_prompt

GPU_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Scored:
    """What the discriminator says of one erasure.

    Attributes:
        probability: of success, 0 to 1 (see ``DiscriminatorConfig.probability``); the score.
        raw: what the head's own activation gives: softplus, 0 and up, of RORem's published head; else sigmoid, 0 to 1.
        logit: before any activation.
        resized: whether a picture or the mask had another size than the discriminator's.
    """

    probability: float
    raw: float
    logit: float
    resized: bool


class Discriminator:
    """Scores erasures: on a CPU one item at a time, on a GPU in batches of one fixed size, padded; so a score depends on its item alone.

    Args:
        folder: a model's folder with ``discriminator/``, or a folder with a discriminator's own files, RORem's published ones included
            (see ``core.discriminator_config``).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
        dtype: of the networks; None: float32 on a CPU, bfloat16 on a GPU.
        unet: the base model's UNet if it is loaded already (its down path is copied).
        vae: the base model's autoencoder if it is loaded already (used as it is).
        base: model with the trunk, in place of the one that the folder names.

    Raises:
        UsageError: a file is missing or broken, or does not fit the others, or there is no such device.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        unet: Any = None,
        vae: Any = None,
        base: str | Path | None = None,
    ) -> None:
        self.device = pick_device(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.batch_size = 1 if self.device.type == "cpu" else GPU_BATCH
        files = find_discriminator(folder, base)
        self.config = files.config
        self.vae = (vae if vae is not None else load_network(files.base.vae, "vae", self.dtype)).to(self.device)
        self._factor = downsampling_factor(self.vae)
        trunk = unet if unet is not None else load_network(files.base.unet, "unet", torch.float32)
        network = load_discriminator(files.weights, trunk, self._factor, files.config, copied=unet is not None)
        # merged in float32: in bfloat16 the small changes would be rounded away
        network.merge()
        self.network = network.eval().requires_grad_(False).to(self.device, self.dtype)
        self.prompt = load_prompt(files.base.prompt).to(self.device, self.dtype)
        self._mask_rule = read_card(files.base.root).latent_mask

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that it looks at; others are resized."""
        return self.config.size

    @property
    def calibrated(self) -> bool:
        """Whether scores are fitted probabilities; if not, they are the head's own activation, a softplus cut off at 1."""
        return self.config.calibrated

    def score(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[float]:
        """Probability of success, 0 to 1, for each item; arguments and errors as ``judge``."""
        return [scored.probability for scored in self.judge(edited, source, masks)]

    @torch.inference_mode()
    def judge(self, edited: Sequence[np.ndarray], source: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[Scored]:
        """What the discriminator says of each item.

        Pictures of another size than ``size`` are resized (by area when shrinking, cubically when enlarging; to the square, as in RORem's
        training), and the result says so. Of the mask, a cell is set as soon as any of its pixels is.

        Args:
            edited, source: uint8 RGB (H, W, 3). Sources that are the same object are encoded once.
            masks: uint8 (H, W), 255 = what was to be removed.

        Raises:
            ValueError: the lists differ in length, an array has another shape or dtype, or the three of an item differ in size.
        """
        items = list(zip(edited, source, masks, strict=True))
        for item in items:
            _check_item(*item)
        if not items:
            return []
        # held by their ids, which are of objects that the caller's lists keep alive
        distinct = {id(picture): picture for picture in source}
        places = {key: place for place, key in enumerate(distinct)}
        source_NLhw = self.encode(list(distinct.values()))[[places[id(picture)] for picture in source]]
        resized = [picture.shape[:2] != (self.size, self.size) for picture in edited]
        return self._judge(self.encode(edited), source_NLhw, masks, resized)

    def score_latents(self, edited_NLhw: torch.Tensor, source_NLhw: torch.Tensor, masks: Sequence[np.ndarray]) -> list[float]:
        """Probability of success, 0 to 1, for each item; arguments and errors as ``judge_latents``."""
        return [scored.probability for scored in self.judge_latents(edited_NLhw, source_NLhw, masks)]

    @torch.inference_mode()
    def judge_latents(self, edited_NLhw: torch.Tensor, source_NLhw: torch.Tensor, masks: Sequence[np.ndarray]) -> list[Scored]:
        """What the discriminator says of erasures that are given as latents, without decoding and encoding them again.

        This is another input than the one it was trained on: it skips the decoder, the rounding to 8 bits, the paste back into the photo
        and the encoder. ``benchmarks/latent_scoring.py`` measures what that does to the score. With latents from ``encode`` the result
        equals that of ``judge``.

        Args:
            edited_NLhw: scaled latents at the discriminator's size (``size`` over the autoencoder's factor), as a sampler of the same
                autoencoder leaves them.
            source_NLhw: those of the full source, as ``encode`` gives them.
            masks: uint8 (H, W), 255 = what was to be removed; resized as in ``judge``.

        Raises:
            ValueError: numbers of items differ, or latents have another shape.
        """
        side = self.size // self._factor
        wanted = (len(masks), int(self.vae.config.latent_channels), side, side)
        if tuple(edited_NLhw.shape) != wanted or tuple(source_NLhw.shape) != wanted:
            shapes = f"{tuple(edited_NLhw.shape)} and {tuple(source_NLhw.shape)}"
            raise ValueError(f"latents of edited and source are {shapes}; for {len(masks)} masks this discriminator takes {wanted}")
        for mask in masks:
            _check_mask(mask)
        if not len(masks):
            return []
        edited_NLhw, source_NLhw = (latents.to(self.device, self.dtype) for latents in (edited_NLhw, source_NLhw))
        return self._judge(edited_NLhw, source_NLhw, masks, [mask.shape != (self.size, self.size) for mask in masks])

    @torch.inference_mode()
    def encode(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Scaled posterior-mean latents (N, L, h, w), on the device, of pictures uint8 RGB (H, W, 3); resized as in ``judge``.

        Raises:
            ValueError: there is no picture, or one of another shape or dtype.
        """
        if not pictures:
            raise ValueError("there is no picture to encode; give at least one")
        for picture in pictures:
            _check_picture(picture)
        parts = []
        for places, count in self._batches(len(pictures)):
            images_B3HW = image_batch(self._on_device([resized_picture(pictures[place], self.size) for place in places]))
            parts.append(encode_latents(self.vae, images_B3HW.to(self.dtype)).to(self.dtype)[:count])
        return torch.cat(parts)

    def _judge(
        self, edited_NLhw: torch.Tensor, source_NLhw: torch.Tensor, masks: Sequence[np.ndarray], resized: Sequence[bool]
    ) -> list[Scored]:
        parts = []
        for places, count in self._batches(len(masks)):
            mask_B1HW = mask_batch(self._on_device([resized_mask(masks[place], self.size) for place in places]))
            mask_B1hw = latent_mask(mask_B1HW.to(self.dtype), self._factor, self._mask_rule)
            parts.append(self.network(edited_NLhw[places], mask_B1hw, source_NLhw[places], self.prompt).logits_B[:count])
        # one copy from the device for all batches
        logits_N = torch.cat(parts).cpu().double().numpy()
        columns = (self.config.probability(logits_N), self.config.raw(logits_N), logits_N)
        return [
            Scored(probability, raw, logit, changed)
            for probability, raw, logit, changed in zip(*(column.tolist() for column in columns), resized, strict=True)
        ]

    def _on_device(self, arrays: Sequence[np.ndarray]) -> torch.Tensor:
        """One uint8 batch on the device, for a quarter of the bytes of float32."""
        return torch.from_numpy(np.stack(arrays)).to(self.device)

    def _batches(self, count: int) -> Iterator[tuple[list[int], int]]:
        """Batches of one size: the places of their items, the last one repeated to fill up, and how many of them are real."""
        for start in range(0, count, self.batch_size):
            places = list(range(start, min(start + self.batch_size, count)))
            yield places + places[-1:] * (self.batch_size - len(places)), len(places)


def resized_picture(pixels_HW3: np.ndarray, side: int) -> np.ndarray:
    """uint8 RGB (H, W, 3) at (side, side, 3): by area along a side that shrinks, cubically along one that grows."""
    height, width = pixels_HW3.shape[:2]
    if (height, width) == (side, side):
        return pixels_HW3
    if min(height, width) >= side or max(height, width) <= side:
        return cv2.resize(pixels_HW3, (side, side), interpolation=cv2.INTER_AREA if min(height, width) >= side else cv2.INTER_CUBIC)
    narrow = cv2.resize(pixels_HW3, (side, height), interpolation=cv2.INTER_AREA if width > side else cv2.INTER_CUBIC)
    return cv2.resize(narrow, (side, side), interpolation=cv2.INTER_AREA if height > side else cv2.INTER_CUBIC)


def resized_mask(mask_HW: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W), 255 = remove, at (side, side), 0 and 255: a cell is set as soon as any of its pixels is, as ``make_crop`` does."""
    height, width = mask_HW.shape
    if (height, width) == (side, side):
        return mask_HW
    # in floating point: the share of a cell that one pixel takes may round to nothing in 8 bits
    share: np.ndarray = (mask_HW > 127).astype(np.float32)
    if not (min(height, width) >= side or max(height, width) <= side):
        # with one side growing, OpenCV's area rule would skip pixels along the other
        share = cv2.resize(share, (side, height), interpolation=cv2.INTER_AREA)
    share = cv2.resize(share, (side, side), interpolation=cv2.INTER_AREA)
    return ((share > 0) * np.uint8(255)).astype(np.uint8)


def _check_item(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> None:
    _check_picture(edited)
    _check_picture(source)
    _check_mask(mask)
    if not edited.shape[:2] == source.shape[:2] == mask.shape:
        raise ValueError(
            f"edited is {edited.shape[:2]}, source {source.shape[:2]}, mask {mask.shape} (height, width): they must have one size"
        )


def _check_picture(picture: np.ndarray) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a picture is {picture.dtype} {picture.shape}; the discriminator takes uint8 (H, W, 3)")


def _check_mask(mask: np.ndarray) -> None:
    if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
        raise ValueError(f"a mask is {mask.dtype} {mask.shape}; the discriminator takes uint8 (H, W)")
