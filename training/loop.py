"""The trainer loop: one for all objectives, with or without Ray.

What a step does follows from its number: which items, their augmentation and noise, the learning rate. So a loop that goes on from a
checkpoint does exactly what it would have done, and a checkpoint holds weights, optimiser, running average and the step, nothing else.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from core import storage
from core.device import has_bfloat16
from core.errors import CleanplateError
from core.record import item_seed
from training.averaging import WeightAverage
from training.build import build_objective
from training.checkpoints import BackgroundSaver, Checkpoint, CheckpointStore, load_state, state_bytes
from training.discriminator import DiscriminatorObjective
from training.feed import Feed, Share
from training.objective import Batch, Objective
from training.optimisers import clip_gradients, make_optimiser, set_learning_rate
from training.parallelism import Parallel, Session, added_up, spread, wait_for_all
from training.run_log import RunLog
from training.settings import TrainSettings
from training.throughput import Meter, count_flops, peak_flops
from training.validation import calibrate, pictures, validate

log = logging.getLogger(__name__)

FOLDER: Final = "training"
"""In the output, beside the model: checkpoints, metrics.jsonl, TensorBoard events, pictures, settings.json."""
MOST_SKIPPED: Final = 10
"""Steps in a row whose gradient is not finite, after which a training stops."""
METER_WINDOW: Final = 100
"""Steps over which speeds are averaged."""
STATE_FILE: Final = "state.pt"


class TrainerLoop:
    """One worker of a training.

    Args:
        settings: what is trained and how.
        objective: made of them (``training.build``).
        output: URI of the model that comes of it.
        feed: where this worker's shares come from.
        held_out: shares for validation; may be empty.
        session: which worker this is.
        scratch: a folder of this machine for what is on its way to an output in a bucket.
    """

    def __init__(
        self,
        settings: TrainSettings,
        objective: Objective,
        output: str,
        feed: Feed,
        held_out: Sequence[Share],
        session: Session,
        scratch: Path,
    ) -> None:
        self.settings, self.objective, self.output, self.feed, self.session = settings, objective, output, feed, session
        self.held_out: list[Batch] = [share.batch() for share in held_out]
        loop = settings.loop
        folder = storage.join(output, FOLDER)
        # workers that only wait while another validates have nothing held out themselves
        self._validates = added_up([float(len(self.held_out))], session)[0] > 0
        best = "validation_loss" if self._validates and loop.keep_best else None
        self.store = CheckpointStore(
            storage.join(folder, "checkpoints"), keep_last=loop.keep_last, keep_best=loop.keep_best, best=best, best_mode="min"
        )
        remote = storage.is_s3(output)
        # TensorBoard and the lines are written by one worker
        self.log = RunLog(scratch / FOLDER if remote else Path(folder), folder if remote else None, True) if self.leads else None
        self.metrics: dict[str, float] = {}
        self._skipped = 0

    @property
    def leads(self) -> bool:
        """Whether this worker writes what is written once."""
        return self.session.rank == 0

    def run(self) -> tuple[Objective, dict[str, Any]]:
        """Trains to the last step, from the newest checkpoint if there is one.

        Returns:
            The objective with the trained weights (their running average where there is one), whole on the worker that leads, and a
            summary: steps, validation losses, images per second, TFLOP/s, MFU, share of the time that was spent on waiting for data.

        Raises:
            CleanplateError: gradients are no longer finite, or a checkpoint cannot be written.
        """
        settings, session, objective = self.settings, self.session, self.objective
        loop = settings.loop
        started = time.monotonic()
        checkpoint = self._agreed(self.store.latest())
        start = checkpoint.step if checkpoint is not None else 0
        if self.log is not None:
            self.log.resume(start)
        shares = self.feed.shares(start, loop.steps, session.rank, session.world_size)
        first = next(shares, None)
        flops = self._flops(objective, first)
        if loop.compile:
            for network in objective.networks().trained.values():
                network.compile()
        parallel = spread(objective, session, loop.strategy, loop.precision)
        parameters = objective.networks().trained_parameters()
        optimiser = make_optimiser(parameters, settings.optimiser, session.device)
        average = WeightAverage(parameters, loop.ema_decay) if loop.ema_decay is not None else None
        if checkpoint is not None:
            self._restore(checkpoint, parallel, dict(parameters), optimiser, average)
        if loop.precision == "bfloat16" and not has_bfloat16(session.device):
            log.warning("this processor has no bfloat16 and imitates it, which takes several times as long: set loop.precision float32")
        peak = peak_flops(session.device, torch.bfloat16 if loop.precision == "bfloat16" else torch.float32)
        meter = Meter(None if peak is None else peak * session.world_size, METER_WINDOW)
        with BackgroundSaver(self.store) as saver:
            for share in self._timed(first, shares, meter):
                values = self._step(share, parallel, parameters, optimiser, average)
                whole, pixels = settings.data.batch_size, share.mask.shape[1] * share.mask.shape[2]
                meter.step(whole, None if flops is None else whole * pixels * flops)
                values |= meter.snapshot()
                done = share.step + 1
                final = done == loop.steps
                if self._validates and (final or (loop.validate_every and done % loop.validate_every == 0)):
                    with meter.paused(), average.applied() if average is not None else nullcontext():
                        values |= self._validate(objective, done)
                if self.log is not None:
                    self.log.write(share.step, values)
                    if done % loop.log_every == 0 or final:
                        self._tell(done, values, share.epoch)
                if final or done % loop.checkpoint_every == 0:
                    with meter.paused():
                        self._save(saver, done, parallel, parameters, optimiser, average)
                        session.report({"step": done, **values})
        wait_for_all(session)
        finished = self._finished(objective, parallel, parameters, average)
        summary = {"steps": loop.steps, "seconds": round(time.monotonic() - started, 2), **self.metrics, **meter.snapshot()}
        if self.held_out and isinstance(finished, DiscriminatorObjective) and self.leads:
            summary |= {f"calibration_{name}": value for name, value in self._calibrated(finished).items()}
        if self.log is not None:
            self.log.flush()
            self.log.close()
        return finished, summary

    def _calibrated(self, discriminator: DiscriminatorObjective) -> dict[str, float]:
        with self._autocast():
            return calibrate(discriminator, self._device_batches(discriminator), self.settings.discriminator.calibration)

    def _timed(self, first: Share | None, rest: Iterator[Share], meter: Meter) -> Iterator[Share]:
        """The shares, with the time that was waited for each."""
        if first is not None:
            yield first
        while True:
            with meter.waiting():
                share = next(rest, None)
            if share is None:
                return
            yield share

    def _flops(self, objective: Objective, share: Share | None) -> float | None:
        """Operations, forward and backward, a pixel of the training picture; counted on one item before gradients are exchanged.

        What gradient checkpointing computes again is no progress, and is not in it (nor in the MFU).
        """
        if share is None:
            return None
        batch = share.batch().part(slice(0, 1)).to(self.session.device)

        def once() -> None:
            with self._autocast():
                loss = objective.loss(batch).total
            loss.backward()

        with _without_checkpointing(objective):
            flops = count_flops(once)
        for parameter in objective.networks().trained_parameters().values():
            parameter.grad = None
        return flops / (share.mask.shape[1] * share.mask.shape[2])

    def _step(
        self,
        share: Share,
        parallel: Parallel,
        parameters: dict[str, Any],
        optimiser: torch.optim.Optimizer,
        average: WeightAverage | None,
    ) -> dict[str, float | None]:
        settings, session = self.settings, self.session
        for problem in share.problems:
            log.warning("step %d: left out: %s", share.step, problem)
        # nothing draws from it today; what may one day must not depend on where the training was interrupted
        seed = item_seed(f"step {share.step} rank {session.rank}", settings.loop.seed)
        torch.default_generator.manual_seed(seed)
        if session.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        batch = share.batch().to(session.device)
        rate = set_learning_rate(optimiser, settings.optimiser, share.step, settings.loop.steps)
        optimiser.zero_grad(set_to_none=True)
        micro, count, whole = self._micro_batch(batch), len(batch), settings.data.batch_size
        sums: dict[str, torch.Tensor] = {}
        for offset in range(0, count, micro):
            part = batch.part(slice(offset, offset + micro))
            with parallel.held_back(last=offset + micro >= count):
                with self._autocast():
                    result = parallel.loss(part)
                # gradients of several workers are averaged: the sum over all of them is to be that of the whole batch's mean
                (result.total * (result.count * session.world_size / whole)).backward()
            for name, value in (("loss", result.total.detach()), *result.parts.items()):
                # added up where they are: reading them here would hold the device up after every micro-batch
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value * result.count
        norm = clip_gradients(parameters.values(), settings.optimiser)
        if math.isfinite(norm):
            optimiser.step()
            self._skipped = 0
            if average is not None:
                average.update(share.step)
        else:
            self._skipped += 1
            log.warning("step %d: the gradient is not finite; the step is left out", share.step)
            if self._skipped >= MOST_SKIPPED:
                raise CleanplateError(
                    f"the gradients of {MOST_SKIPPED} steps up to {share.step} were not finite: lower optimiser.learning_rate, or use "
                    "precision float32; the checkpoints before are kept"
                )
        names = sorted(sums)
        totals = added_up([*(float(sums[name]) for name in names), float(len(share.problems))], session)
        values: dict[str, float | None] = {name: total / whole for name, total in zip(names, totals, strict=False)}
        return {**values, "learning_rate": rate, "gradient_norm": norm, "left_out": totals[-1], "epoch": share.epoch}

    def _micro_batch(self, batch: Batch) -> int:
        """Items at a time: larger pictures go in fewer."""
        height, width = batch.mask_BHW.shape[1:]
        least = min(self.settings.data.sizes) ** 2
        return max(1, self.settings.loop.micro_batch_size * least // (height * width))

    def _autocast(self) -> AbstractContextManager[Any]:
        half = self.settings.loop.precision == "bfloat16"
        return torch.autocast(self.session.device.type, torch.bfloat16, enabled=half)

    def _device_batches(self, objective: Objective) -> list[Batch]:
        device = next(iter(objective.networks().trained_parameters().values())).device
        return [batch.to(device) for batch in self.held_out]

    def _validate(self, objective: Objective, done: int) -> dict[str, float | None]:
        """Losses on what was held out, and a sheet of pictures. Where weights are shared out, all workers take part."""
        sharded = self.settings.loop.strategy == "fsdp"
        found: dict[str, float] = {}
        if self.leads or sharded:
            with self._autocast():
                found = validate(objective, self._device_batches(objective))
        if self.leads and not sharded and self.settings.loop.picture_items and self.log is not None:
            sheet = pictures(objective, self._device_batches(objective)[0].part(slice(0, self.settings.loop.picture_items)))
            if sheet is not None:
                self.log.picture(done, "validation", sheet.pixels)
                found |= sheet.metrics
        wait_for_all(self.session)
        self.metrics = {f"validation_{name}": value for name, value in found.items()}
        return dict(self.metrics)

    def _save(
        self,
        saver: BackgroundSaver,
        done: int,
        parallel: Parallel,
        parameters: dict[str, Any],
        optimiser: torch.optim.Optimizer,
        average: WeightAverage | None,
    ) -> None:
        if not self.leads and self.settings.loop.strategy == "ddp":
            return  # the first worker's are the same; where weights are shared out, all must give theirs
        state: dict[str, Any] = {"trained": parallel.whole(parameters), "optimiser": parallel.optimiser_state(optimiser)}
        if average is not None:
            state["average"] = parallel.whole(average.state_dict())
        if self.log is not None:
            # lines first: a checkpoint without the lines before it would leave a gap in them for ever
            self.log.flush()
            metrics = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
            saver.submit(done, {STATE_FILE: state_bytes(state)}, metrics)

    def _restore(
        self,
        checkpoint: Checkpoint,
        parallel: Parallel,
        parameters: dict[str, torch.Tensor],
        optimiser: torch.optim.Optimizer,
        average: WeightAverage | None,
    ) -> None:
        state = load_state(self.store.read(checkpoint, STATE_FILE))
        parallel.load(parameters, state["trained"])
        parallel.load_optimiser_state(optimiser, state["optimiser"])
        if average is not None:
            parallel.load(average.state_dict(), state["average"])
        self.metrics = {name: value for name, value in checkpoint.metrics.items() if value is not None}
        if self.leads:
            log.info("going on from the checkpoint of step %d", checkpoint.step)

    def _agreed(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The checkpoint that the first worker found, for all: a store may show others another one."""
        if self.session.world_size == 1:
            return checkpoint
        found = [checkpoint]
        dist.broadcast_object_list(found, src=0, device=self.session.device if self.session.device.type == "cuda" else None)
        return found[0]

    def _finished(
        self, objective: Objective, parallel: Parallel, parameters: dict[str, Any], average: WeightAverage | None
    ) -> Objective:
        """The objective with the weights that are saved: its own, or where they are shared out a new one on the CPU."""
        if self.settings.loop.strategy == "fsdp":
            state = parallel.whole(average.state_dict() if average is not None else parameters)
            if not self.leads:
                return objective
            whole = build_objective(self.settings, "cpu")
            whole.load_trained_state(state)
            return whole
        if average is not None:
            parallel.load(parameters, average.state_dict())
        return objective

    def _tell(self, done: int, values: dict[str, float | None], epoch: int) -> None:
        self.session.progress({"step": done, "steps": self.settings.loop.steps, "epoch": epoch, **values})


@contextmanager
def _without_checkpointing(objective: Objective) -> Iterator[None]:
    """Gradient checkpointing is off in the block."""
    networks = objective.networks().trained.values()
    modules = [module for network in networks for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in modules:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True  # type: ignore[assignment]
