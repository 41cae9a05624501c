"""``cleanplate models``: which models are known and here, fetch one, and whether its files are whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from core import storage
from core.catalogue import KNOWN, KnownModel, find_known, licence_notice
from core.checkpoints import PARTS, Precision, locate, needed_files, read_json
from core.errors import UsageError
from core.model_files import CARD_FILE, INDEX_FILE, PROMPT_FILE, ModelFiles, find_model, other_kind, own_licence
from jobs.config import ModelsConfig

_COMPONENTS: Final = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}


def run(config: ModelsConfig) -> int:
    """List, fetch or check; exit status 1 where a checked model is not whole."""
    if config.action == "list":
        return _list(config)
    model = config.model or ""  # there is one: the configuration has seen to it
    return _pull(config, model) if config.action == "pull" else _check(config, model)


def _list(config: ModelsConfig) -> int:
    models = [{**asdict(known), "here": presence(known)} for known in KNOWN if known.kind != "data"]
    if config.json:
        print(json.dumps({"models": models}))
        return 0
    rows: list[tuple[str, ...]] = [("name", "kind", "licence", "commercial use", "here", "what it is")]
    rows += [tuple(str(model[key]) for key in ("name", "kind", "licence", "commercial", "here", "summary")) for model in models]
    _print_rows(rows)
    for model in models:
        for text in (model["notes"], model["get"]):
            if text:
                print(f"{model['name']}: {text}")
    return 0


def presence(known: KnownModel) -> str:
    """``yes``, ``no`` or ``partly``: whether a model can be used without fetching anything; ``-`` where only its user knows.

    Neither hub nor store is asked.
    """
    if not known.hub:
        return "yes" if known.kind in {"remover", "algorithm"} else "-"
    try:
        locate(known.name, fetch=False)
    except UsageError:
        return "no"
    try:
        find_model(known.name, fetch=False)
    except UsageError:
        return "partly"
    return "yes"


def _pull(config: ModelsConfig, model: str) -> int:
    root = _fetch(model, config.precision)
    if root is None:
        _finish(config, {"model": model, "folder": None, "files": 0, "bytes": 0}, f"{model} is an algorithm: there is nothing to fetch")
        return 0
    kind = other_kind(root)
    files = None if kind else find_model(model, precision=config.precision)
    plan = list(_flat(root) if files is None else _whole(files, config.precision))
    folder = root
    if config.output is not None:
        folder = _copy(plan, files, config.output)
    size = sum(path.stat().st_size for _, path in plan)
    summary = {
        "model": model,
        "kind": "adapter" if files is None else files.kind,
        "folder": str(folder),
        "files": len(plan),
        "bytes": size,
        "licence": _licence(model, files),
    }
    lines = [f"{model} is {kind}"] if kind else []
    lines += [f"{folder}: {len(plan)} files, {size / 1e6:,.1f} MB", f"licence: {summary['licence'] or 'not known here; see its page'}"]
    _finish(config, summary, "\n".join(lines))
    return 0


def _fetch(model: str, precision: Precision) -> Path | None:
    """The model's own folder, fetched where need be; None for an algorithm.

    Raises:
        UsageError: it is known, but on no hub or no model; or ``locate`` says no.
    """
    known = find_known(model)
    if known is not None and known.kind == "algorithm":
        return None
    if known is not None and known.kind == "data":
        raise UsageError(f"{model} is a data set and no model ({known.licence}); {known.get}")
    if known is not None and known.get is not None and not known.hub:
        raise UsageError(f"{model} is on no hub: {known.get}")
    return locate(model, precision=precision)


def _licence(model: str, files: ModelFiles | None) -> str | None:
    known = find_known(model)
    stated = known.licence if known else own_licence(files.root) if files is not None else ""
    return stated or licence_notice(model, objectclear=files is not None and files.kind == "objectclear")


def _flat(root: Path) -> Iterator[tuple[str, Path]]:
    """The files of a LoRA or a discriminator, with the names that they have; a discriminator may bring its base."""
    names = (f"discriminator/{path.relative_to(root).as_posix()}" for path in root.rglob("*") if path.is_file())
    found = (name.removeprefix("discriminator/") for name in needed_files(names))
    yield from ((name, root / name) for name in found)


def _whole(files: ModelFiles, precision: Precision) -> Iterator[tuple[str, Path]]:
    """The files of a model and of what it takes from its base, named as in one diffusers folder."""
    folders: dict[str, Path | None] = {
        "unet": files.unet,
        "vae": files.vae,
        "scheduler": files.scheduler,
        "image_prompt_encoder": files.image_encoder,
        "postfuse_module": files.fuse_module,
        "discriminator": files.discriminator,
        "lcm": files.root / "lcm",
        **{name: files.prompt / name for name in PARTS if name.startswith(("text_encoder", "tokenizer"))},
    }
    for part, folder in folders.items():
        if folder is not None and folder.is_dir():
            # a lone UNet lies at the top, where files of the whole model may be
            foreign = {CARD_FILE, PROMPT_FILE, INDEX_FILE} if folder == files.root else set()
            inside = folder.rglob("*") if part == "discriminator" else folder.iterdir()
            own = (f"{part}/{path.relative_to(folder).as_posix()}" for path in inside if path.is_file() and path.name not in foreign)
            yield from ((name, folder / name.removeprefix(f"{part}/")) for name in needed_files(own, precision=precision))
    for name, path in ((PROMPT_FILE, files.prompt / PROMPT_FILE), (CARD_FILE, files.root / CARD_FILE)):
        if path.is_file():
            yield name, path


def _copy(plan: Sequence[tuple[str, Path]], files: ModelFiles | None, output: str) -> Path:
    """Write the planned files below ``output``, each in one move, and last of all the index that makes the folder a model.

    Raises:
        UsageError: it is no local folder, or holds other files.
    """
    if storage.is_s3(output):
        raise UsageError(f"--output is {output}; models pull writes a local folder only: upload that one")
    folder = Path(storage.normalize_uri(output))
    store = storage.LocalStorage()
    names = {name for name, _ in plan} | ({INDEX_FILE} if files is not None else set())
    others = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in names]
    if others:
        raise UsageError(f"--output {folder} holds {others[0].name}, which is not of this model; name a new or empty folder")
    for name, path in plan:
        with store.create(str(folder / name)) as target, path.open("rb") as source:
            while piece := source.read(16 << 20):
                target.write(piece)
    if files is not None:
        store.write(str(folder / INDEX_FILE), json.dumps(_index(files, names), indent=2).encode() + b"\n")
    return folder


def _index(files: ModelFiles, names: set[str]) -> dict[str, Any]:
    """``model_index.json`` of the whole model: its own, its base's, or one made of the parts that it has."""
    for root in (files.root, files.prompt, files.vae.parent):
        if (root / INDEX_FILE).is_file():
            return read_json(root / INDEX_FILE)
    scheduler = str(read_json(files.scheduler / "scheduler_config.json").get("_class_name"))
    components: dict[str, Any] = {
        part: list(kind) if any(name.startswith(f"{part}/") for name in names) else [None, None] for part, kind in _COMPONENTS.items()
    }
    return {"_class_name": "StableDiffusionXLInpaintPipeline", **components, "scheduler": ["diffusers", scheduler]}


