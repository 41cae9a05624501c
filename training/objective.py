"""What a trainer loop knows of an objective: a batch in, a loss out, and the tensors that are trained; and what the objectives share.

A loss is the mean of its items' losses, and every random number of an item comes from the item's own seed. So it does not matter how items
are spread over workers and micro-batches: losses and gradients, weighted by ``LossResult.count``, add up to those of one large batch.

Legend for shape suffixes: B batch, L latent channels, C input channels, H W picture sides in pixels, h w latent sides, T D tokens and width
of the prompt, P pooled width.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import nn

from core.conditioning import Conditioning, unet_input
from core.errors import UsageError
from core.sampler import PromptBatch, item_generators

LORA_TARGETS: Final = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut"),
    *("downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
"""The layers of RORem's distillation (its released code)."""
PREDICTIONS: Final = ("epsilon", "v_prediction")
_LARGEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one size, on one device.

    Attributes:
        source_BHW3: uint8 RGB, with the object.
        target_BHW3: uint8 RGB: without it (remover, lcm), or the edited picture that is judged (discriminator).
        mask_BHW: uint8, above 127 = the object.
        effect_mask_BHW: uint8, above 127 = the object and its shadow and reflection; None where that is not known of any item.
        has_effect_B: bool, of which items it is known; None: of all, where there is an ``effect_mask_BHW``.
        label_B: from 0 (rejected) to 1 (accepted), a share of votes is allowed; None where nothing was judged.
        clean_BHW3: uint8 RGB, beside an edited picture that is judged the clean plate; None where it is not known of any item.
        has_clean_B: bool, of which items it is known; None: of all, where there is a ``clean_BHW3``.
        seeds_B: int64, from 0: where all random numbers of an item come from; the data feed makes them of item and epoch. None: they are
            drawn from the generator that is given to the loss.
        target_moments_B2Lhw, source_moments_B2Lhw: floating, cached moments (``core.latent_cache``) of the targets and of the conditioning
            pictures as the objective conditions on them; None: they are encoded from the pictures.

    Raises:
        UsageError: a tensor has another shape, dtype or range than the above.
    """

    source_BHW3: torch.Tensor
    target_BHW3: torch.Tensor
    mask_BHW: torch.Tensor
    effect_mask_BHW: torch.Tensor | None = None
    has_effect_B: torch.Tensor | None = None
    label_B: torch.Tensor | None = None
    clean_BHW3: torch.Tensor | None = None
    has_clean_B: torch.Tensor | None = None
    seeds_B: torch.Tensor | None = None
    target_moments_B2Lhw: torch.Tensor | None = None
    source_moments_B2Lhw: torch.Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.source_BHW3.shape)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise UsageError(f"source_BHW3 is {shape}; a batch needs (B, H, W, 3) with at least one item")
        wanted: dict[str, tuple[tuple[int, ...], bool]] = {
            "source_BHW3": (shape, True),
            "target_BHW3": (shape, True),
            "mask_BHW": (shape[:3], True),
            "effect_mask_BHW": (shape[:3], True),
            "has_effect_B": (shape[:1], False),
            "label_B": (shape[:1], False),
            "clean_BHW3": (shape, True),
            "has_clean_B": (shape[:1], False),
            "seeds_B": (shape[:1], False),
        }
        for name, (size, picture) in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != size or (picture and value.dtype != torch.uint8):
                kind = f"uint8 {size}" if picture else f"{size}"
                raise UsageError(f"{name} is {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}; this batch needs {kind}")
        if self.label_B is not None and not bool(((self.label_B >= 0) & (self.label_B <= 1)).all()):
            raise UsageError(f"label_B is {self.label_B.tolist()[:8]}; labels go from 0 (rejected) to 1 (accepted)")
        for name in ("target_moments_B2Lhw", "source_moments_B2Lhw"):
            moments = getattr(self, name)
            if moments is not None and (moments.ndim != 4 or len(moments) != shape[0] or not moments.is_floating_point()):
                kind = f"{str(moments.dtype).removeprefix('torch.')} {tuple(moments.shape)}"
                raise UsageError(f"{name} is {kind}; this batch needs floating ({shape[0]}, 2 L, h, w)")
        if self.seeds_B is not None and (self.seeds_B.dtype != torch.int64 or bool((self.seeds_B < 0).any())):
            raise UsageError(f"seeds_B is {self.seeds_B.dtype} {self.seeds_B.tolist()[:8]}; seeds are int64 from 0")

    def __len__(self) -> int:
        return len(self.source_BHW3)

    def part(self, places: slice) -> Batch:
        """Some of the items, as views."""
        return self._mapped(lambda value: value[places])

    def to(self, device: torch.device | str) -> Batch:
        """The same items on another device, copied without waiting where their memory is pinned."""
        return self._mapped(lambda value: value.to(device, non_blocking=True))

    def item_seeds(self, generator: torch.Generator | None) -> list[int]:
        """One seed an item: the batch's own, else drawn from ``generator``.

        Raises:
            UsageError: there is neither.
        """
        if self.seeds_B is not None:
            return [int(seed) for seed in self.seeds_B.tolist()]
        if generator is None:
            raise UsageError("the batch has no seeds_B, and no generator was given: give one of them, the loss needs random numbers")
        return [int(seed) for seed in torch.randint(0, _LARGEST_SEED, (len(self),), generator=generator, device=generator.device).tolist()]

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return Batch(**changed)


@dataclass(frozen=True, slots=True)
class LossResult:
    """What an objective says of a batch.

    Attributes:
        total: scalar float32 with a gradient: the mean over the items.
        parts: scalars float32 without gradient, by name; what the total is made of, unweighted.
        count: items that the mean is over.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]
    count: int


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks of an objective by name.

    Attributes:
        trained: those with trained parameters, which are the ones that require a gradient (a network with adapters has others, too).
        frozen: those without.
    """

    trained: dict[str, nn.Module]
    frozen: dict[str, nn.Module]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimiser gets, by ``network.parameter``; a dict, not an iterator that is used up once."""
        return {
            f"{name}.{inner}": parameter
            for name, network in self.trained.items()
            for inner, parameter in network.named_parameters()
            if parameter.requires_grad
        }


