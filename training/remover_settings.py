"""What a remover is trained for (RORem, section 3; ObjectClear, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from core.conditioning import ConditioningKind, LatentMaskRule
from core.errors import UsageError
from core.model_card import ModelCard, ObjectTokenKind
from training.objective import LoraSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoverSettings:
    """What the remover is trained for; the defaults are RORem's.

    Raises UsageError where a value is out of its range, or asks for a part that another value leaves out.
    """

    conditioning: ConditioningKind = "masked"
    """Which source the network is conditioned on."""
    latent_mask: LatentMaskRule = "nearest"
    """How the mask is brought to latent size."""
    object_token: ObjectTokenKind = "none"
    """Whether token 5 of the prompt is the object's image embedding; its fuse module is trained, too."""
    attention_weight: float = 0.0
    """Weight of the attention-mask loss; 0: none. Needs an object token, and effect masks in the data."""
    attention_background_weight: float = 1.0
    """Weight of the background's mean within it."""
    attention_layers: tuple[str, ...] = ()
    """Cross-attention layers that it is about; none: all."""
    condition_dropout: float = 0.0
    """Probability, 0 to below 1, that an item's prompt (tokens, object token and pooled embedding) is replaced by the null prompt. Mask
    and source stay: guidance leads away from "no prompt", and never from "no picture"."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (Hang et al. 2023, section 3.4): 5 is usual; None: every timestep counts 1."""
    timestep_bias: float = 1.0
    """Timesteps t are drawn with a density that goes with t ** (bias - 1). 1: all alike; above 1: more of the noisy ones, where the
    network, and not what it is given, has to say what the picture is."""
    mask_weight: float = 1.0
    """Weight of the cells under the mask, of which the others have 1; an item's weights are divided by their mean."""
    effect_weight: float = 1.0
    """The same for cells under the effect mask; a cell has the larger of both. A shadow changes latents little, and else is learnt late."""
    lora: LoraSettings | None = None
    """A low-rank adapter is trained in place of the whole UNet."""

    def __post_init__(self) -> None:
        rules = (
            ("attention_weight", self.attention_weight, "0 or more", self.attention_weight >= 0),
            ("condition_dropout", self.condition_dropout, "from 0 to below 1", 0 <= self.condition_dropout < 1),
            ("min_snr_gamma", self.min_snr_gamma, "above 0, or null", self.min_snr_gamma is None or self.min_snr_gamma > 0),
            ("timestep_bias", self.timestep_bias, "above 0", self.timestep_bias > 0),
            ("mask_weight", self.mask_weight, "above 0", self.mask_weight > 0),
            ("effect_weight", self.effect_weight, "above 0", self.effect_weight > 0),
        )
        wrong = [f"{name} is {value}, which must be {allowed}" for name, value, allowed, right in rules if not right]
        if self.attention_weight > 0 and self.object_token == "none":
            wrong.append("the attention loss is about the object token, and object_token is none; set it to frame or box")
        if wrong:
            raise UsageError(f"remover: {'; '.join(wrong)}")

    def on_card(self, card: ModelCard) -> ModelCard:
        """A base's card, with what a training of these settings changes in it."""
        # a base with an object token that is trained on without one has no attention to steer by
        fusion = "mask" if self.object_token == "none" and card.fusion == "attention" else card.fusion
        return replace(
            card, conditioning=self.conditioning, latent_mask=self.latent_mask, object_token=self.object_token, fusion=fusion
        )


ROREM: Final = RemoverSettings()
OBJECTCLEAR: Final = RemoverSettings(conditioning="full", object_token="frame", attention_weight=0.01)
