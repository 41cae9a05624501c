"""Training on cached latents (``core.latent_cache``): which moments of a row stand for the pictures that an item is trained on.

What can be cached is what augmentation leaves alone: the view is fixed, colours stay, and mirroring chooses between the two orientations.
The moments of the target never depend on the mask. Those of the source do where it is shown masked or prefilled: they are taken only where
masks stay as they are, and are else encoded at the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from core.conditioning import ConditioningKind
from core.errors import UsageError
from core.latent_cache import CachedMoments, LatentsUnusable
from core.record import item_seed
from training.pair_augmentation import PairAugmentation
from training.triplets import AnswerColumn

if TYPE_CHECKING:
    from training.settings import TrainSettings

_CHANGING: Final = ("brightness", "contrast", "saturation", "hue", "shadow_depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSettings:
    """Which latents a training takes from its data.

    Attributes:
        vae: ``core.latent_encoding.vae_fingerprint`` of the model's autoencoder; the data's must be of the same.
        conditioning: source that the network is shown; ``full`` for a discriminator.
    """

    vae: str
    conditioning: ConditioningKind


class Choice(NamedTuple):
    """What is drawn of an item whose latents are cached: whether it is mirrored, and whether there is nothing to remove."""

    flip: bool
    blank: bool


class ItemMoments(NamedTuple):
    """(2 L, h, w) float16 or float32 of the target and of the conditioning picture; None where that is to be encoded."""

    target: np.ndarray
    source: np.ndarray | None


def latent_settings(settings: TrainSettings) -> LatentSettings | None:
    """What a training takes from its data; None where it encodes everything itself.

    Raises:
        UsageError: the model cannot be found.
    """
    if not settings.data.latents:
        return None
    from core.latent_encoding import model_vae_fingerprint
    from core.model_card import OBJECTCLEAR, read_card
    from core.model_files import find_model

    conditioning: ConditioningKind = "full" if settings.objective == "discriminator" else settings.remover.conditioning
    if settings.objective == "lcm":
        files = find_model(settings.model)
        conditioning = read_card(files.root, OBJECTCLEAR if files.kind == "objectclear" else None).conditioning
    return LatentSettings(vae=model_vae_fingerprint(settings.model), conditioning=conditioning)


def check_augmentation(augmentation: PairAugmentation) -> None:
    """Raises UsageError where colours or shadows are changed, of which a cache knows nothing."""
    changed = [f"{name} {getattr(augmentation, name)}" for name in _CHANGING if getattr(augmentation, name)]
    if changed:
        raise UsageError(
            f"data.latents takes pictures as they were encoded, and data.augmentation changes colours or light ({', '.join(changed)}): "
            "set these to 0 (shadow_depth to null), or latents to false"
        )


def draw_choice(item_id: str, augmentation: PairAugmentation, *, seed: int, epoch: int) -> Choice:
    """Of an item in an epoch, whatever worker or batch it passes through."""
    rng = np.random.Generator(np.random.PCG64(item_seed(f"orientation\0{item_id}", seed, epoch)))
    return Choice(bool(rng.random() < augmentation.flip), bool(rng.random() < augmentation.blank))


def chosen(augmentation: PairAugmentation, choice: Choice) -> PairAugmentation:
    """The augmentation that makes just this choice."""
    return replace(augmentation, flip=float(choice.flip), blank=float(choice.blank))


def item_moments(
    found: CachedMoments, settings: LatentSettings, answer: AnswerColumn, choice: Choice, *, masks_change: bool
) -> ItemMoments:
    """The moments of an item as it is trained on.

    Args:
        found: of its row.
        answer: the column that is the target.
        choice: what was drawn of it.
        masks_change: whether its mask may differ from the row's.

    Raises:
        LatentsUnusable: another autoencoder made them, or they are of no such picture.
    """
    if found.vae != settings.vae:
        raise LatentsUnusable(
            f"the latents of the data are of autoencoder {found.vae[:12]} and the model's is {settings.vae[:12]}: run cleanplate encode "
            "with this model, or set data.latents false"
        )
    turned = int(choice.flip)
    names = ["source", *([] if choice.blank else [answer])]
    missing = [name for name in names if name not in found.moments]
    if missing:
        raise LatentsUnusable(f"the data hold no latents of {', '.join(missing)}; run cleanplate encode on data that have them")
    source, target = found.moments["source"][turned], found.moments[names[-1]][turned]
    if settings.conditioning == "full":
        return ItemMoments(target, source)
    # not even of an item with nothing to remove: whether a source is encoded must not depend on what is in a batch with it
    if masks_change or settings.conditioning not in found.moments:
        return ItemMoments(target, None)
    # with nothing to remove, every kind of source is the source itself
    return ItemMoments(target, source if choice.blank else found.moments[settings.conditioning][turned])


def check_size(size: tuple[int, int], sides: tuple[int, int]) -> None:
    """Raises LatentsUnusable where a row's pictures, ``size`` (width, height), are not as large as training pictures, ``sides``."""
    if size != sides:
        raise LatentsUnusable(
            f"the latents of the data are of pictures of {size[0]} x {size[1]} pixels and training pictures are {sides[0]} x {sides[1]}: "
            f"run cleanplate encode with --size {sides[0]}, or set data.sizes to [{size[0]}]"
        )
