"""Validation of an objective on batches that were held out: losses, a discriminator's judgement, and pictures of a remover at work.

Nothing here changes what is trained: networks are put into evaluation mode and back, and whatever the sampler puts into them is taken out
again. Figures depend on weights and batches alone, since a batch brings the seeds of its random numbers.

Legend for shape suffixes: B batch, N items, H W picture sides in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from core.calibration import cross_entropy, expected_calibration_error, fit_isotonic, fit_temperature, sigmoid
from core.crops import Crop, paste
from core.diffusion import crop_rule
from core.eraser import EraserSettings
from core.errors import UsageError
from core.images import Pixels
from core.masks import dilate, soft_mask
from core.model_card import ModelCard, resolve_card
from core.remover import Remover
from training.contact_sheet import contact_sheet, marked
from training.discriminator import CalibrationKind, DiscriminatorObjective
from training.lcm import LcmObjective
from training.objective import Batch, Objective
from training.remover import RemoverObjective
from training.remover_parts import RemoverParts, object_token

log = logging.getLogger(__name__)

HIGHEST_PSNR: Final = 100.0
"""Decibels; said of equal pictures, too."""


@dataclass(frozen=True, slots=True, eq=False)
class ValidationSheet:
    """What a remover makes of some items.

    Attributes:
        pixels: (H', W', 3) uint8 RGB, a row an item: source, its mask, result, target.
        metrics: ``psnr_mask`` and, where effect masks are known, ``psnr_effect``: decibels of the result against the target, over the
            pixels of the mask and of the effect mask, means over the items that have such pixels.
    """

    pixels: Pixels
    metrics: dict[str, float]


def validate(objective: Objective, batches: Iterable[Batch]) -> dict[str, float]:
    """Means over all items of ``loss`` and its parts; of a discriminator its judgement as well.

    A discriminator's parts are ``cross_entropy`` (nats) and ``accuracy``; beside them there are ``calibration_error`` of its sigmoids,
    ``auroc`` (where items of both kinds are there), ``accepted_share`` and ``precision`` (where any is accepted) at the configuration's
    threshold, and ``calibrated_calibration_error``. The last three are of calibrated probabilities: the map from logits is fitted on every
    other item and used for the rest, and the other way round, so that no item is judged by a map that knows it.

    Raises:
        UsageError: there are no batches, or they lack what the objective needs.
    """
    if isinstance(objective, DiscriminatorObjective):
        logits_N, labels_N = held_out_logits(objective, batches)
        return judgement(objective, logits_N, labels_N)
    sums: dict[str, float] = {}
    count = 0
    with evaluating(objective), torch.no_grad():
        for batch in batches:
            found = objective.loss(batch)
            for name, value in {"loss": found.total, **found.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * found.count
            count += found.count
    if not count:
        raise _nothing()
    return {name: total / count for name, total in sums.items()}


def calibrate(
    objective: DiscriminatorObjective, batches: Iterable[Batch], kind: CalibrationKind = "temperature"
) -> dict[str, float]:
    """Fits the discriminator's map from logit to probability on held-out items; ``save`` then writes it.

    Where all items are judged alike there is nothing to fit: a warning says so, and the discriminator stays as it is.

    Returns:
        As ``validate``, and ``calibrated_cross_entropy`` (nats) of the very items that the map was fitted on.

    Raises:
        UsageError: there are no batches, or they have no labels.
    """
    logits_N, labels_N = held_out_logits(objective, batches)
    fitted: dict[str, float] = {}
    if labels_N.min() == labels_N.max():
        log.warning("all %d held-out items are judged alike: the discriminator is not calibrated; hold out more", len(labels_N))
    else:
        fitted = objective.calibrate(logits_N, labels_N, kind)
    return {**fitted, **judgement(objective, logits_N, labels_N, kind)}


def held_out_logits(objective: DiscriminatorObjective, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N,) and labels (N,), float64, of all items in order.

    Raises:
        UsageError: there are no batches, or one has no labels.
    """
    logits: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    with evaluating(objective), torch.no_grad():
        for batch in batches:
            if batch.label_B is None:
                raise UsageError("a discriminator is validated on judged items, and a batch has no label_B: hold out items with a verdict")
            logits.append(objective.logits(batch).double().cpu().numpy())
            labels.append(batch.label_B.double().cpu().numpy())
    if not logits:
        raise _nothing()
    return np.concatenate(logits), np.concatenate(labels)


