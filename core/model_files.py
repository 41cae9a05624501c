"""Which files a model is made of: its layout, told by the files alone, and where each part is.

Known layouts: a diffusers pipeline folder (SDXL-inpainting and its children), the same with ``image_prompt_encoder/`` and
``postfuse_module/`` (ObjectClear), and a lone UNet (as RORem published it) or a folder with ``unet/`` whose other parts are those of a base
model, which ``cleanplate.json`` names as ``base``. Nothing here imports a network library.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from core import storage
from core.catalogue import SDXL_INPAINTING, warn_of_licence
from core.checkpoints import PICKLES, TEXT_PARTS, Precision, fingerprint, is_hub_id, locate, read_json
from core.errors import UsageError
from core.weights import read_header, weight_files, weights_stem

ModelKind = Literal["remover", "objectclear"]

CARD_FILE: Final = "cleanplate.json"
INDEX_FILE: Final = "model_index.json"
PROMPT_FILE: Final = "prompt_embeds.safetensors"
LORA_FILE: Final = "pytorch_lora_weights.safetensors"
HEAD_FILES: Final = ("cls_pred_branch.pt", "cls_pred_branch.safetensors")
TEXT_ENCODERS: Final = ("text_encoder", "text_encoder_2")
_BASE_PARTS: Final = ("vae", "scheduler", *TEXT_PARTS, "image_prompt_encoder", "postfuse_module")
_MOST_BASES: Final = 4


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the parts of an eraser's model are on this machine.

    Attributes:
        model: as it was named.
        kind: ``objectclear`` where there is a fuse module, else ``remover``.
        root: folder of the model itself: its card is here, its fingerprint is of this.
        unet, vae, scheduler: their folders; those of a base model where the model has none.
        prompt: folder with ``prompt_embeds.safetensors``, or with the text encoders and tokenizers.
        image_encoder: ObjectClear's ``image_prompt_encoder/``.
        fuse_module: ObjectClear's ``postfuse_module/``.
        discriminator: ``discriminator/`` of the model.
    """

    model: str
    kind: ModelKind
    root: Path
    unet: Path
    vae: Path
    scheduler: Path
    prompt: Path
    image_encoder: Path | None = None
    fuse_module: Path | None = None
    discriminator: Path | None = None

    def fingerprint(self) -> str:
        """``core.checkpoints.fingerprint`` of the root, and of the parts that come from a base model."""
        parts = (self.vae, self.scheduler, self.prompt, self.image_encoder, self.fuse_module)
        foreign = sorted({path for path in parts if path is not None and path != self.root and self.root not in path.parents})
        return "-".join([fingerprint(self.root), *(fingerprint(path) for path in foreign)])


def find_model(model: str, *, precision: Precision = "full", fetch: bool = True) -> ModelFiles:
    """Find (and, once a node, fetch) the files of an eraser's model and say what each is for.

    A non-commercial licence is logged once a process.

    Args:
        model: ``tiny``, a folder, an ``s3://`` folder, or a hub id.
        precision, fetch: see ``core.checkpoints.locate``.

    Raises:
        UsageError: there is no such model, parts are missing, or it is something else: a LoRA, a discriminator, a single file.
    """
    _refuse_file(model)
    root = locate(model, precision=precision, fetch=fetch)
    other = other_kind(root)
    if other:
        raise UsageError(f"{model} is {other}")
    files = _Parts(model, root, precision, fetch).files()
    if fetch:  # who only asks what is here has not picked it
        # a card that states a licence speaks for itself
        warn_of_licence(model, objectclear=files.kind == "objectclear" and not own_licence(root))
    return files


def own_licence(root: Path) -> str:
    """What the folder's own card says of its licence; empty where it says nothing."""
    return str(read_json(root / CARD_FILE).get("licence", "")) if (root / CARD_FILE).is_file() else ""


