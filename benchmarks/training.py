"""How fast each objective trains on one device, how much of the device that is, and what the trainer loop costs over a bare PyTorch loop.

    python -m benchmarks.training --model sdxl --device cuda --precision bfloat16 --batch 4 8 16 32 --record FILE.json
    python -m benchmarks.training --model tiny --device cpu --precision float32 --size 128 --batch 4 --overhead

Needs torch, diffusers, peft and this repository; no Ray, no hub, no weights: ``sdxl`` is SDXL's configuration with random weights, which
cost the same time, and ``small`` the same in miniature, to test this script. Settings are those of the recipes ``rorem``,
``discriminator`` and ``lcm`` (``smoke`` for ``tiny`` and ``small``), without accumulation of gradients. Data are triplets that it writes
itself, twice as wide as the training pictures, or those of ``--data``.

What runs is the very ``TrainerLoop`` with the threads of ``training.local``. Its steps are timed from one request for data to the next,
after a warm-up; the last steps never come, so that no checkpoint is written. TFLOP are counted by ``training.throughput`` without what
gradient checkpointing does again, so that the share of the peak is MFU; the peak is the data sheet's for the precision, though the
autoencoder always works in float32. ``of matmul`` is the same over the best rate of one large matrix product in the same run. ``feed``
is what the threads make when nobody trains: the feed's queue hides waits in short runs, but not a feed that is slower than the training.

``--overhead``: the bare loop computes the same loss of the same batches, which lie in memory, and does backward, clipping and AdamW, and
nothing else; both without a running average of the weights, from the same weights. The two alternate. ``CPU ratio`` compares the CPU time
of the training thread: on a CPU that is the step's whole arithmetic, and other processes on the machine disturb it less.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from torch import nn

from benchmarks.training_plan import Plan, write_triplets
from core import storage
from training.feed import Feed, Share
from training.local import LocalSession
from training.loop import FOLDER, TrainerLoop
from training.objective import Batch, Objective
from training.run_log import LINES
from training.settings import ObjectiveName, TrainSettings
from training.throughput import count_flops, peak_flops

OBJECTIVES: Final[tuple[ObjectiveName, ...]] = ("remover", "discriminator", "lcm")
FEED_IMAGES: Final = 192
"""That the feed makes when its own speed is measured, in runs of enough steps."""
DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Speed of one objective at one batch size; ``seconds`` a step, ``tflop`` an image."""

    objective: str
    batch: int
    seconds: float
    tflop: float
    memory_gib: float | None
    data_wait_share: float
    feed_images_per_second: float

    def cells(self, peak: float | None, matmul: float) -> list[str]:
        """The line of the table; ``peak`` and ``matmul`` in TFLOP/s."""
        rate, speed = self.batch / self.seconds, self.batch * self.tflop / self.seconds
        mfu, memory = ("" if peak is None else f"{speed / peak:.1%}"), ("" if self.memory_gib is None else f"{self.memory_gib:.1f}")
        values = [f"{rate:.2f}", f"{self.seconds * 1e3:.0f}", f"{self.tflop:.3g}", f"{speed:.3g}", mfu, f"{speed / matmul:.0%}", memory]
        return [self.objective, str(self.batch), *values, f"{self.data_wait_share:.1%}", f"{self.feed_images_per_second:.1f}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The steps after the warm-up: wall time and the training thread's CPU time, s a step; and the losses of all steps."""

    seconds: float
    cpu_seconds: float
    data_wait_share: float
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The trainer loop and the bare loop, one after the other."""

    objective: str
    batch: int
    loop: Timing
    bare: Timing

    @property
    def ratio(self) -> float:
        return self.loop.seconds / self.bare.seconds

    @property
    def cpu_ratio(self) -> float:
        return self.loop.cpu_seconds / self.bare.cpu_seconds


class ClockedFeed:
    """A feed that notes when it was asked and when it answered, and ends after ``steps`` steps.

    Attributes:
        asked: s, wall and CPU of the asking thread, at each request; the last one is that after the last step.
        waited: s until each was answered.
    """

    def __init__(self, feed: Feed, steps: int) -> None:
        self.feed, self.steps = feed, steps
        self.asked: list[tuple[float, float]] = []
        self.waited: list[float] = []

    def shares(self, start: int, stop: int, rank: int, world_size: int) -> Iterator[Share]:
        """As ``Feed.shares``."""
        shares = self.feed.shares(start, min(stop, self.steps), rank, world_size)
        while True:
            self.asked.append((time.perf_counter(), time.thread_time()))
            share = next(shares, None)
            self.waited.append(time.perf_counter() - self.asked[-1][0])
            if share is None:
                return
            yield share


def time_loop(plan: Plan, objective: Objective, settings: TrainSettings) -> Timing:
    """The trainer loop over the steps of the plan, in an output of its own."""
    feed = ClockedFeed(plan.feed(settings), plan.warmup + plan.steps)
    with tempfile.TemporaryDirectory(prefix="cleanplate-benchmark-") as scratch:
        output = Path(scratch, "model")
        TrainerLoop(settings, objective, str(output), feed, [], LocalSession(plan.device), Path(scratch)).run()
        lines = [json.loads(line) for line in (output / FOLDER / LINES).read_text().splitlines()]
    wall, cpu = (last - first for first, last in zip(feed.asked[plan.warmup], feed.asked[-1], strict=True))
    waited = sum(feed.waited[plan.warmup : -1])
    losses = tuple(float(line["loss"]) for line in lines)
    return Timing(seconds=wall / plan.steps, cpu_seconds=cpu / plan.steps, data_wait_share=waited / wall, losses=losses)


def time_bare(plan: Plan, objective: Objective, settings: TrainSettings, batches: list[Batch]) -> Timing:
    """Loss, backward, clipping, AdamW: what every training has to do, over batches on the device."""
    chosen = settings.optimiser
    parameters = list(objective.networks().trained_parameters().values())
    common: dict[str, Any] = {"lr": chosen.learning_rate, "eps": chosen.eps, "weight_decay": chosen.weight_decay}
    optimiser = torch.optim.AdamW(parameters, betas=chosen.betas, fused=plan.device.type == "cuda", **common)
    losses: list[torch.Tensor] = []
    started = (0.0, 0.0)
    for number, batch in enumerate(batches):
        if number == plan.warmup:
            plan.wait()
            started = time.perf_counter(), time.thread_time()
        optimiser.zero_grad(set_to_none=True)
        with plan.autocast():
            loss = objective.loss(batch).total
        loss.backward()
        if chosen.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, chosen.clip_norm)
        optimiser.step()
        losses.append(loss.detach())
    plan.wait()
    wall, cpu = time.perf_counter() - started[0], time.thread_time() - started[1]
    optimiser.zero_grad(set_to_none=True)
    found = tuple(float(loss) for loss in losses)
    return Timing(seconds=wall / plan.steps, cpu_seconds=cpu / plan.steps, data_wait_share=0.0, losses=found)


def measure(plan: Plan, name: ObjectiveName, batch: int, repeats: int) -> Row:
    """One line of the table of speeds: the median of ``repeats`` runs.

    Raises:
        torch.OutOfMemoryError: the device's memory does not hold it.
    """
    settings = plan.settings(name, batch)
    objective = plan.objective(settings)
    tflop = count_tflop(plan, objective, next(iter(plan.feed(settings).shares(0, 1, 0, 1))))
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    timings = sorted((time_loop(plan, objective, settings) for _ in range(repeats)), key=lambda timing: timing.seconds)
    timing = timings[repeats // 2]
    memory = torch.cuda.max_memory_allocated(plan.device) / 2**30 if plan.device.type == "cuda" else None
    return Row(
        objective=name,
        batch=batch,
        seconds=timing.seconds,
        tflop=tflop,
        memory_gib=memory,
        data_wait_share=timing.data_wait_share,
        feed_images_per_second=feed_rate(plan, settings),
    )


def count_tflop(plan: Plan, objective: Objective, share: Share) -> float:
    """TFLOP of one image's loss and its gradients, without what gradient checkpointing would do again."""
    batch = share.batch().part(slice(0, 1)).to(plan.device)
    networks = objective.networks().trained.values()
    checkpointed = [module for network in networks for module in network.modules() if getattr(module, "gradient_checkpointing", False)]

    def once() -> None:
        with plan.autocast():
            loss = objective.loss(batch).total
        loss.backward()

    try:
        for module in checkpointed:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        return count_flops(once) / 1e12
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        for parameter in objective.networks().trained_parameters().values():
            parameter.grad = None


def feed_rate(plan: Plan, settings: TrainSettings) -> float:
    """Images a second that the feed's threads make while nothing else runs, its start included."""
    size = settings.data.batch_size
    wanted = min(FEED_IMAGES // size, 2 * settings.loop.steps)
    started = time.perf_counter()
    steps = sum(1 for _ in plan.feed(settings).shares(0, max(8, wanted), 0, 1))
    return steps * size / (time.perf_counter() - started)


def overhead(plan: Plan, name: ObjectiveName, batch: int, pairs: int) -> Iterator[Pair]:
    """The trainer loop against the bare one, ``pairs`` times, each time from the same weights; who is first alternates."""
    constant = {"loop.ema_decay": None, "optimiser.name": "adamw", "optimiser.schedule": "constant", "optimiser.warmup_steps": 0}
    settings = plan.settings(name, batch, constant)
    objective = plan.objective(settings)
    first = {key: tensor.to("cpu", copy=True) for key, tensor in objective.trained_state().items()}
    batches = [share.batch().to(plan.device) for share in plan.feed(settings).shares(0, plan.warmup + plan.steps, 0, 1)]
    for number in range(pairs):
        timings: dict[str, Timing] = {}
        for side in ("loop", "bare") if number % 2 == 0 else ("bare", "loop"):
            objective.load_trained_state(first)
            bare = side == "bare"
            timings[side] = time_bare(plan, objective, settings, batches) if bare else time_loop(plan, objective, settings)
        yield Pair(objective=name, batch=batch, loop=timings["loop"], bare=timings["bare"])


def matmul_rate(device: torch.device, precision: str) -> float:
    """TFLOP/s of one large square matrix product, the best within half a second."""
    side, dtype = (8192 if device.type == "cuda" else 512), DTYPES[precision]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(a, b)[:1].cpu()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12


def speed_table(rows: list[Row], peak: float | None, matmul: float) -> str:
    """Speeds as Markdown."""
    speeds = ["images/s", "ms a step", "TFLOP an image", "TFLOP/s", "MFU", "of matmul", "GiB"]
    return _markdown(["objective", "batch", *speeds, "data wait", "feed, images/s"], [row.cells(peak, matmul) for row in rows])


def overhead_table(pairs: list[Pair]) -> str:
    """Overheads as Markdown: medians, and the range of the ratios."""
    titles = ["objective", "batch", "pairs", "loop, ms a step", "bare, ms a step", "ratio", "range", "CPU ratio", "range"]
    lines: list[list[str]] = []
    for name, batch in dict.fromkeys((pair.objective, pair.batch) for pair in pairs):
        chosen = [pair for pair in pairs if (pair.objective, pair.batch) == (name, batch)]
        times = [statistics.median(side.seconds for side in sides) * 1e3 for sides in zip(*((p.loop, p.bare) for p in chosen), strict=True)]
        ratios = [cell for kind in ("ratio", "cpu_ratio") for cell in _middle([getattr(pair, kind) for pair in chosen])]
        lines.append([name, str(batch), str(len(chosen)), *(f"{value:.1f}" for value in times), *ratios])
    return _markdown(titles, lines)


def _middle(values: list[float]) -> list[str]:
    return [f"{statistics.median(values):.3f}", f"{min(values):.3f} to {max(values):.3f}"]


def _markdown(titles: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, ["---"] * len(titles), *rows])


def main(arguments: list[str] | None = None) -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--model", default="sdxl" if cuda else "tiny", help="sdxl, small, tiny, or a folder")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=10, help="steps before them")
    parser.add_argument("--precision", choices=list(DTYPES), default="bfloat16" if cuda else "float32")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--data", default="synthetic", help="a dataset of triplets")
    parser.add_argument("--photos", type=int, help="side of synthetic photos in pixels; twice --size where it is not given")
    parser.add_argument("--threads", type=int, default=os.cpu_count() if cuda else 4, help="that read, decode and augment")
    parser.add_argument("--repeats", type=int, default=1, help="runs of which the table of speeds shows the median")
    parser.add_argument("--overhead", action="store_true", help="compare with a bare PyTorch loop, at every batch, in place of the speeds")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--record", type=Path, help="write everything to this JSON file, too")
    options = parser.parse_args(arguments)
    if options.model == "sdxl" and options.device == "cpu":
        parser.error("full-size networks need a GPU; on a CPU use --model tiny, or small")
    if min(*options.batch, options.steps, options.warmup, options.threads, options.pairs, options.repeats) < 1:
        parser.error("--batch, --steps, --warmup, --threads, --pairs and --repeats are 1 or more")
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory(prefix="cleanplate-benchmark-") as scratch:
        data = options.data
        if data == "synthetic":
            data = write_triplets(str(Path(scratch, "data")), max(32, 2 * max(options.batch)), options.photos or 2 * options.size)
        plan = Plan(
            model=options.model,
            device=device,
            size=options.size,
            precision=options.precision,
            checkpointing=options.checkpointing,
            data=storage.normalize_uri(data),
            threads=options.threads,
            steps=options.steps,
            warmup=options.warmup,
        )
        facts = _facts(plan, options)
        text, measured = _overheads(plan, options) if options.overhead else _speeds(plan, options, facts)
    facts["load_after"] = round(os.getloadavg()[0], 2)
    head = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if value is not None)
    print(f"{head}\n\n{text}")
    if options.record:
        options.record.write_text(json.dumps({**facts, **measured}, indent=1) + "\n")