def judgement(
    objective: DiscriminatorObjective, logits_N: np.ndarray, labels_N: np.ndarray, kind: CalibrationKind = "temperature"
) -> dict[str, float]:
    """How good logits are, by the names that ``validate`` lists. An item counts as good where its label is above one half."""
    good_N = labels_N > 0.5
    likelihood = cross_entropy(logits_N, labels_N)
    found = {"loss": likelihood, "cross_entropy": likelihood, "accuracy": float(np.mean((logits_N > 0) == good_N))}
    found["calibration_error"] = expected_calibration_error(sigmoid(logits_N), labels_N)
    if good_N.any() and not good_N.all():
        found["auroc"] = auroc(logits_N, good_N)
    probability_N = _cross_fitted(logits_N, labels_N, kind)
    if probability_N is None:
        probability_N = objective.config.probability(logits_N)
    accepted_N = probability_N > objective.config.threshold
    found["accepted_share"] = float(accepted_N.mean())
    if accepted_N.any():
        found["precision"] = float(good_N[accepted_N].mean())
    found["calibrated_calibration_error"] = expected_calibration_error(probability_N, labels_N)
    return found


def auroc(scores_N: np.ndarray, good_N: np.ndarray) -> float:
    """Probability that a good item's score is above a bad one's, ties counting half (Mann and Whitney 1947).

    Args:
        scores_N: (N,) numbers.
        good_N: (N,) bool, some of both.

    Raises:
        UsageError: all items are of one kind.
    """
    good = int(good_N.sum())
    bad = len(good_N) - good
    if not good or not bad:
        raise UsageError(f"{good} good and {bad} bad items; the area under the curve needs some of both")
    _, place_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    return float((rank_N[good_N].sum() - good * (good + 1) / 2) / (good * bad))


def _cross_fitted(logits_N: np.ndarray, labels_N: np.ndarray, kind: CalibrationKind) -> np.ndarray | None:
    """Probabilities (N,), of each half by the map of the other; None where a half is judged alike, and has no map."""
    even_N = np.arange(len(logits_N)) % 2 == 0
    probability_N = np.zeros(len(logits_N))
    for half_N in (even_N, ~even_N):
        known = labels_N[~half_N]
        if len(known) < 2 or known.min() == known.max():
            return None
        fit = fit_isotonic if kind == "isotonic" else fit_temperature
        probability_N[half_N] = fit(logits_N[~half_N], known)(logits_N[half_N])
    return probability_N