@runtime_checkable
class Objective(Protocol):
    """A loss with the networks that it trains."""

    def networks(self) -> Networks:
        """What is trained and what is frozen; the very objects, so that they can be moved, compiled and sharded in place."""
        ...

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> LossResult:
        """The loss of a batch; ``generator`` (any device) is used only where the batch brings no seeds.

        Raises:
            UsageError: the batch lacks what this objective needs.
        """
        ...

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name, for a checkpoint; not copied."""
        ...

    def load_trained_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what ``trained_state`` gave.

        Raises:
            UsageError: names or shapes are of another objective or network.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes what was trained in the layout that ``cleanplate`` and diffusers load."""
        ...


class LossModule(nn.Module):
    """An objective as a module whose call is its loss: what ``DistributedDataParallel`` wraps, since it follows gradients through calls."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.networks = nn.ModuleDict(objective.networks().trained)

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> LossResult:
        """``Objective.loss``."""
        return self.objective.loss(batch, generator)


def uniform_draws(seeds: list[int], stream: int) -> torch.Tensor:
    """One number in [0, 1) an item, (B,) float64 on the CPU, from the item's seed; ``stream`` tells several uses of one seed apart."""
    draws = [torch.rand((), dtype=torch.float64, generator=generator) for generator in item_generators(seeds, stream)]
    return torch.stack(draws)


def whole_draws(seeds: list[int], stream: int, count: int, bias: float = 1.0) -> torch.Tensor:
    """One whole number n in [0, count) an item, (B,) int64 on the CPU, from the item's seed; its density goes with n ** (bias - 1)."""
    if bias != 1.0:
        return (uniform_draws(seeds, stream) ** (1 / bias) * count).long().clamp(max=count - 1)
    return torch.cat([torch.randint(0, count, (1,), generator=generator) for generator in item_generators(seeds, stream)])


