"""How erasers and the discriminator do on pairs with a known clean plate: the embedded models beside the classical baseline.

    python -m benchmarks.tiny --pairs FOLDER [--models opencv tiny] [--steps 4 20] [--sheet FILE.png] [--record FILE.md]

``FOLDER`` is any input with clean plates, as one folder an item with source.*, mask.*, gt.* and effect_mask.*; erasers get the object mask
alone. First table: figures of each eraser, mean over items with 95 % interval (``core.metrics``; LPIPS where its weights are at hand).
Second: what the discriminator says of the truth, of failures made from it, and of the erasers' results, which ``core.metrics.verdict``
calls good, failed or neither. The sheet shows source, mask, every result and the truth; look at it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch

from core.calibration import expected_calibration_error
from core.checkpoints import locate
from core.discriminator import Discriminator
from core.eraser import Eraser, EraserSettings, is_network, load_eraser
from core.errors import UsageError
from core.fetch import Fetcher
from core.images import Pixels, decode_photo, encode_image
from core.masks import decode_mask, soft_mask
from core.metrics.comparison import Case, Figures
from core.metrics.perceptual import Lpips
from core.metrics.ranking import at_threshold, auroc
from core.metrics.statistics import bootstrap_mean
from core.metrics.verdict import measured_success
from core.readers import open_input
from core.record import item_seed
from core.scoring import score_results

SOURCE: Final = "untouched source"
TRUTH: Final = "truth"
COLUMNS: Final = {
    "psnr": ("PSNR, dB", 2),
    "psnr_mask": ("in the mask", 2),
    "psnr_effect": ("in the effect region", 2),
    "ssim": ("SSIM", 4),
    "lpips": ("LPIPS", 4),
    "shadow_residual": ("shadow residual", 3),
    "seam": ("seam, levels", 2),
}
THRESHOLD: Final = 0.9
MADE: Final = "made: "


@dataclass(slots=True)
class Findings:
    """What was measured, by the name of the eraser or kind of picture; values stand in the order of the items."""

    figures: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    scores: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """1 = good, 0 = failed, NaN = neither."""


def made_failures(case: Case) -> dict[str, Pixels]:
    """Failures that everyone would call one, made of the truth: a kept shadow, a blurred fill, a fill of another brightness."""
    soft_object = soft_mask(case.mask, 6)[..., None]
    soft_region = soft_mask(case.region, 6)[..., None]
    blurred = cv2.GaussianBlur(case.truth, (0, 0), 8.0)
    brighter = case.truth.astype(np.float32) + np.where(case.mask[..., None] > 0, 14.0, 0.0)
    failures = {
        f"{MADE}shadow left": soft_object * case.truth + (1 - soft_object) * case.source,
        f"{MADE}blurred fill": soft_region * blurred + (1 - soft_region) * case.truth,
        f"{MADE}brighter fill": brighter,
    }
    return {name: np.rint(picture).clip(0, 255).astype(np.uint8) for name, picture in failures.items()}


def label(figures: Figures, source: Figures) -> float:
    """1 = good, 0 = failed, NaN = neither, of an erasure whose clean plate is known (``core.metrics.verdict``)."""
    success = measured_success(figures.lpips, source.lpips, figures.shadow_residual)
    return float("nan") if success is None else float(success)


def figures_table(found: Findings) -> list[str]:
    count = len(found.figures[SOURCE])
    names = [name for name in COLUMNS if any(getattr(each, name) is not None for each in found.figures[SOURCE])]
    lines = [f"| {count} pairs | {' | '.join(COLUMNS[name][0] for name in names)} | s an image |", "| --- |" + " --- |" * (len(names) + 1)]
    for kind, figures in found.figures.items():
        cells = []
        for name in names:
            values = [value for each in figures if (value := getattr(each, name)) is not None]
            digits = COLUMNS[name][1]
            mean = bootstrap_mean(np.array(values))
            cells.append(f"{mean.mean:.{digits}f} ({mean.low:.{digits}f} to {mean.high:.{digits}f})")
        times = found.seconds.get(kind)
        lines.append(f"| {kind} | {' | '.join(cells)} | {f'{np.median(times):.2f}' if times else ''} |")
    return lines


def scores_table(found: Findings) -> list[str]:
    lines = ["| the discriminator on | items | mean score | above 0.9 | good / failed | AUROC against the truth |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    truth = np.array(found.scores[TRUTH])
    for kind, given in found.scores.items():
        scores, labels = np.array(given), np.array(found.labels[kind])
        good, failed = labels == 1, labels == 0
        area = ""
        if failed.any():
            both = np.concatenate([truth, scores[failed]])
            area = f"{auroc(both, np.concatenate([np.ones(len(truth)), np.zeros(int(failed.sum()))])):.3f}"
        share = float(np.mean(scores > THRESHOLD))
        lines.append(f"| {kind} | {len(scores)} | {scores.mean():.3f} | {share:.0%} | {good.sum()} / {failed.sum()} | {area} |")
    erased = [kind for kind in found.scores if kind not in {SOURCE, TRUTH} and not kind.startswith(MADE)]
    lines += ["", _judged(found, list(found.scores), "Of all")]
    return [*lines, _judged(found, erased, "Of erasers' results alone,")] if erased else lines


def _judged(found: Findings, kinds: Sequence[str], what: str) -> str:
    """How well scores tell good from failed among these kinds, in a sentence."""
    scores, labels = (np.concatenate([np.array(part[kind]) for kind in kinds]) for part in (found.scores, found.labels))
    judged = ~np.isnan(labels)
    scores, labels = scores[judged], labels[judged]
    good = int(labels.sum())
    if good in (0, len(labels)):
        return f"{what} {len(labels)} judged are {'good' if good else 'failed'}: nothing can be told apart."
    above = at_threshold(scores, labels, THRESHOLD)
    precision = "none is above" if above.precision is None else f"{above.precision:.3f} of {above.accepted}"
    return (
        f"{what} {len(labels)} judged ({good} good): AUROC {auroc(scores, labels):.3f}; precision above {THRESHOLD}: {precision}; "
        f"recall {above.recall:.3f}; expected calibration error {expected_calibration_error(scores, labels):.3f}."
    )


def sheet_row(pictures: dict[str, Pixels], side: int) -> Pixels:
    """One row of the contact sheet, each picture (side, side, 3), its name on it."""
    row = []
    for name, pixels in pictures.items():
        tile = np.ascontiguousarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA))
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(tile, name, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, width, cv2.LINE_AA)
        row.append(tile)
    return np.hstack(row).astype(np.uint8, copy=False)


def load_erasers(models: Sequence[str], steps: Sequence[int], lora: str | None) -> dict[str, Eraser]:
    """Every network at every number of steps, without and with the adapter; other erasers once, as they take neither."""
    adapters: dict[str, str | None] = {"": None, **({" with LCM": lora} if lora else {})}
    found: dict[str, Eraser] = {}
    for model in models:
        if is_network(model):
            for name, adapter in adapters.items():
                for count in steps:
                    settings = EraserSettings(device="cpu", steps=count, lcm_lora=adapter)
                    found[f"{model}{name}, {count} steps"] = load_eraser(model, settings)
        else:
            found[model] = load_eraser(model, EraserSettings(device="cpu"))
    return found


def load_lpips() -> Lpips | None:
    """LPIPS, or None with a word where its weights are not at hand."""
    try:
        return Lpips(device="cpu")
    except UsageError as error:
        print(f"LPIPS is left out, and with it the labels of erasers' results: {error}\n")
        return None


def measure(options: argparse.Namespace) -> tuple[Findings, list[Pixels]]:
    """All findings, and the rows of the contact sheet."""
    erasers, lpips = load_erasers(options.models, options.steps, options.lcm_lora), load_lpips()
    discriminator = None if options.discriminator == "none" else Discriminator(locate(options.discriminator), device="cpu")
    given = open_input(options.pairs)
    fetcher, found, sheet = Fetcher(given.base), Findings(), []
    rows = list(islice(given.rows(), options.limit))
    shown = set(np.linspace(0, len(rows) - 1, min(options.sheet_items, len(rows))).round().astype(int).tolist())
    for index, row in enumerate(rows):
        item = fetcher.fetch({name: getattr(row, name) for name in row.__slots__})
        photo, truth = decode_photo(item.source), decode_photo((item.target or {})["bytes"]).pixels
        size = (photo.width, photo.height)
        effects = decode_mask(item.effect_mask["bytes"], size).pixels if item.effect_mask else None
        case = Case(source=photo.pixels, truth=truth, mask=decode_mask(item.mask, size).pixels, effect_mask=effects)
        results = {SOURCE: photo.pixels}
        for name, eraser in erasers.items():
            if not index:
                eraser.erase(photo.pixels, case.mask, 0)  # the first call of a network allocates and compiles
            started = time.perf_counter()
            results[name] = eraser.erase(photo.pixels, case.mask, item_seed(row.id, 0))
            found.seconds[name].append(time.perf_counter() - started)
        for name, result in results.items():
            found.figures[name].append(case.compare(result, lpips))
            mine = found.figures[name][-1]
            found.labels[name].append(0.0 if name == SOURCE else label(mine, found.figures[SOURCE][-1]))
        if index in shown:
            masked = np.where(case.mask[..., None] > 0, np.uint8(255), (photo.pixels * 0.5).astype(np.uint8))
            erased = {name: result for name, result in results.items() if name != SOURCE}
            sheet.append(sheet_row({f"{row.id} source": photo.pixels, "mask": masked, **erased, TRUTH: truth}, options.side))
        if discriminator is None:
            continue
        failures = made_failures(case)
        results |= {TRUTH: truth, **failures}
        for name, score in zip(results, score_results(discriminator, photo.pixels, case.mask, list(results.values())), strict=True):
            found.scores[name].append(score)
        found.labels[TRUTH].append(1.0)
        for name in failures:
            found.labels[name].append(0.0)
    return found, sheet


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", required=True, help="folder, manifest or dataset with targets")
    parser.add_argument("--models", nargs="+", default=["opencv", "tiny"])
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 20], help="network calls per image, of models that are networks")
    parser.add_argument("--lcm-lora", help="adapter with which networks are measured, too")
    parser.add_argument("--discriminator", default="tiny", help="none leaves its table out")
    parser.add_argument("--limit", type=int, help="only the first so many pairs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="PNG to write the contact sheet to")
    parser.add_argument("--sheet-items", type=int, default=24)
    parser.add_argument("--side", type=int, default=224, help="side of the sheet's pictures in pixels")
    parser.add_argument("--record", type=Path, help="file to write what is printed to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    found, sheet = measure(options)
    text = "\n".join([*figures_table(found), "", *(scores_table(found) if found.scores else [])]).rstrip()
    print(text)
    if options.record:
        options.record.write_text(text + "\n")
    if options.sheet:
        options.sheet.write_bytes(encode_image(np.vstack(sheet).astype(np.uint8, copy=False)))


if __name__ == "__main__":
    main()
