"""What one device does with full-size SDXL networks: erasing in 4 and 50 steps, scoring, and both, beside diffusers' plain pipeline.

    python -m benchmarks.gpu --record benchmarks/records/DATE-gpu.md
    python -m benchmarks.gpu --device cpu --sizes 512 --batches 1 --works "4 steps" discriminator   # on a CPU: minutes a row
    python -m benchmarks.gpu --small            # the same with small networks: a test of this script, no measurement

Needs torch, diffusers, transformers and this repository; no Ray, no hub, no weights: the networks are built from their configurations
with random weights, which cost the same time. Every figure includes the copy of uint8 pictures to the device and back, the autoencoder
both ways, and the mask's work. TFLOP/s are operations counted by torch.utils.flop_counter (one multiply-add is two) over the time; the
peak is a bfloat16 matrix product of 8192 x 8192 measured in the same run. The plain pipeline is called as RORem's inference scripts call
it (float16, strength 0.99, one VAE encode each for picture and masked picture, per-call scheduler), with embedded prompts given to it, at
as many network calls as the row beside it; the ratio is ours over its.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from core.acceleration import compile_network
from core.conditioning import downsampling_factor, encode_latents, image_batch, latent_mask, mask_batch, time_ids
from core.device import placed
from core.discriminator_config import DiscriminatorConfig
from core.discriminator_network import DiscriminatorNetwork
from core.eraser import CompileMode
from core.model_card import ModelCard
from core.prompts import PromptEmbeddings
from core.remover import Remover

SCHEDULE: Final = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
PEAK_SIDE: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Configurations of the networks, and the sizes to run them at."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    tokens: tuple[int, int]
    pooled: int
    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    head_channels: int | None = None


FULL: Final = Shapes(
    unet=json.loads((Path(__file__).parent / "sdxl_inpainting_unet.json").read_text()),
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
        "sample_size": 1024,
    },
    tokens=(77, 2048),
    pooled=1280,
    sizes=(512, 1024),
    batches=(1, 4, 16, 32),
)
SMALL: Final = Shapes(
    unet={
        **FULL.unet,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 1),
        "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": 32,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    vae={**FULL.vae, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    tokens=(7, 32),
    pooled=16,
    sizes=(128,),
    batches=(1, 2),
    head_channels=64,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; ``tflop`` is per image, ``seconds`` per batch."""

    work: str
    size: int
    batch: int
    seconds: float
    tflop: float
    memory_gib: float
    plain_seconds: float | None = None

    def cells(self, peak: float) -> list[str]:
        rate, speed = self.batch / self.seconds, self.tflop * self.batch / self.seconds
        plain = "" if self.plain_seconds is None else f"{self.batch / self.plain_seconds:.2f}"
        ratio = "" if self.plain_seconds is None else f"{self.plain_seconds / self.seconds:.2f}"
        values = [f"{rate:.2f}", f"{self.seconds * 1e3:.1f}", f"{speed:.1f}", f"{100 * speed / peak:.0f} %", f"{self.memory_gib:.1f}"]
        return [self.work, str(self.size), str(self.batch), *values, plain, ratio]