def _check(config: ModelsConfig, model: str) -> int:
    known = find_known(model)
    if known is not None and known.kind == "algorithm":
        _finish(config, {"model": model, "ok": True, "parts": []}, f"{model} is an algorithm: it has no files")
        return 0
    root = _here_or_fetched(model)
    kind = other_kind(root)
    fault, parts = "", []
    if kind:
        from core.model_check import check_adapter

        parts = check_adapter(root, "adapter")
    else:
        try:
            files = _find_here_first(model)
        except UsageError as error:
            fault = str(error)
        else:
            from core.model_check import check_model

            parts = check_model(files)
    ok = not fault and all(part.ok for part in parts)
    if config.json:
        listed = [{**asdict(part), "path": str(part.path), "ok": part.ok} for part in parts]
        print(json.dumps({"model": model, "folder": str(root), "is": kind, "ok": ok, "fault": fault, "parts": listed}))
        return 0 if ok else 1
    rows = [("part", "parameters", "format", "MB", "state")]
    rows += [
        (
            part.part,
            "" if part.parameters is None else f"{part.parameters:,}",
            part.dtype or "",
            "" if part.bytes is None else f"{part.bytes / 1e6:,.1f}",
            part.fault or "ok",
        )
        for part in parts
    ]
    if kind:
        print(f"{model} is {kind}")
    if parts:
        _print_rows(rows)
    print(fault or f"{model}: {'whole' if ok else 'not whole'}")
    return 0 if ok else 1


def _here_or_fetched(model: str) -> Path:
    """The model's own folder as it is here: a check of what was pulled fetches no more. Raises UsageError where there is no such model."""
    with contextlib.suppress(UsageError):
        return locate(model, fetch=False)
    return _fetch(model, "full") or Path(model)


def _find_here_first(model: str) -> ModelFiles:
    with contextlib.suppress(UsageError):
        return find_model(model, fetch=False)
    return find_model(model)


def _finish(config: ModelsConfig, summary: dict[str, Any], text: str) -> None:
    print(json.dumps(summary) if config.json else text)


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip())