@dataclass
class _Parts:
    """The search for the parts of one model, through its bases."""

    model: str
    root: Path
    precision: Precision
    fetch: bool

    def files(self) -> ModelFiles:
        lone = is_lone_unet(self.root)
        found: dict[str, Path] = {"unet": self.root} if lone else {}
        self._search(self.model, self.root, found)
        objectclear = "postfuse_module" in found or _pipeline_class(self.root) == "ObjectClearPipeline"
        missing = [f"{name}/" for name in ("unet", "vae", "scheduler") if name not in found]
        if "prompt" not in found:
            missing.append(f"{PROMPT_FILE}, or {', '.join(f'{name}/' for name in TEXT_PARTS)}")
        if objectclear:
            missing += [f"{name}/" for name in ("image_prompt_encoder", "postfuse_module") if name not in found]
        if not lone and "unet" in found and not (self.root / INDEX_FILE).is_file() and self._base(self.root) is None:
            missing.append(INDEX_FILE)
        if missing:
            raise UsageError(self._lacks(missing, nothing=not found))
        self._check(found)
        discriminator = self.root / "discriminator"
        return ModelFiles(
            model=self.model,
            kind="objectclear" if objectclear else "remover",
            root=self.root,
            image_encoder=found.get("image_prompt_encoder") if objectclear else None,
            fuse_module=found.get("postfuse_module"),
            discriminator=discriminator if discriminator.is_dir() else None,
            **{name: found[name] for name in ("unet", "vae", "scheduler", "prompt")},
        )

    def _search(self, model: str, root: Path, found: dict[str, Path]) -> None:
        """Take from ``root``, then from its base and the base's base, what is not yet found."""
        for depth in range(_MOST_BASES):
            for name in ("vae", "scheduler", "image_prompt_encoder", "postfuse_module", *(("unet",) if depth == 0 else ())):
                if (root / name).is_dir():
                    found.setdefault(name, root / name)
            if (root / PROMPT_FILE).is_file() or all((root / name).is_dir() for name in TEXT_PARTS):
                found.setdefault("prompt", root)
            base = self._base(root)
            if "unet" not in found or base is None or {"vae", "scheduler", "prompt"} <= set(found):
                return
            text = () if "prompt" in found else TEXT_PARTS
            wanted = [name for name in _BASE_PARTS if name not in found and (name not in TEXT_PARTS or name in text)]
            model, root = self._locate_base(model, root, base, wanted)
        raise UsageError(f"{self.model}: its base has a base, and so on, {_MOST_BASES} times; name in cleanplate.json one that is whole")

    def _base(self, root: Path) -> str | None:
        """The model that a folder takes missing parts from: what its card says, else, for a lone UNet, SDXL-inpainting."""
        card: dict[str, Any] = read_json(root / CARD_FILE) if (root / CARD_FILE).is_file() else {}
        base = card.get("base")
        if base is not None and not (isinstance(base, str) and base):
            raise UsageError(f"{root / CARD_FILE}: base is {base!r}; it must be the name of a model")
        return base or (SDXL_INPAINTING if is_lone_unet(root) else None)

    def _locate_base(self, model: str, root: Path, base: str, parts: Collection[str]) -> tuple[str, Path]:
        """The base's name in full, and its folder; names that begin with a dot are relative to the folder that holds the card."""
        if (root / base).is_dir():
            return str(root / base), (root / base).resolve()
        if base.startswith(".") and storage.is_s3(model):
            bucket, _, key = storage.normalize_uri(model).removeprefix("s3://").partition("/")
            base = f"s3://{bucket}/{posixpath.normpath(posixpath.join(key, base))}"
        elif base.startswith("."):
            raise UsageError(f"{root / CARD_FILE}: its base {base} is no folder beside it; name a folder, s3://bucket/folder or a hub id")
        try:
            return base, locate(base, parts, precision=self.precision, fetch=self.fetch)
        except UsageError as error:
            raise UsageError(f"{model} takes {', '.join(parts)} from its base {base}: {error}") from error

    def _lacks(self, missing: list[str], *, nothing: bool) -> str:
        if nothing:
            return (
                f"{self.model} is no model: {self.root} has neither {INDEX_FILE} and unet/ (diffusers layout) nor the config.json of a "
                "UNet2DConditionModel (a lone UNet)"
            )
        return f"{self.model} is not whole: it lacks {'; '.join(missing)}; fetch the model again, or name a base in its {CARD_FILE}"

    def _check(self, found: dict[str, Path]) -> None:
        """Raises UsageError where a part's folder lacks its configuration or its weights."""
        parts = {name: folder for name, folder in found.items() if name != "prompt"}
        if not (found["prompt"] / PROMPT_FILE).is_file():
            parts |= {name: found["prompt"] / name for name in TEXT_ENCODERS}
        for name, folder in parts.items():
            config = folder / ("scheduler_config.json" if name == "scheduler" else "config.json")
            if not config.is_file():
                raise UsageError(f"{self.model} is not whole: {folder} lacks {config.name}; fetch the model again")
            if name != "scheduler":
                weight_files(folder, weights_stem(name))


def is_lone_unet(folder: Path) -> bool:
    """Whether ``folder`` is itself that of a UNet: its ``config.json`` says so."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("_class_name") == "UNet2DConditionModel"


def _pipeline_class(root: Path) -> str | None:
    return read_json(root / INDEX_FILE).get("_class_name") if (root / INDEX_FILE).is_file() else None


def other_kind(root: Path) -> str | None:
    """What a folder is that is no eraser's model, and which flag takes it; None where it may be one."""
    if (root / INDEX_FILE).is_file() or (root / "unet").is_dir() or is_lone_unet(root):
        return None
    if any((root / name).is_file() for name in HEAD_FILES):
        return "RORem's discriminator and no model that erases: give it as --discriminator"
    if (root / "config.json").is_file() and "lora_rank" in read_json(root / "config.json"):
        return "a discriminator and no model that erases: give it as --discriminator"
    if any(_is_lora(path) for path in sorted(root.glob("*.safetensors"))):
        return "a LoRA and no model that erases: give it as --lcm-lora, with the model that it was trained on as --model"
    return None


def _is_lora(path: Path) -> bool:
    return path.name == LORA_FILE or any(".lora" in name or ".lora_" in name or "lora_unet_" in name for name in read_header(path))


def _refuse_file(model: str) -> None:
    """Raises UsageError for a file, with what it is and which flag takes it."""
    path = Path(model).expanduser()
    if is_hub_id(model) and not path.exists():
        return
    if not path.is_file():
        return
    if path.suffix in PICKLES:
        raise UsageError(f"{model} is a pickle: pickles are never loaded; convert it to safetensors in a folder in diffusers layout")
    if path.suffix == ".safetensors" and _is_lora(path):
        raise UsageError(
            f"{model} is a LoRA and no model that erases: give it as --lcm-lora, with the model that it was trained on as --model"
        )
    raise UsageError(f"{model} is a single file; a model is a folder in diffusers layout: convert it")
