"""The discriminator's objective: was the erasure accepted? (RORem, section 3.)

Adapters and head (and the configuration's further parts of the trunk) are trained with cross-entropy on the logit, so that its sigmoid is
a probability; RORem's code takes the squared error of a softplus, which nothing bounds. Labels are from 0 to 1, shares of votes included.
The network sees posterior-mean latents without noise of the edited and the full source picture, as in scoring, so the loss has nothing
random. Beside the judgement the network may learn where an edit is wrong (``training.defects``).

Legend for shape suffixes: B batch, N items, L latent channels, H W picture sides in pixels, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.calibration import Calibration, cross_entropy, expected_calibration_error, fit_isotonic, fit_temperature, sigmoid
from core.conditioning import downsampling_factor, encode_latents, image_batch, latent_mask, mask_batch
from core.discriminator_config import DiscriminatorConfig
from core.discriminator_files import save_discriminator
from core.discriminator_network import DiscriminatorNetwork, Judgement
from core.errors import UsageError
from core.latent_encoding import moment_latents
from training.defects import DefectHeads, defect_loss
from training.objective import Batch, LossResult, Networks, fill_trained
from training.remover_parts import RemoverParts

CalibrationKind = Literal["temperature", "isotonic"]


class DiscriminatorObjective:
    """Loss and trained parts of a discriminator.

    Args:
        parts: the model whose UNet is the trunk, its autoencoder, prompt and card (which says how masks are brought to latent size).
        config: shape of adapters and head; its ``base`` is the model's name unless it names one.
        copied: whether the trunk is a copy; False takes the UNet's own parts, which is then spent.
        seed: of the first weights of adapters and heads.
        defect_weight: of the loss on where an erasure is wrong (``training.defects``), for items whose clean plate is known; 0: none.

    Raises:
        UsageError: the UNet does not fit the configuration, or the head's activation is not a sigmoid.
    """

    def __init__(
        self, parts: RemoverParts, config: DiscriminatorConfig, *, copied: bool = True, seed: int = 0, defect_weight: float = 0.0
    ) -> None:
        if config.activation != "sigmoid":
            raise UsageError(f"activation is {config.activation}; a discriminator is trained with cross-entropy on logits: set sigmoid")
        self.parts = parts
        self.config = config if config.base is not None else replace(config, base=parts.model)
        self._factor = downsampling_factor(parts.vae)
        parts.vae.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DiscriminatorNetwork(parts.unet, self.config, self._factor, copied=copied)
            defects = DefectHeads(network.feature_channels) if defect_weight else None
        self.network = network.float().to(parts.vae.device)
        self.defect_weight = defect_weight
        self.defects = None if defects is None else defects.to(parts.vae.device)

    def networks(self) -> Networks:
        """Adapters, head and trained parts of the one network are trained, its trunk and the autoencoder frozen."""
        beside: dict[str, nn.Module] = {} if self.defects is None else {"defects": self.defects}
        return Networks({"discriminator": self.network, **beside}, {"vae": self.parts.vae})

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> LossResult:  # noqa: ARG002  # nothing here is random
        """Mean cross-entropy, in nats, over the items; parts ``cross_entropy`` and ``accuracy`` (at probability and label of one half).

        With a ``defect_weight`` that many times the mean cross-entropy of cells is added, the part ``defects``.

        Raises:
            UsageError: the batch has no labels, or its pictures are not of the discriminator's size.
        """
        if batch.label_B is None:
            raise UsageError("the discriminator is trained on judged items, and the batch has no label_B: add labels from 0 to 1")
        logits_B, features = self._judged(batch)
        label_B = batch.label_B.to(logits_B.device, torch.float32)
        total = F.binary_cross_entropy_with_logits(logits_B, label_B)
        right = ((logits_B.detach() > 0) == (label_B > 0.5)).float().mean()
        parts = {"cross_entropy": total.detach(), "accuracy": right}
        if self.defects is not None:
            defects = _defect_loss(self.defects(features), batch)
            total, parts["defects"] = total + self.defect_weight * defects, defects.detach()
        return LossResult(total, parts, len(batch))

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits (B,) float32 of a batch, with a gradient where gradients are on.

        Raises:
            UsageError: its pictures are not of the discriminator's size.
        """
        return self._judged(batch).logits_B

    def _judged(self, batch: Batch) -> Judgement:
        height, width = batch.source_BHW3.shape[1:3]
        if (height, width) != (self.config.size, self.config.size):
            side = self.config.size
            raise UsageError(f"pictures are {height} x {width}; this discriminator looks at {side} x {side}: resize them as scoring does")
        # an autoencoder says whether it bears half precision: SDXL's does not
        exact = self.parts.vae.config.get("force_upcast", True)
        with torch.no_grad(), torch.autocast(batch.source_BHW3.device.type, enabled=False) if exact else nullcontext():
            mask_B1hw = latent_mask(mask_batch(batch.mask_BHW), self._factor, self.parts.card.latent_mask)
            edited_BLhw, source_BLhw = self._encoded(batch)
        return self.network(edited_BLhw, mask_B1hw, source_BLhw, self.parts.prompt)

    def _encoded(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of edited and source pictures, (B, L, h, w) float32 each; from cached moments where the batch has both."""
        vae, edited, source = self.parts.vae, batch.target_moments_B2Lhw, batch.source_moments_B2Lhw
        if edited is not None and source is not None:
            return moment_latents(vae, edited), moment_latents(vae, source)
        pictures = torch.cat([image_batch(batch.target_BHW3), image_batch(batch.source_BHW3)])
        edited_BLhw, source_BLhw = encode_latents(vae, pictures).float().chunk(2)
        return edited_BLhw, source_BLhw

    def calibrate(self, logits_N: np.ndarray, labels_N: np.ndarray, kind: CalibrationKind = "temperature") -> dict[str, float]:
        """Fits the map from logit to probability on held-out judgements and stores it in ``config``, which ``save`` writes.

        Args:
            logits_N, labels_N: of items that were not trained on.
            kind: see ``core.calibration``; ``isotonic`` needs some hundred items.

        Returns:
            cross-entropy (nats) and expected calibration error of the same items, before and after.

        Raises:
            UsageError: as ``core.calibration.fit_temperature``.
        """
        fitted: Calibration = fit_isotonic(logits_N, labels_N) if kind == "isotonic" else fit_temperature(logits_N, labels_N)
        self.config = replace(self.config, calibration=fitted, temperature=1.0)
        raw_N, probability_N = sigmoid(logits_N), fitted(logits_N)
        return {
            "cross_entropy": cross_entropy(logits_N, labels_N),
            "calibrated_cross_entropy": _likelihood(probability_N, labels_N),
            "calibration_error": expected_calibration_error(raw_N, labels_N),
            "calibrated_calibration_error": expected_calibration_error(probability_N, labels_N),
        }

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Adapters, head and trained parts by ``discriminator.<name>``, and what tells defects by ``defects.<name>``."""
        return {name: parameter.detach() for name, parameter in self.networks().trained_parameters().items()}

    def load_trained_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what ``trained_state`` gave.

        Raises:
            UsageError: names or shapes differ.
        """
        fill_trained(self.trained_state(), state)

    def save(self, folder: Path) -> None:
        """``config.json`` (with calibration and base) and ``model.safetensors``, which ``core.discriminator.Discriminator`` loads.

        ``folder`` is one of its own, or ``discriminator/`` in the folder of the model that the trunk is of.
        """
        save_discriminator(folder, self.network, self.config, torch.float32)


def _defect_loss(logits: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    clean, known = batch.clean_BHW3, batch.has_clean_B
    if clean is None:
        # the heads have a gradient all the same, of 0: workers average the gradients of the same parameters
        clean, known = batch.target_BHW3, torch.zeros(len(batch), device=batch.target_BHW3.device)
    elif known is None:
        known = torch.ones(len(batch), device=clean.device)
    return defect_loss(logits, batch.target_BHW3, clean, known)


def _likelihood(probability_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; an isotonic map may say 0 or 1, which is taken as 1e-7 beside it."""
    sure_N = np.clip(np.asarray(probability_N, np.float64), 1e-7, 1 - 1e-7)
    labels_N = np.asarray(labels_N, np.float64)
    return float(-np.mean(labels_N * np.log(sure_N) + (1 - labels_N) * np.log(1 - sure_N)))