class Bench:
    """Networks with random weights on one device, and the works that are timed."""

    def __init__(self, shapes: Shapes, device: torch.device, compile_mode: CompileMode, seconds: float, dtype: torch.dtype) -> None:
        self.shapes, self.device, self.seconds, self.dtype = shapes, device, seconds, dtype
        torch.manual_seed(0)
        unet, vae = self._network(UNet2DConditionModel, shapes.unet), self._network(AutoencoderKL, shapes.vae)
        self.vae = vae
        self.unet = unet
        self.prompt = PromptEmbeddings(torch.randn(1, *shapes.tokens), torch.randn(1, shapes.pooled)).to(device, self.dtype)
        config = DiscriminatorConfig(size=min(shapes.sizes), head_channels=shapes.head_channels)
        network = DiscriminatorNetwork(unet, config, downsampling_factor(vae))
        network.merge()
        self.discriminator = self._placed(network)
        compile_network(unet, compile_mode)

    def _network(self, kind: Any, config: dict[str, Any]) -> Any:
        with torch.device(self.device):
            return self._placed(kind.from_config(config))

    def _placed(self, network: Any) -> Any:
        return placed(network.eval().requires_grad_(False), self.device, self.dtype)

    def pictures(self, size: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Host pictures and masks, uint8, pinned where there is a GPU."""
        generator = torch.Generator().manual_seed(0)
        source = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator)
        mask = torch.zeros(batch, size, size, dtype=torch.uint8)
        mask[:, size // 4 : size // 2, size // 4 : size // 2] = 255
        return (source.pin_memory(), mask.pin_memory()) if self.device.type == "cuda" else (source, mask)

    def erase(self, steps: int, size: int, batch: int) -> Callable[[], torch.Tensor]:
        """Pictures on the host to erased pictures on the host."""
        kind = LCMScheduler if steps <= 8 else EulerDiscreteScheduler
        remover = Remover(self.unet, self.vae, kind.from_config(SCHEDULE), self.prompt, ModelCard(size=size, steps=steps))
        source, mask = self.pictures(size, batch)

        def run() -> torch.Tensor:
            erased = remover.erase(self._there(source), self._there(mask), list(range(batch)))
            return erased.pixels_BHW3

        return run

    def score(self, size: int, batch: int) -> Callable[[torch.Tensor | None], torch.Tensor]:
        """Logits for edited pictures on the device (the sources themselves where none are given)."""
        source, mask = self.pictures(size, batch)

        @torch.inference_mode()
        def run(edited: torch.Tensor | None = None) -> torch.Tensor:
            pictures, masks = self._there(source), mask_batch(self._there(mask))
            pair = torch.cat([image_batch(pictures if edited is None else edited), image_batch(pictures)])
            latents = encode_latents(self.vae, pair.contiguous(memory_format=torch.channels_last)).to(self.dtype)
            small = latent_mask(masks, downsampling_factor(self.vae)).to(self.dtype)
            return self.discriminator(latents[:batch], small, latents[batch:], self.prompt).logits_B

        return run

    def plain(self, steps: int, size: int, batch: int) -> Callable[[], Any]:
        """diffusers' pipeline as RORem's scripts call it, at ``steps`` network calls; on a CPU with our very networks, to save memory."""
        half = torch.float16 if self.device.type == "cuda" else self.dtype
        parts: list[Any] = [self.unet, self.vae]
        if self.device.type == "cuda":
            with torch.device(self.device):
                parts = [placed(kind.from_config(config).eval(), self.device, half, channels_last=False) for kind, config in self._parts()]
        kind = LCMScheduler if steps <= 8 else EulerDiscreteScheduler
        pipeline: Any = diffusers.StableDiffusionXLInpaintPipeline(
            vae=parts[1],
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=parts[0],
            scheduler=kind.from_config(SCHEDULE),
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        source, mask = self.pictures(size, batch)
        prompt = self.prompt.to(self.device, half)
        images, masks = (values.to(torch.float32) / 255 for values in (source.permute(0, 3, 1, 2), mask[:, None]))

        def run() -> Any:
            return pipeline(
                prompt_embeds=prompt.tokens_1TD.expand(batch, -1, -1),
                pooled_prompt_embeds=prompt.pooled_1P.expand(batch, -1),
                image=images,
                mask_image=masks,
                height=size,
                width=size,
                # strength 0.99 takes one step away
                num_inference_steps=steps + 1,
                strength=0.99,
                guidance_scale=1.0,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images

        return run

    def _parts(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(UNet2DConditionModel, self.shapes.unet), (AutoencoderKL, self.shapes.vae)]

    def _there(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.to(self.device, non_blocking=True)

    def timed(self, run: Callable[[], Any]) -> tuple[float, float]:
        """(seconds a call, peak memory in GiB): results are copied to the host; two calls to warm up a GPU, then for ``self.seconds``."""

        def whole() -> None:
            result = run()
            if isinstance(result, torch.Tensor):
                result.cpu()

        for _ in range(2 if self.device.type == "cuda" else 0):
            whole()
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        calls, started = 0, time.perf_counter()
        while calls < 2 or time.perf_counter() - started < self.seconds:
            whole()
            calls += 1
        self._wait()
        seconds = (time.perf_counter() - started) / calls
        return seconds, torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def matmul_peak(self) -> float:
        """TFLOP/s of one large square matrix product in the networks' number format."""
        side = PEAK_SIDE if self.device.type == "cuda" else 512
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        best = min(self.timed(lambda: torch.mm(a, b)[:1])[0] for _ in range(3))
        return 2 * side**3 / best / 1e12


def count_tflop(shapes: Shapes, size: int) -> dict[str, float]:
    """TFLOP of one image through each network, counted without computing anything."""
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(shapes.unet).eval(), AutoencoderKL.from_config(shapes.vae).eval()
        side = size // downsampling_factor(vae)
        prompt = PromptEmbeddings(torch.randn(1, *shapes.tokens), torch.randn(1, shapes.pooled))
        latents, mask, picture = torch.randn(1, 4, side, side), torch.randn(1, 1, side, side), torch.randn(1, 3, size, size)
        config = DiscriminatorConfig(size=size, head_channels=shapes.head_channels)
        network = DiscriminatorNetwork(unet, config, downsampling_factor(vae)).eval()
        network.merge()
        added = {"text_embeds": prompt.pooled_1P, "time_ids": time_ids(1, size, size, "meta")}
        sample = torch.cat([latents, mask, latents], dim=1)
        works: dict[str, Callable[[], Any]] = {
            "unet": lambda: unet(sample, torch.zeros(1), encoder_hidden_states=prompt.tokens_1TD, added_cond_kwargs=added),
            "encode": lambda: vae.encode(picture),
            "decode": lambda: vae.decode(latents),
            "discriminator": lambda: network(latents, mask, latents, prompt),
        }
        counts: dict[str, float] = {}
        for name, work in works.items():
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                work()
            counts[name] = counter.get_total_flops() / 1e12
    return counts


def measure(bench: Bench, *, long_steps: int, plain: bool, works: list[str]) -> list[Row]:
    """Every work at every size and batch that fits the device."""
    rows: list[Row] = []
    for size in bench.shapes.sizes:
        tflop = count_tflop(bench.shapes, size)
        for batch in bench.shapes.batches:
            for row in _rows(bench, tflop, size, batch, long_steps, works):
                steps = {"4 steps": 4, f"{long_steps} steps": long_steps}.get(row.work)
                if plain and steps:
                    row = replace(row, plain_seconds=_plain_seconds(bench, steps, size, batch))
                rows.append(row)
                print(" | ".join(row.cells(1.0)[:6]), file=sys.stderr)
    return rows


def _rows(bench: Bench, tflop: dict[str, float], size: int, batch: int, long_steps: int, works: list[str]) -> list[Row]:
    def erasing(steps: int) -> float:
        return steps * tflop["unet"] + tflop["encode"] + tflop["decode"]

    scoring = tflop["discriminator"] + 2 * tflop["encode"]
    rows: list[Row] = []

    def add(name: str, make: Callable[[], Callable[[], Any]], cost: float) -> None:
        if works and name not in works:
            return
        try:
            seconds, memory = bench.timed(make())
        except torch.OutOfMemoryError:
            print(f"{name} at {size}, batch {batch}: the device's memory does not hold it", file=sys.stderr)
            return
        finally:
            gc.collect()
        rows.append(Row(work=name, size=size, batch=batch, seconds=seconds, tflop=cost, memory_gib=memory))

    add("4 steps", lambda: bench.erase(4, size, batch), erasing(4))
    add(f"{long_steps} steps", lambda: bench.erase(long_steps, size, batch), erasing(long_steps))
    if size == bench.discriminator.config.size:
        add("discriminator", lambda: partial(bench.score(size, batch), None), scoring)
        add("clean step (4 steps + score)", lambda: _clean_step(bench, size, batch), erasing(4) + scoring)
    return rows


def _clean_step(bench: Bench, size: int, batch: int) -> Callable[[], torch.Tensor]:
    erase, score = bench.erase(4, size, batch), bench.score(size, batch)

    def run() -> torch.Tensor:
        edited = erase()
        score(edited).cpu()
        return edited

    return run


def _plain_seconds(bench: Bench, steps: int, size: int, batch: int) -> float | None:
    try:
        return bench.timed(bench.plain(steps, size, batch))[0]
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()


def table(rows: list[Row], peak: float) -> str:
    """The rows as Markdown."""
    titles = ["work", "px", "batch", "images/s", "ms a batch", "TFLOP/s", "of peak", "GiB", "plain pipeline, images/s", "ratio"]
    lines = [titles, ["---"] * len(titles), *(row.cells(peak) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small networks, one size: tests the script, measures nothing of interest")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--long-steps", type=int, default=50)
    parser.add_argument("--works", nargs="+", default=[], help="names of rows; all where none are given")
    parser.add_argument("--compile", choices=["off", "blocks", "full", "graphs"], default="off")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain pipeline out")
    parser.add_argument("--seconds", type=float, default=5.0, help="time spent on each measurement")
    parser.add_argument("--record", type=Path, help="write the table to this file, too")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cpu" and not (options.small or (options.sizes and options.batches)):
        parser.error("there is no GPU here; say how much of the table a CPU shall do (--sizes 512 --batches 1), or --small")
    shapes = SMALL if options.small else FULL
    shapes = replace(shapes, sizes=tuple(options.sizes or shapes.sizes), batches=tuple(options.batches or shapes.batches))
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    bench = Bench(shapes, device, options.compile, options.seconds, dtype)
    peak = bench.matmul_peak()
    rows = measure(bench, long_steps=options.long_steps, plain=not options.no_plain, works=options.works)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    head = (
        f"{name}, torch {torch.__version__}, diffusers {diffusers.__version__}, {bench.dtype}, compile {options.compile}; measured peak of "
        f"a matrix product: {peak:.1f} TFLOP/s"
    )
    text = f"{head}\n\n{table(rows, peak)}\n"
    print(text)
    if options.record:
        options.record.write_text(text)


if __name__ == "__main__":
    main()
