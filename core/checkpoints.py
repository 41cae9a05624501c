"""Where a model's files are: a folder of the project, a local folder, object storage (fetched once a node), or a hub id.

What is fetched is what the networks are loaded from and nothing else: configurations, tokenizers and safetensors of the parts that are
wanted, one precision of each. A fetched folder never changes: other files at the same URI become another folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from core import storage
from core.errors import StorageError, UsageError
from core.storage import ObjectInfo

log = logging.getLogger(__name__)

Precision = Literal["full", "half"]

EMBEDDED: Final = {"tiny": Path(__file__).resolve().parent.parent / "assets" / "tiny"}
TEXT_PARTS: Final = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
PARTS: Final = ("unet", "vae", "scheduler", *TEXT_PARTS, "image_prompt_encoder", "postfuse_module", "discriminator", "lcm")
"""Folders of a model in diffusers layout that anything here reads."""
PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
HALF_MARK: Final = ".fp16"
_INDEX: Final = "model_index.json"
_PROMPT_FILE: Final = "prompt_embeds.safetensors"
_PUBLISHED_HEAD: Final = "cls_pred_branch.pt"  # the one pickle that is read, as plain tensors; see core.discriminator_files
_TEXTS: Final = (".json", ".txt", ".model")
_SAMPLE_BYTES: Final = 65_536
_PIECE_BYTES: Final = 64 << 20
_ATTEMPTS: Final = 3


def cache_folder() -> Path:
    """Where fetched models are kept: ``CLEANPLATE_CACHE``, else ``~/.cache/cleanplate``."""
    return Path(os.environ.get("CLEANPLATE_CACHE") or Path.home() / ".cache" / "cleanplate")


def locate(model: str, parts: Collection[str] | None = None, *, precision: Precision = "full", fetch: bool = True) -> Path:
    """The local folder with the files of ``model``: an embedded name, a folder, ``s3://`` folder, or hub id (``owner/name``).

    Args:
        parts: which of ``PARTS`` are to be there beside the files at the top; None: all.
        precision: which weights to fetch where a model has both: as published, or ``.fp16`` ones (half the bytes).
        fetch: False: what is not here already counts as no model; neither hub nor store is asked for files.

    Raises:
        UsageError: there is no such model, or its weights are pickles.
        StorageUnavailable: the store with an ``s3://`` model does not answer.
    """
    if model in EMBEDDED:
        return EMBEDDED[model]
    if storage.is_s3(model):
        return _from_bucket(storage.normalize_uri(model), parts, precision, fetch)
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if is_hub_id(model):
        return _from_hub(model, parts, precision, fetch)
    raise UsageError(
        f"no model {model}: give {', '.join(['opencv', 'patchmatch', *EMBEDDED])}, a folder in diffusers layout, s3://bucket/folder, "
        "or a hub id owner/name"
    )


def is_hub_id(model: str) -> bool:
    """Whether ``model`` is written as a hub id: ``owner/name``."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not model.endswith("/")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        UsageError: the file is missing or no JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path.parent} has no {path.name}: it is no model folder in diffusers layout") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a JSON {type(value).__name__}, not an object; fetch the model again")
    return value


def fingerprint(folder: Path) -> str:
    """16 hex digits for the files of a model: their names, sizes, and first and last 64 KiB, so that 5 GB need not be read.

    A ``discriminator/`` and an adapter in ``lcm/`` below the folder are models of their own and do not count.
    """
    digest = hashlib.blake2b(digest_size=8)
    files = (path for path in folder.rglob("*") if path.suffix in {".json", ".safetensors"})
    for path in sorted(path for path in files if path.relative_to(folder).parts[0] not in {"discriminator", "lcm"}):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def needed_files(names: Iterable[str], parts: Collection[str] | None = None, precision: Precision = "full") -> list[str]:
    """Which of the files of a model, named relative to its folder, are needed to load ``parts``; sorted.

    Configurations, tokenizers and safetensors; of a folder's weights in two precisions the wanted one. Pickles, ONNX, OpenVINO and Flax
    weights, parts that nothing here reads, and, beside a ``model_index.json``, whole models in one file are left out.
    """
    names = sorted(names)
    wanted = set(PARTS if parts is None else parts)
    pipeline = _INDEX in names
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        # a discriminator may bring the model that its trunk is of
        brought = f"{folder}/".startswith("discriminator/base/") and "discriminator" in wanted
        if folder and folder not in wanted and not brought:
            continue
        # without model_index.json the weights at the top are the model's own: a lone UNet, a LoRA
        own = folder != "" or file == _PROMPT_FILE or (not pipeline and "unet" in wanted)
        if file.endswith(_TEXTS) or file == _PUBLISHED_HEAD or (own and file.endswith(".safetensors")):
            by_folder.setdefault(folder, []).append(name)
    return sorted(name for found in by_folder.values() for name in _one_precision(found, precision))


def _one_precision(names: list[str], precision: Precision) -> list[str]:
    weights = [name for name in names if ".safetensors" in name and ".non_ema" not in name]
    half = [name for name in weights if HALF_MARK in name]
    full = [name for name in weights if HALF_MARK not in name]
    chosen = (half or full) if precision == "half" else (full or half)
    return [name for name in names if ".safetensors" not in name] + chosen