def _facts(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    device = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else f"CPU ({platform.machine()})"
    same = ("model", "size", "precision", "checkpointing", "steps", "warmup", "threads")
    return {
        "device": device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        **{name: getattr(plan, name) for name in same},
        "repeats": None if options.overhead else options.repeats,
        "data": "synthetic" if options.data == "synthetic" else "given",
        "torch_threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _speeds(plan: Plan, options: argparse.Namespace, facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    peak = peak_flops(plan.device, DTYPES[plan.precision])
    peak = None if peak is None else peak / 1e12
    matmul = 0.0
    rows: list[Row] = []
    for name in options.objectives:
        for batch in options.batch:
            # again before every row: on a shared machine one of them has the core to itself
            matmul = max(matmul, matmul_rate(plan.device, plan.precision))
            try:
                rows.append(measure(plan, name, batch, options.repeats))
            except torch.OutOfMemoryError:
                print(f"{name}, batch {batch}: the device's memory does not hold it", file=sys.stderr)
                continue
            finally:
                gc.collect()
                if plan.device.type == "cuda":
                    torch.cuda.empty_cache()
            print(" | ".join(rows[-1].cells(peak, matmul)), file=sys.stderr)
    facts |= {"peak_tflops": peak, "matmul_tflops": round(matmul, 4)}
    return speed_table(rows, peak, matmul), {"rows": [asdict(row) for row in rows]}


def _overheads(plan: Plan, options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    pairs: list[Pair] = []
    for name in options.objectives:
        for batch in options.batch:
            for pair in overhead(plan, name, batch, options.pairs):
                pairs.append(pair)
                print(f"{name}, batch {batch}: ratio {pair.ratio:.3f}, CPU {pair.cpu_ratio:.3f}", file=sys.stderr)
            gc.collect()
    return overhead_table(pairs), {"pairs": [asdict(pair) for pair in pairs]}


if __name__ == "__main__":
    main()
