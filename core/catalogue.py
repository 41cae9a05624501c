"""The models that are known by name: what each is, its licence, and how to get it. Weights are never bundled, but for ``tiny``.

Facts are those of the papers, the published model pages and READMEs; what is not known there is left out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal

log = logging.getLogger(__name__)

CatalogueKind = Literal["remover", "objectclear", "algorithm", "lora", "discriminator", "data"]
CommercialUse = Literal["yes", "with use limits", "no"]

SDXL_INPAINTING: Final = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"
_OPENRAIL: Final = "CreativeML OpenRAIL++-M"
_S_LAB: Final = "NTU S-Lab licence, non-commercial"
_ROREM_LICENCE: Final = f"Apache-2.0 (README); its weights derive from SDXL: {_OPENRAIL}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One entry of the catalogue.

    Attributes:
        name: what ``--model`` (or the flag that takes its kind) is given; for what is on no hub, a name for the table only.
        kind: ``remover`` or ``objectclear`` (conditioning of the network), ``algorithm``, ``lora``, ``discriminator``, or ``data``.
        summary: what it is.
        licence: in words.
        commercial: whether commercial use is allowed; ``with use limits``: yes, but for what the licence forbids to anyone.
        hub: whether ``name`` is a hub id.
        steps: network calls per image by default.
        size: side in pixels of the network's pictures by default.
        download_bytes: of its weights, where that was published.
        get: how to get it where it is on no hub.
        notes: what one should know before using it.
    """

    name: str
    kind: CatalogueKind
    summary: str
    licence: str
    commercial: CommercialUse
    hub: bool = False
    steps: int | None = None
    size: int | None = None
    download_bytes: int | None = None
    get: str | None = None
    notes: str | None = None


KNOWN: Final = (
    KnownModel(
        name="tiny",
        kind="remover",
        summary="embedded, for demos, tests and laptops; with a discriminator",
        licence="Apache-2.0",
        commercial="yes",
        steps=4,
        size=128,
    ),
    KnownModel(
        name="opencv",
        kind="algorithm",
        summary="Telea's inpainting, the classical baseline; no weights",
        licence="Apache-2.0",
        commercial="yes",
    ),
    KnownModel(
        name="patchmatch",
        kind="algorithm",
        summary="texture copied from around the hole, the better classical baseline; no weights",
        licence="Apache-2.0",
        commercial="yes",
    ),
    KnownModel(
        name=SDXL_INPAINTING,
        kind="remover",
        summary="SDXL-Inpainting 0.1, from which RORem and ObjectClear were trained",
        licence=_OPENRAIL,
        commercial="with use limits",
        hub=True,
        steps=50,
        size=512,
        notes="fills a hole with something new more often than it removes: 7.6 to 15.8 % judged successful in RORem's paper",
    ),
    KnownModel(
        name="LetsThink/RORem",
        kind="remover",
        summary="RORem's remover (CVPR 2025); a lone UNet on SDXL-Inpainting 0.1",
        licence=_ROREM_LICENCE,
        commercial="with use limits",
        hub=True,
        steps=50,
        size=512,
        notes="15 to 30 steps also work, by its README; a folder downloaded from the Google Drive link there does as well as the hub id",
    ),
    KnownModel(
        name="RORem LCM LoRA",
        kind="lora",
        summary="distilled to 4 steps; rank 64",
        licence=_ROREM_LICENCE,
        commercial="with use limits",
        steps=4,
        size=512,
        get="download its folder from the Google Drive link in RORem's README; give the folder as --lcm-lora with RORem as --model",
    ),
    KnownModel(
        name="RORem discriminator",
        kind="discriminator",
        summary="judges erasures at 512 pixels; LoRA and head on SDXL-Inpainting 0.1",
        licence=_ROREM_LICENCE,
        commercial="with use limits",
        size=512,
        get="download its folder from the Google Drive link in RORem's README; give the folder as --discriminator",
        notes="trained on RORem's own results; on other models' results its score is not to be trusted",
    ),
    KnownModel(
        name="jixin0101/ObjectClear",
        kind="objectclear",
        summary="removes shadows and reflections too (CVPR 2026)",
        licence=_S_LAB,
        commercial="no",
        hub=True,
        steps=20,
        size=512,
    ),
    KnownModel(
        name="sczhou/OBERDataset_ObjectClear",
        kind="data",
        summary="OBER: pairs with and without an object and its effects",
        licence=_S_LAB,
        commercial="no",
        hub=True,
        download_bytes=26_080_000_000 + 313_000_000,
        get="accept its terms on its page at the hub",
        notes="gated; what is trained on it is for non-commercial use too",
    ),
)

_warned: set[str] = set()


def find_known(model: str) -> KnownModel | None:
    """The entry of that name; None where it is not in the catalogue."""
    return next((known for known in KNOWN if known.name == model), None)


def licence_notice(model: str, *, objectclear: bool = False) -> str | None:
    """One line about a licence that forbids commercial use; None where none is known to do so.

    Args:
        objectclear: whether the model's files are in ObjectClear's layout: under whatever name, its weights and what was trained from
            them have its licence.
    """
    known = find_known(model)
    if known is not None and known.commercial == "no":
        return f"{model} is for non-commercial use only ({known.licence.partition(',')[0]})"
    if objectclear:
        return f"{model} has ObjectClear's layout; ObjectClear and what is trained from it are for non-commercial use only"
    return None


def warn_of_licence(model: str, *, objectclear: bool = False) -> None:
    """Log ``licence_notice`` as a warning, once a process for each model."""
    notice = licence_notice(model, objectclear=objectclear)
    if notice is not None and model not in _warned:
        _warned.add(model)
        log.warning("%s", notice)