def _chosen_files(model: str, names: Iterable[str], parts: Collection[str] | None, precision: Precision) -> list[str]:
    """As ``needed_files``. Raises UsageError where there are none, or a part has pickles only."""
    names = list(names)
    chosen = needed_files(names, parts, precision)
    for folder in ("", *(PARTS if parts is None else parts)):
        inside = [name for name in names if name.rpartition("/")[0] == folder]
        pickles = [name for name in inside if name.endswith(PICKLES) and not name.endswith(_PUBLISHED_HEAD)]
        if pickles and not any(name.endswith(".safetensors") for name in (inside if folder else names)):
            raise UsageError(f"{model} has {pickles[0]}, a pickle, and no safetensors: pickles are never loaded; convert it to safetensors")
    if not chosen:
        raise UsageError(f"no model at {model}: there is nothing in that folder that a model is loaded from")
    return chosen


_held: dict[Path, BinaryIO] = {}
"""Fetched folders that this process may be reading, with the files whose shared locks say so."""


def _from_bucket(uri: str, parts: Collection[str] | None, precision: Precision, fetch: bool) -> Path:
    """Fetch a folder from object storage once a node; other processes wait for the one that fetches.

    The folder's name holds a digest of what was listed, so that new weights at the same URI are seen, and a broken-off fetch is taken up
    where it ended.
    """
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    key = _digest(uri, sorted(PARTS if parts is None else set(parts)), precision)
    for _ in range(_ATTEMPTS):
        listed = _listing(uri)
        chosen = {name: listed[name] for name in _chosen_files(uri, listed, parts, precision)}
        folder = models / f"{key}-{_digest(*((name, entry.size, entry.version) for name, entry in chosen.items()))}"
        _hold(folder)
        if folder.is_dir():
            return folder
        if not fetch:
            raise UsageError(f"{uri} is not fetched yet; cleanplate models pull fetches it")
        with _locked(models / f"{key}.lock"):
            if folder.is_dir():
                return folder
            unfinished = folder.with_suffix(".partial")
            log.info("fetching %s: %d files, %.1f MB", uri, len(chosen), sum(entry.size for entry in chosen.values()) / 1e6)
            for name, entry in chosen.items():
                _download(f"{uri}/{name}", unfinished / name, entry.size)
            if {name: entry for name, entry in _listing(uri).items() if name in chosen} == chosen:
                unfinished.rename(folder)
                _remove_others(models, key, folder)
                return folder
            shutil.rmtree(unfinished)
    raise StorageError(f"{uri} changed {_ATTEMPTS} times while it was fetched; run the command again when its upload is done")


def _listing(uri: str) -> dict[str, ObjectInfo]:
    """What is below a folder of a bucket, by name relative to it."""
    return {storage.relative(uri, entry.uri): entry for entry in storage.storage_for(uri).list(uri)}


def _download(uri: str, path: Path, size: int) -> None:
    """Append what is not here yet, in pieces: weights may be larger than memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store = storage.storage_for(uri)
    with path.open("ab") as file:
        if file.tell() > size:
            file.seek(0)
            file.truncate()
        while (start := file.tell()) < size:
            piece = store.read_range(uri, start, min(_PIECE_BYTES, size - start))
            if not piece:
                raise StorageError(f"{uri} ended at {start} of {size} bytes; it changed while it was read: run the command again")
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _hold(folder: Path) -> None:
    """Take the shared lock of a fetched folder until this process ends, so that no other removes it meanwhile."""
    if folder not in _held:
        file = folder.with_suffix(".use").open("wb")
        fcntl.flock(file, fcntl.LOCK_SH)
        _held[folder] = file


def _remove_others(models: Path, key: str, kept: Path) -> None:
    """Remove what older fetches of the same model left, unless a process may still be reading it."""
    for old in models.glob(f"{key}-*"):
        if not old.is_dir() or old == kept or old in _held:
            continue
        with old.with_suffix(".use").open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(old)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*values: object) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


def _from_hub(model: str, parts: Collection[str] | None, precision: Precision, fetch: bool) -> Path:
    here = _hub_cached(model)
    if not fetch:
        if here is None:
            raise UsageError(f"{model} is not fetched yet; cleanplate models pull fetches it")
        return here
    from huggingface_hub import HfApi, errors, snapshot_download

    # the parent of HfHubHTTPError is the HTTP library's, whose connection errors are no OSErrors
    failures = (errors.HTTPError, errors.HFValidationError, OSError)  # type: ignore[attr-defined]
    try:
        # list_repo_files would repeat for half a minute where there is no network
        names = [file.rfilename for file in HfApi().model_info(model).siblings or []]
    except failures as error:
        if here is None or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
            raise _no_hub_model(model, error) from error
        log.warning("the hub does not answer (%s); %s is taken as it was fetched before", _first_line(error), model)
        return here
    chosen = _chosen_files(model, names, parts, precision)
    try:
        return Path(snapshot_download(model, allow_patterns=[glob.escape(name) for name in chosen]))
    except failures as error:
        raise _no_hub_model(model, error) from error


def _no_hub_model(model: str, error: Exception) -> UsageError:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        return UsageError(f"no model {model}: it is gated; accept its terms on its page at the hub, then set HF_TOKEN")
    return UsageError(
        f"no model {model}: it is no folder here, and the hub did not give it ({_first_line(error)}); check the name and the network"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hub_cached(model: str) -> Path | None:
    """The folder into which this machine fetched a hub id before; None where it did not. Asks nobody."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    folder = repository / "snapshots" / reference.read_text().strip()
    return folder if folder.is_dir() and any(folder.iterdir()) else None