def fill_trained(parameters: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    """Copies a checkpoint's tensors into the trained ones, all or none.

    Raises:
        UsageError: names or shapes differ.
    """
    wrong = [f"missing {name}" for name in sorted(set(parameters) - set(state))]
    wrong += [f"unknown {name}" for name in sorted(set(state) - set(parameters))]
    shared = sorted(set(parameters) & set(state))
    wrong += [
        f"{name} is {list(state[name].shape)}, not {list(parameters[name].shape)}"
        for name in shared
        if state[name].shape != parameters[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(f"the checkpoint is of another objective or network: {'; '.join(wrong[:3])}{more}; resume with its settings")
    with torch.no_grad():
        for name in shared:
            parameters[name].copy_(state[name])


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into; at the end what is in it is moved into ``folder``, entry by entry, over what was there.

    Nothing is moved where the block fails, so that a killed run never leaves half a network.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        folder.mkdir(parents=True, exist_ok=True)
        for entry in sorted(temporary.iterdir()):
            place = folder / entry.name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            entry.replace(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prediction_type(scheduler: Any) -> str:
    """``epsilon`` or ``v_prediction``, as the scheduler's configuration says.

    Raises:
        UsageError: it says something else.
    """
    found = str(scheduler.config.get("prediction_type", "epsilon"))
    if found not in PREDICTIONS:
        raise UsageError(f"the scheduler's prediction_type is {found}; allowed: {' or '.join(PREDICTIONS)}")
    return found


def call_unet(
    unet: Any, noisy_BLhw: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Conditioning, prompt: PromptBatch
) -> torch.Tensor:
    """The UNet's prediction, (B, L, h, w) float32 whatever its number format."""
    dtype = next(unet.parameters()).dtype  # diffusers' own property looks through all modules, which adapters make many
    added = {"text_embeds": prompt.pooled_BP.to(dtype), "time_ids": conditioning.time_ids_B6.to(dtype)}
    sample_BChw = unet_input(noisy_BLhw, conditioning).to(dtype)
    tokens_BTD = prompt.tokens_BTD.to(dtype)
    return unet(sample_BChw, timesteps_B, encoder_hidden_states=tokens_BTD, added_cond_kwargs=added, return_dict=False)[0].float()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """A low-rank adapter of a UNet.

    Raises:
        UsageError: rank or alpha is not above 0, or there are no targets.
    """

    rank: int = 64
    alpha: float = 64.0
    """The adapter is scaled by alpha / rank."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Ends of the names of the layers that get one."""
    seed: int = 0
    """Of the first weights (normal with deviation 1 / rank; the second factor starts at 0, so that at first nothing changes)."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            raise UsageError(f"lora is rank {self.rank}, alpha {self.alpha}, {len(self.targets)} targets; all must be above 0")


def add_lora(unet: Any, settings: LoraSettings) -> None:
    """Freezes a UNet and puts a trained adapter on it, in float32 whatever the UNet's number format."""
    import peft

    unet.requires_grad_(False)
    config = peft.LoraConfig(
        r=settings.rank,
        # peft takes any number, and says int
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        init_lora_weights="gaussian",
        target_modules=list(settings.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            unet.add_adapter(config)
        except ValueError as error:
            raise UsageError(f"lora: {' '.join(str(error).split())[:300]}; give targets that this UNet has") from error
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_tensors(unet: Any) -> dict[str, torch.Tensor]:
    """A UNet's adapter as ``pytorch_lora_weights.safetensors`` holds it, float32 on the CPU, in peft's names.

    alpha / rank is multiplied into the second factor: files have no place for alpha that all readers look at, and without it they take it
    to be the rank.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in _lora_layers(unet):
        for half, factors, scale in (("A", layer.lora_A, 1.0), ("B", layer.lora_B, layer.scaling["default"])):
            weight = factors["default"].weight.detach().float() * scale
            tensors[f"unet.{name}.lora_{half}.weight"] = weight.to("cpu", copy=True).contiguous()
    return tensors


def merged_unet(unet: Any) -> Any:
    """A new ``UNet2DConditionModel`` without adapters that computes the same; weights that have no adapter are shared with ``unet``."""
    import diffusers

    changes = {f"{name}.weight": layer.get_delta_weight("default") for name, layer in _lora_layers(unet)}
    state = {
        name.replace(".base_layer.", "."): tensor.detach() for name, tensor in unet.state_dict().items() if ".lora_" not in name
    }
    for name, change in changes.items():
        state[name] = (state[name].float() + change.detach().float()).to(state[name].dtype)
    with torch.device("meta"):
        merged = diffusers.UNet2DConditionModel.from_config(unet.config)
    merged.load_state_dict(state, assign=True)
    return merged.eval().requires_grad_(False)


def _lora_layers(unet: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in unet.named_modules() if isinstance(module, LoraLayer)]
