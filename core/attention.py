"""Cross-attention maps of chosen layers, captured without touching what the network computes.

A captured layer goes on through the same scaled-dot-product kernel as before, and beside it the probabilities of one prompt token are
computed from the same queries and keys. Other layers keep their processors, so they cost what they cost.

Legend for shape suffixes: B batch, A attention heads, N positions of the layer's feature map, T prompt tokens, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

FUSION_LAYER: Final = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
"""The layer whose map steers the fusion in ObjectClear's code: the first cross-attention of SDXL's UNet."""


def token_probabilities(attention: Any, hidden_BNC: torch.Tensor, tokens_BTD: torch.Tensor, token: int) -> torch.Tensor:
    """Softmax probability of one key, (B, A, N) float32: how much every position looks at prompt token ``token``."""
    batch = hidden_BNC.shape[0]
    query_BANK = attention.to_q(hidden_BNC).view(batch, -1, attention.heads, hidden_BNC.shape[-1] // attention.heads).transpose(1, 2)
    key_BATK = attention.to_k(tokens_BTD).view(batch, -1, attention.heads, query_BANK.shape[-1]).transpose(1, 2)
    scores_BANT = (query_BANK.float() @ key_BATK.float().transpose(-1, -2)) * attention.scale
    return scores_BANT.softmax(dim=-1)[..., token]


class CapturingProcessor(AttnProcessor2_0):
    """The ordinary processor, which keeps the map of one token while ``armed``.

    Attributes:
        armed: whether the next calls are captured.
        captured_BAN: the last map, (B, A, N) float32; None before the first capture. It is part of the autograd graph where there is one.
    """

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token, self.armed = token, False
        self.captured_BAN: torch.Tensor | None = None

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *rest: Any, **named: Any
    ) -> torch.Tensor:
        """As the ordinary processor."""
        if self.armed and encoder_hidden_states is not None:
            self.captured_BAN = token_probabilities(attn, hidden_states, encoder_hidden_states, self.token)
        return super().__call__(attn, hidden_states, encoder_hidden_states, *rest, **named)


class AttentionCapture:
    """Capture of one prompt token in chosen cross-attention layers of a UNet.

    Args:
        unet: ``UNet2DConditionModel``; its chosen layers get a ``CapturingProcessor``, all others are left alone.
        layers: names of cross-attention modules (``...attn2``).
        token: index of the prompt token.

    Raises:
        ValueError: a name is no cross-attention layer of this network.
    """

    def __init__(self, unet: Any, layers: Sequence[str], token: int) -> None:
        modules = dict(unet.named_modules())
        unknown = [name for name in layers if not name.endswith("attn2") or name not in modules]
        if unknown or not layers:
            known = cross_attention_layers(unet)
            raise ValueError(f"no cross-attention layer {', '.join(unknown) or '(none named)'}; this UNet has {len(known)}, as {known[:2]}")
        self.processors = {name: CapturingProcessor(token) for name in layers}
        for name, processor in self.processors.items():
            modules[name].set_processor(processor)

    @contextmanager
    def armed(self, on: bool = True) -> Iterator[None]:
        """Captures the network calls inside the block (none where ``on`` is false)."""
        for processor in self.processors.values():
            processor.armed = on
        try:
            yield
        finally:
            for processor in self.processors.values():
                processor.armed = False

    def maps(self) -> dict[str, torch.Tensor]:
        """The last captured map of every layer, (B, A, N) float32.

        Raises:
            RuntimeError: nothing was captured.
        """
        found = {name: processor.captured_BAN for name, processor in self.processors.items() if processor.captured_BAN is not None}
        if len(found) != len(self.processors):
            raise RuntimeError("no attention was captured: call the network inside armed()")
        return found

    def clear(self) -> None:
        """Let the captured maps go."""
        for processor in self.processors.values():
            processor.captured_BAN = None


def cross_attention_layers(unet: Any) -> list[str]:
    """Names of all cross-attention layers, in the network's order (70 in SDXL)."""
    return [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