def pictures(objective: Objective, batch: Batch, seeds: Sequence[int] | None = None) -> ValidationSheet | None:
    """The items erased by the networks as they are now, by the sampler of jobs and serving; None for an objective that erases nothing.

    A remover takes its card's steps, a distilled one four of LCM's, with its adapter. Where the card asks for guidance and there is no null
    prompt at hand, there is none. Results are pasted as the card says. Arithmetic is in the networks' own number format.

    Args:
        batch: square pictures of sides that the autoencoder's factor divides.
        seeds: one an item; None: the batch's own.

    Raises:
        UsageError: the pictures are no squares, or there are no seeds.
    """
    if not isinstance(objective, RemoverObjective | LcmObjective):
        return None
    height, width = batch.mask_BHW.shape[1:]
    if height != width:
        raise UsageError(f"pictures are {height} x {width}; a sheet is made of squares: hold out square ones")
    card, parts = card_in_force(objective), objective.parts
    source_BHW3, mask_BHW = (values.cpu().numpy() for values in (batch.source_BHW3, batch.mask_BHW))
    grown_BHW = np.stack([dilate(np.where(mask > 127, 255, 0).astype(np.uint8), card.mask_dilate_px) for mask in mask_BHW])
    device = batch.source_BHW3.device
    with evaluating(objective), _own_processors(parts.unet), torch.autocast(device.type, enabled=False):
        remover = _remover(parts, card)
        grown, given = torch.from_numpy(grown_BHW).to(device), seeds or batch.item_seeds(None)
        # one by one on a CPU, as there at inference: some processors' kernels depend on the size of the batch
        size = 1 if device.type == "cpu" else len(batch)
        parted = [slice(start, start + size) for start in range(0, len(batch), size)]
        fills = [fill for part in parted for fill in remover.erase(batch.source_BHW3[part], grown[part], given[part]).fills()]
    feather = crop_rule(card).feather_px
    results = []
    for source, mask, fill in zip(source_BHW3, grown_BHW, fills, strict=True):
        # data for a card that takes its texture from the photo have their holes filled already (training.exemplar_triplets)
        plate = None if card.texture == "network" else source
        crop = Crop(source, mask, soft_mask(mask, feather), 0, 0, height, card.match_tone, plate, card.texture)
        results.append(paste(source, crop, fill))
    targets = list(batch.target_BHW3.cpu().numpy())
    rows = [
        [source, marked(source, mask), result, target]
        for source, mask, result, target in zip(source_BHW3, mask_BHW, results, targets, strict=True)
    ]
    metrics = {"psnr_mask": _mean_psnr(results, targets, list(mask_BHW > 127))}
    if batch.effect_mask_BHW is not None:
        effect_BHW = batch.effect_mask_BHW.cpu().numpy() > 127
        known_B = np.ones(len(batch), bool) if batch.has_effect_B is None else batch.has_effect_B.cpu().numpy()
        metrics["psnr_effect"] = _mean_psnr(results, targets, list(effect_BHW & known_B[:, None, None]))
    return ValidationSheet(contact_sheet(rows), {name: value for name, value in metrics.items() if value is not None})


def card_in_force(objective: RemoverObjective | LcmObjective) -> ModelCard:
    """How the model is used once it is saved: a remover's settings are on its card, and a distilled one samples as LCM does."""
    parts = objective.parts
    card = parts.card if parts.null_prompt is not None else replace(parts.card, guidance_scale=1.0)
    if isinstance(objective, LcmObjective):
        return resolve_card(card, parts.model or "the model", EraserSettings(lcm_lora="its own"))
    return objective.settings.on_card(card)


def _remover(parts: RemoverParts, card: ModelCard) -> Remover:
    import diffusers

    # a scheduler of its own: sampling sets its steps, and the objective's may be in use
    kind = type(parts.scheduler) if card.scheduler is None else getattr(diffusers, card.scheduler)
    spacing = {"timestep_spacing": card.timestep_spacing} if card.timestep_spacing else {}
    device, dtype = parts.vae.device, parts.unet.dtype
    return Remover(
        parts.unet,
        parts.vae,
        kind.from_config(parts.scheduler.config, **spacing),
        parts.prompt.to(device, dtype),
        card,
        null_prompt=None if parts.null_prompt is None else parts.null_prompt.to(device, dtype),
        object_token=object_token(parts, card.object_token),
    )


def _mean_psnr(results: Sequence[Pixels], targets: Sequence[Pixels], where: Sequence[np.ndarray]) -> float | None:
    """Decibels over the pixels of (H, W) bool masks, a mean over the items with any; None where there are none."""
    found = []
    for result, target, inside in zip(results, targets, where, strict=True):
        if inside.any():
            error = float(np.mean((result[inside].astype(np.float64) - target[inside]) ** 2)) / 255**2
            found.append(min(HIGHEST_PSNR, -10 * np.log10(error)) if error else HIGHEST_PSNR)
    return float(np.mean(found)) if found else None


@contextmanager
def evaluating(objective: Objective) -> Iterator[None]:
    """The objective's networks in evaluation mode; at the end every module is again as it was."""
    networks = objective.networks()
    modules = [module for network in (networks.trained | networks.frozen).values() for module in network.modules()]
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


@contextmanager
def _own_processors(unet: Any) -> Iterator[None]:
    """Attention processors that are put into the UNet inside the block are replaced by its own at the end."""
    before = [(module, module.processor) for module in unet.modules() if hasattr(module, "set_processor")]
    try:
        yield
    finally:
        for module, processor in before:
            module.set_processor(processor)


def _nothing() -> UsageError:
    return UsageError("there is nothing to validate on: hold out at least one item")
