"""What a model says about how it wants to be used: its card, ``cleanplate.json`` in its folder."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from core.checkpoints import read_json
from core.conditioning import ConditioningKind, LatentMaskRule
from core.crops import Texture
from core.eraser import EraserSettings, FusionKind
from core.errors import UsageError
from core.object_token import PROMPT

ObjectTokenKind = Literal["none", "frame", "box"]
FILE_NAME: Final = "cleanplate.json"
LCM_STEPS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model folder says about how it wants to be used; the defaults are those of RORem's published weights."""

    conditioning: ConditioningKind = "masked"
    """Which source the network is conditioned on."""
    latent_mask: LatentMaskRule = "nearest"
    """How its mask was brought to latent size in training."""
    size: int = 512
    """Side in pixels that it was trained at."""
    steps: int = 50
    """Network calls per image unless the caller says otherwise."""
    scheduler: str | None = None
    """Class of diffusers' scheduler to sample with; None: the one in ``scheduler/``."""
    timestep_spacing: str | None = None
    """``leading``, ``trailing`` or ``linspace``; None: as ``scheduler/`` says."""
    prompt: str = ""
    """The one prompt of all images."""
    negative_prompt: str = ""
    """What guidance above 1 leads away from."""
    null_branch: bool = False
    """Whether the network was trained on the negative prompt (or without one), so that guidance above 1 means something."""
    guidance_scale: float = 1.0
    """Classifier-free guidance unless the caller says otherwise."""
    object_token: ObjectTokenKind = "none"
    """Whether token 5 of the prompt is the object's image embedding, of the whole frame (published weights) or of a padded box."""
    reinject_background: bool = False
    """ObjectClear's step-0 rule (see ``core.sampler.Reinjection``)."""
    fusion: FusionKind = "mask"
    """Which pixels of the output may enter the photo: the mask's, those that attention points to as well, or the whole crop (``none``)."""
    mask_dilate_px: int = 0
    """Growth of the mask, in pixels of ``size``."""
    context: float = 2.0
    """Side of the crop over the longer side of the mask's box."""
    match_tone: bool = False
    """Whether the fill takes its tone from the photo around it (see ``core.crops.CropRule``)."""
    texture: Texture = "network"
    """Where the fill's texture comes from: the network, or the photo around the hole (``core.exemplar``), filled before the network looks:
    then the network decides light and colour alone, by a picture of the scene (``photo``) or of the light that changes (``light``)."""
    attention_layer: int = 0
    """Which of the cross-attention layers, in the network's order, steers the fusion; ObjectClear's is the first. Below 0: from the end."""


OBJECTCLEAR: Final = ModelCard(
    conditioning="full",
    steps=20,
    prompt=PROMPT,
    object_token="frame",
    reinject_background=True,
    fusion="attention",
    # shadows and reflections reach beyond the object, and attention can find them only inside the crop
    context=3.0,
)
"""The card of ObjectClear's published weights (ObjectClear, section 5; guidance 1 as for all numbers of the paper)."""

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "float": (int, float),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "str | None": (str, type(None)),
}
_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "conditioning": get_args(ConditioningKind),
    "latent_mask": get_args(LatentMaskRule),
    "object_token": get_args(ObjectTokenKind),
    "fusion": get_args(FusionKind),
    "texture": get_args(Texture),
    "timestep_spacing": (None, "leading", "trailing", "linspace"),
}


def read_card(folder: Path, defaults: ModelCard | None = None) -> ModelCard:
    """The folder's card over ``defaults`` (RORem's); names that are not a card's (``licence``, ``base``) are left alone.

    Raises:
        UsageError: a value is not of the right type, or none of those allowed.
    """
    defaults = defaults or ModelCard()
    path = folder / FILE_NAME
    if not path.is_file():
        return defaults
    values = {name: value for name, value in read_json(path).items() if name in ModelCard.__dataclass_fields__}
    for name, value in values.items():
        _check_value(path, name, value, getattr(defaults, name))
    return replace(defaults, **values)


def _check_value(path: Path, name: str, value: Any, default: Any) -> None:
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise UsageError(f"{path}: {name} is {value!r}; allowed: {', '.join(map(repr, _CHOICES[name]))}")
        return
    wanted = next(str(field.type) for field in fields(ModelCard) if field.name == name)
    fits = isinstance(value, _TYPES[wanted]) and (wanted == "bool" or not isinstance(value, bool))
    if not fits:
        raise UsageError(f"{path}: {name} is {value!r}, which is no {wanted}; its default is {default!r}")
    if name in {"size", "steps"} and int(value) < 1:
        raise UsageError(f"{path}: {name} is {value}; it must be at least 1")


def resolve_card(card: ModelCard, model: str, settings: EraserSettings) -> ModelCard:
    """The card with the caller's choices in place of its defaults; with an LCM LoRA, LCM's scheduler and 4 steps are the defaults.

    Raises:
        UsageError: a choice that this model has not the parts or the training for.
    """
    if settings.lcm_lora is not None:
        card = replace(card, scheduler="LCMScheduler", timestep_spacing=None, steps=LCM_STEPS)
    chosen = {
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "context": settings.context,
        "mask_dilate_px": settings.dilate_px,
        "fusion": settings.fusion,
    }
    card = replace(card, **{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
    if card.guidance_scale > 1.0 and not card.null_branch:
        raise UsageError(f"guidance {card.guidance_scale} was asked for: {model} has no trained unconditional branch; use 1")
    if card.reinject_background and card.texture == "light":
        raise UsageError(f"{model}: its card has reinject_background and texture light; a picture of light has no background to put back")
    if card.fusion == "attention" and card.object_token == "none":
        raise UsageError(f"fusion attention was asked for: {model} has no object token to attend to; use mask or none")
    return card
