"""ObjectClear's attention-mask loss: the object token is looked at from the object and its effects, and from nowhere else.

ObjectClear, section 4.2 and its released code: for every cross-attention layer, mean attention to the token over the background less the
mean over the foreground, plus one. The foreground is the effect mask brought to the layer's grid (bilinear with antialiasing) and cut at
0.1; the loss is the mean over heads, items and layers.

Legend for shape suffixes: B batch, A attention heads, N positions of a layer's feature map, H W picture sides in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F

from core.attention import AttentionCapture, CapturingProcessor, cross_attention_layers
from core.errors import UsageError

FOREGROUND: Final = 0.1
"""Share of a cell above which it belongs to the foreground."""


class RecomputedProcessor(CapturingProcessor):
    """A ``CapturingProcessor`` for layers under gradient checkpointing.

    The backward pass runs such a layer again, and needs from it the very tensors that the forward pass saved, those behind the map
    included; so the map is worked out whenever gradients are on. What the second run finds is not kept: it would keep the layer's
    activations alive, which checkpointing is there to let go.
    """

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *rest: Any, **named: Any
    ) -> torch.Tensor:
        """As the ordinary processor."""
        kept, armed = self.captured_BAN, self.armed
        self.armed = armed or torch.is_grad_enabled()
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, *rest, **named)
        finally:
            # the recomputation is ended by an exception as soon as it has what it needs
            self.armed = armed
            if not armed:
                self.captured_BAN = kept


class TrainingCapture(AttentionCapture):
    """An ``AttentionCapture`` whose maps have a gradient with and without gradient checkpointing (non-reentrant, as diffusers' is).

    With the reentrant kind the forward pass has no graph, so the maps have no gradient; ``maps_with_gradient`` refuses them.

    Args:
        unet: ``UNet2DConditionModel``.
        layers: names of cross-attention modules; none: all (70 in SDXL, the released code's choice).
        token: index of the prompt token.

    Raises:
        ValueError: a name is no cross-attention layer of this network.
    """

    def __init__(self, unet: Any, layers: Sequence[str], token: int) -> None:
        super().__init__(unet, layers or cross_attention_layers(unet), token)
        modules = dict(unet.named_modules())
        for name in self.processors:
            self.processors[name] = RecomputedProcessor(token)
            modules[name].set_processor(self.processors[name])

    def maps_with_gradient(self) -> dict[str, torch.Tensor]:
        """The captured maps (B, A, N) float32 of every layer, which are let go here.

        Raises:
            RuntimeError: nothing was captured, or gradients are on and a map has none.
        """
        maps = self.maps()
        self.clear()
        if torch.is_grad_enabled() and not all(map_BAN.requires_grad for map_BAN in maps.values()):
            raise RuntimeError(
                "the captured attention has no gradient: the network is frozen, or gradient checkpointing is reentrant; "
                "call unet.enable_gradient_checkpointing() without another function"
            )
        return maps


def layer_grid(positions: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a layer with that many positions, for a network input of ``height`` x ``width`` latent cells.

    Each level of the UNet halves the sides and rounds up.

    Raises:
        ValueError: no level has that many positions.
    """
    rows, columns = height, width
    while rows * columns > max(positions, 1):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != positions:
        raise ValueError(f"{positions} positions are no level of a UNet whose input is {height} x {width}")
    return rows, columns


def foreground(effect_mask_B1HW: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Which cells of a layer's grid belong to the object and its effects: (B, rows * columns) float32 of 0 and 1.

    Args:
        effect_mask_B1HW: float of 0 and 1.
    """
    resized = F.interpolate(effect_mask_B1HW.float(), size=(rows, columns), mode="bilinear", antialias=True, align_corners=False)
    return (resized > FOREGROUND).float().flatten(1)


def attention_loss(
    maps: Mapping[str, torch.Tensor],
    effect_mask_B1HW: torch.Tensor,
    latent_sides: tuple[int, int],
    *,
    background_weight: float = 1.0,
    named_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention-mask loss of every item, (B,) float32; its mean is ObjectClear's (section 4.2 and released code).

    Items without an object, or whose prompt does not name it, have nothing to attend to and count 0 (the reference goes on demanding
    attention from them). A layer on whose grid an item's object is too small to leave a cell has no say about that item; its other layers
    do. Where the foreground is everything, the background's mean is 0.

    Args:
        maps: captured attention of layers, each (B, A, N).
        effect_mask_B1HW: float of 0 and 1: the object with its shadow and reflection, in pixels.
        latent_sides: height and width of the network's input in latent cells.
        background_weight: of the background's mean; 1 in the released script.
        named_B: bool: whether an item's prompt names its object; None: all do.

    Raises:
        UsageError: there are no maps.
        ValueError: a map's positions are no level of the network.
    """
    if not maps:
        raise UsageError("the attention loss needs captured maps of at least one layer, and got none")
    per_layer: list[torch.Tensor] = []
    counted: list[torch.Tensor] = []
    grids: dict[int, torch.Tensor] = {}
    for map_BAN in maps.values():
        positions = map_BAN.shape[-1]
        if positions not in grids:
            grids[positions] = foreground(effect_mask_B1HW, *layer_grid(positions, *latent_sides))
        inside_B1N = grids[positions][:, None]
        outside_B1N = 1 - inside_B1N
        probabilities_BAN = map_BAN.float()
        inner_BA = (probabilities_BAN * inside_B1N).sum(-1) / inside_B1N.sum(-1).clamp_min(1)
        outer_BA = (probabilities_BAN * outside_B1N).sum(-1) / outside_B1N.sum(-1).clamp_min(1)
        per_layer.append((background_weight * outer_BA - inner_BA + 1).mean(dim=1))
        counted.append(inside_B1N.sum(dim=(1, 2)) > 0)
    losses_LB, counted_LB = torch.stack(per_layer), torch.stack(counted)
    if named_B is not None:
        counted_LB = counted_LB & named_B.to(counted_LB.device)
    return torch.where(counted_LB, losses_LB, 0.0).sum(dim=0) / counted_LB.sum(dim=0).clamp_min(1)
