"""The report: one self-contained HTML page about a dataset, with counts, scores, failures and before / mask / after pictures.

Gathering reads ids, scores and verdicts of all shards (small columns, by ranged reads), chooses the items for the page, and then makes the
pictures of the chosen ones one record at a time; what is kept of a record are its encoded thumbnails. Rendering fills ``report.html``.

Everything that comes from data is escaped; beside that the page's policy lets no script run but its own and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from core import storage
from core.errors import ItemError, ObjectMissing, StorageError, UsageError
from core.images import Pixels, decode_photo, decode_picture
from core.ledger import READERS, list_output, read_columns
from core.masks import decode_mask
from core.plan import read_plan_info
from core.readers import parquet_source
from core.record import VERDICTS, schema_problem

BINS: Final = 20
EXAMPLES: Final = 5
KINDS: Final = ("accepted", "uncertain", "rejected", "unscored")

# 200 items of 384 x 384 pixels: 3 x 200 WebP files of 16 to 28 kB, 19 MB as data URIs (JPEG of quality 85: 31 MB)
_QUALITY: Final = {"before": 80, "mask": 65, "after": 80}
_MASK_RED: Final = np.array([228, 40, 48], dtype=np.float32)
_COLUMNS: Final = ("id", "category", "score", "verdict", "width", "height", "source", "mask", "erased", "target")
_TEMPLATE: Final = Path(__file__).with_name("report.html")


@dataclass(frozen=True, slots=True)
class Item:
    """What the page shows of one record.

    Attributes:
        number: place on the page as it opens (highest score first, then the unscored by id), from 1.
        values: id, category, score, verdict (or ``unscored``), width and height in pixels.
        pictures: data URIs of ``before``, ``mask`` and ``after``; of what cannot be shown, why.
        size: (width, height) of the thumbnails in pixels.
        after: name of the last picture: ``After``, or ``Ground truth`` where nothing was erased.
    """

    number: int
    values: Mapping[str, Any]
    pictures: Mapping[str, str]
    size: tuple[int, int]
    after: str = "After"


@dataclass(slots=True)
class Overview:
    """A dataset as the head of the page tells it; ``chosen`` are the (shard, row, number) of the items to show, in the shards' order."""

    folder: str
    finished: bool
    settings: dict[str, Any]
    items_in: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((BINS, len(KINDS)), dtype=np.int64))
    chosen: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def out(self) -> int:
        return self.verdicts.total()

    @property
    def failed(self) -> int:
        return self.errors.total()


def read_overview(folder: str, limit: int) -> Overview:
    """Everything about the dataset in ``folder`` but its pictures; at most ``limit`` items are chosen, 0 is all.

    Raises:
        UsageError: there is no dataset, and no job has begun one.
        StorageError: the store refused, or a shard is damaged.
    """
    folder = storage.normalize_uri(folder)
    found = ", ".join(storage.relative(folder, entry.uri) for entry in islice(storage.storage_for(folder).list(folder), 5))
    files = [storage.join(folder, name) for name in ("dataset.json", ".cleanplate/job.json")]
    dataset, job = map(_json_object, files) if found else (None, None)  # a file has nothing below it
    parts, failure_parts = list_output(folder)
    if dataset is None and job is None and not parts and not failure_parts:
        raise UsageError(f"{folder} is no dataset: found {found or 'nothing'}; give the output of a job (part-*.parquet, dataset.json)")
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(_read_index, parts))
    settings = dict((dataset or {}).get("configuration") or (job or {}).get("settings") or {})
    settings.update((f"version of {name}", version) for name, version in ((dataset or {}).get("versions") or {}).items())
    overview = Overview(folder, dataset is not None, settings)
    for table in tables:
        kinds = pc.index_in(table["verdict"], pa.array(KINDS)).fill_null(KINDS.index("unscored")).to_numpy()
        overview.verdicts.update(dict(zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True)))
        scores = table["score"].to_numpy()
        scored = ~np.isnan(scores)
        # float32 puts 0.35 a hair below itself: without the small step it would be counted in the bin that ends there
        bins = np.clip(np.floor(scores[scored].astype(np.float64) * BINS + 1e-5), 0, BINS - 1).astype(np.int64)
        np.add.at(overview.histogram, (bins, kinds[scored]), 1)
    for uri in failure_parts:
        for row in read_columns(uri, ("id", "uri", "stage", "error", "message")).to_pylist():
            overview.errors[row["error"]] += 1
            examples = overview.examples.setdefault(row["error"], [])
            if len(examples) < EXAMPLES:
                examples.append(row)
    plan = None if dataset else read_plan_info(storage.join(folder, ".cleanplate", "plan"))
    known = plan.items if plan else ((dataset or {}).get("counts") or {}).get("in")
    overview.items_in = known if isinstance(known, int) else overview.out + overview.failed
    overview.chosen = _choose(parts, tables, limit)
    return overview


def _json_object(uri: str) -> dict[str, Any] | None:
    try:
        value = json.loads(storage.storage_for(uri).read(uri))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise UsageError(f"{uri} is not JSON ({error}); it was not written by cleanplate: give another --input") from error
    return value if isinstance(value, dict) else {}


def _open_shard(uri: str) -> pq.ParquetFile:
    """One shard, read in small pieces: a shard may be larger than the memory at hand."""
    try:
        file = pq.ParquetFile(parquet_source(uri), buffer_size=1 << 20)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{uri} is damaged ({str(error).splitlines()[0]}); move it away, and run the job again") from error
    problem = schema_problem(file.schema_arrow)
    if problem:
        raise UsageError(f"{uri} is no shard of a dataset: {problem}")
    return file


def _read_index(uri: str) -> pa.Table:
    """``id``, ``score`` (float32, null where there is none) and ``verdict`` of a shard."""
    file = _open_shard(uri)
    table = file.read([name for name in ("id", "score", "verdict") if name in file.schema_arrow.names])
    score = table["score"].cast(pa.float32()) if "score" in table.column_names else pa.nulls(len(table), pa.float32())
    verdict = table["verdict"] if "verdict" in table.column_names else pa.nulls(len(table), pa.string())
    score = pc.if_else(pc.is_finite(score), score, pa.scalar(None, pa.float32()))
    return pa.table({"id": table["id"].cast(pa.string()), "score": score, "verdict": verdict.cast(pa.string())})


def _choose(parts: Sequence[str], tables: Sequence[pa.Table], limit: int) -> list[tuple[str, int, int]]:
    if not tables:
        return []
    table = pa.concat_tables(tables)
    order = pc.sort_indices(table, sort_keys=[("score", "ascending"), ("id", "ascending")]).to_numpy()  # nulls last
    scored = len(table) - table["score"].null_count
    picks = even_picks(scored, len(table) - scored, limit)
    picked = order[picks]
    # highest score first, then those without, by id
    share = int((picks < scored).sum())
    picked = np.concatenate([picked[:share][::-1], picked[share:]])
    starts = np.cumsum([0, *(len(part) for part in tables)])
    shards = np.searchsorted(starts, picked, side="right") - 1
    places = zip(shards, picked - starts[shards], range(1, len(picked) + 1), strict=True)
    return [(parts[shard], int(row), number) for shard, row, number in sorted(places)]


def even_picks(scored: int, unscored: int, limit: int) -> NDArray[np.int64]:
    """Which of ``scored + unscored`` items, sorted by score and then by id, to show: (k,) rising indices, k at most ``limit``, 0 is all.

    Both kinds get their share; within each the picks are evenly spaced and hold its first and last item (from two picks on).
    """
    if not limit or scored + unscored <= limit:
        return np.arange(scored + unscored)
    share = round(limit * scored / (scored + unscored))
    share = min(max(share, min(2, limit, scored)), scored, limit)
    plan = ((0, scored, share), (scored, unscored, min(limit - share, unscored)))
    spread = (first + np.linspace(0, count - 1, picks).round().astype(np.int64) for first, count, picks in plan)
    return np.concatenate(list(spread))


def read_items(overview: Overview, side: int) -> Iterator[Item]:
    """The chosen items in the order of the shards, one at a time; the longer side of their pictures is at most ``side`` pixels.

    Raises:
        StorageError: a shard cannot be read any more. A picture that cannot be decoded is told on its card.
    """
    wanted: dict[str, dict[int, int]] = {}
    for shard, row, number in overview.chosen:
        wanted.setdefault(shard, {})[row] = number
    for uri, rows in wanted.items():
        for row, values in _rows(_open_shard(uri), set(rows)):
            yield _item(rows[row], values, side)


def _rows(file: pq.ParquetFile, wanted: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
    starts = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))]).tolist()
    for group, (start, end) in enumerate(pairwise(starts)):
        left = wanted.intersection(range(start, end))
        batches = file.iter_batches(1, row_groups=[group], columns=columns) if left else ()
        for row, batch in enumerate(islice(batches, max(left, default=start) - start + 1), start):
            if row in left:
                yield row, batch.to_pylist()[0]


def _item(number: int, record: Mapping[str, Any], side: int) -> Item:
    data = {name: (record.get(name) or {}).get("bytes") or b"" for name in ("source", "mask", "erased", "target")}
    # a dataset without erasures, as ingest writes it, shows its ground truth
    result = "erased" if data["erased"] or not data["target"] else "target"
    width, height = record["width"] or 1, record["height"] or 1
    size = _fitted(width, height, side)
    pictures: dict[str, str] = {}
    role = "before"
    try:
        photo = decode_photo(data["source"])
        size = _fitted(photo.width, photo.height, side)
        small = _resized(photo.pixels, size)
        pictures[role] = _data_uri(small, role)
        role = "mask"
        pictures[role] = _data_uri(_marked(small, _resized(decode_mask(data["mask"], (photo.width, photo.height)).pixels, size)), role)
    except ItemError as error:
        pictures[role] = error.message
    try:
        if data[result]:
            pictures["after"] = _data_uri(_resized(decode_picture(data[result], noun="result").pixels, size), "after")
    except ItemError as error:
        pictures["after"] = error.message
    values = {name: record.get(name) for name in ("id", "category", "score", "width", "height")}
    values["verdict"] = record.get("verdict") if record.get("verdict") in VERDICTS else "unscored"
    return Item(number, values, pictures, size, "After" if result == "erased" else "Ground truth")


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    same = (pixels.shape[1], pixels.shape[0]) == size
    return pixels if same else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _marked(photo: Pixels, mask: Pixels) -> Pixels:
    """The (H, W, 3) photo, paler, with the (H, W) mask in translucent red and outlined, to be seen on red things and where it is small."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    pale = photo * np.float32(0.45) + grey * np.float32(0.55)
    share = mask[..., None].astype(np.float32) * np.float32(0.55 / 255)
    mixed = np.ascontiguousarray((pale * (1 - share) + _MASK_RED * share).round().astype(np.uint8))
    outline, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(mixed, outline, -1, [int(value) for value in _MASK_RED], 1, cv2.LINE_AA)
    return mixed


def _data_uri(pixels: Pixels, role: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_QUALITY[role], method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(overview: Overview, items: Iterable[Item], title: str | None = None) -> bytes:
    """The page as UTF-8; ``items`` in any order, taken one at a time. ``title`` is by default the name of the folder."""
    cards = {item.number: _card(item) for item in items}
    template = _TEMPLATE.read_text("utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    slots = {
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": _text(title or overview.folder.rsplit("/", 1)[-1] or overview.folder),
        "folder": _text(overview.folder),
        "notice": _notice(overview),
        "counts": _counts(overview),
        "scores": _scores(overview),
        "failures": _failures(overview),
        "configuration": _table(overview.settings),
        "shown": f"{len(cards):,} of {overview.out:,} items" + (", chosen evenly over the scores" if len(cards) < overview.out else ""),
        "cards": "\n".join(cards[number] for number in sorted(cards)) or '<p class="empty">No results.</p>',
    }
    # one pass over the template: what is put in is never looked at again, whatever braces it holds
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], template).encode("utf-8", "replace")


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _notice(overview: Overview) -> str:
    done = overview.out + overview.failed
    text = f"{overview.items_in:,} items went in, and {done:,} are here: run cleanplate verify."
    if not overview.finished:
        text = f"Job not finished: {done:,} of {overview.items_in:,} items are done. The page shows what is written so far."
    return f'<p class="notice" role="status">{text}</p>' if done != overview.items_in or not overview.finished else ""


def _counts(overview: Overview) -> str:
    verdicts, judged = overview.verdicts, overview.out - overview.verdicts["unscored"]
    share = f"{100 * verdicts['accepted'] / judged:.1f}\u2009%" if judged else "\u2013"
    parts = [*((kind, verdicts[kind]) for kind in KINDS), ("failed", overview.failed)]
    bar = "".join(f'<i class="{kind}" style="flex-grow:{count}"></i>' for kind, count in parts if count)
    cells = [("in", "In", f"{overview.items_in:,}"), *((kind, kind.capitalize(), f"{count:,}") for kind, count in parts)]
    cells.append(("share", f"Accepted of {judged:,} judged" if judged else "Accepted share", share))
    listed = "".join(f'<div class="{kind}"><dt>{label}</dt><dd>{value}</dd></div>' for kind, label, value in cells)
    return f'<dl class="counts">{listed}</dl><div class="share-bar" aria-hidden="true">{bar}</div>'


def _scores(overview: Overview) -> str:
    """The histogram: places along the x axis in per cent and heights in pixels, so that it has any width and its letters one size."""
    stacks, top, height = overview.histogram, 40, 150
    most = int(stacks.sum(axis=1).max())
    if not most:
        return '<p class="muted">No item has a score.</p>'
    step = next(step for power in range(12) for step in (10**power, 2 * 10**power, 5 * 10**power) if most / step <= 4)
    base, ceiling = top + height, step * -(-most // step)
    ticks = [(f"{value:,}", base - height * value / ceiling) for value in range(0, ceiling + 1, step)]
    numbers = "".join(f'<text x="100%" y="{y:.1f}" text-anchor="end">{text}</text>' for text, y in [("items", 8), *ticks])
    shapes = [f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>' for _, y in ticks]
    for index, stack in enumerate(stacks):
        y, place = float(base), f'x="{100 * index / BINS + 0.5}%" width="{100 / BINS - 1}%"'
        told = ", ".join(f"{count:,} {kind}" for kind, count in zip(KINDS, stack, strict=True) if count)
        shapes.append(f"<g><title>{index / BINS:.2f} to {(index + 1) / BINS:.2f}: {told or 'none'}</title>")
        for kind, count in zip(KINDS, stack, strict=True):
            tall = height * count / ceiling
            y -= tall
            if count:
                shapes.append(f'<rect class="{kind}" {place} y="{y:.1f}" height="{max(tall, 1):.1f}"/>')
        shapes.append("</g>")
    for row, (name, words) in enumerate((("threshold", "accepted above"), ("uncertain", "uncertain from"))):
        value = overview.settings.get(name)
        if isinstance(value, int | float) and 0 <= value <= 1:
            anchor, shift, y = ("end", -6, 12 + 17 * row) if value > 0.4 else ("start", 6, 12 + 17 * row)
            shapes.append(f'<line class="limit" x1="{100 * value:g}%" x2="{100 * value:g}%" y1="{y - 10}" y2="{base}"/>')
            shapes.append(f'<text class="strong" x="{100 * value:g}%" dx="{shift}" y="{y}" text-anchor="{anchor}">{words} {value:g}</text>')
    for value in range(0, 101, 20):
        anchor = {0: "start", 100: "end"}.get(value, "middle")
        shapes.append(f'<text x="{value}%" y="{base + 18}" text-anchor="{anchor}">{value / 100:.1f}</text>')
    shapes.append(f'<text x="50%" y="{base + 38}" text-anchor="middle">score</text>')
    label = f"Histogram of {int(stacks.sum()):,} scores from 0 to 1; up to {most:,} items in one of {BINS} bins"
    axis = f'<svg class="axis" height="{base + 44}" aria-hidden="true">{numbers}</svg>'
    return f'<div class="histogram">{axis}<svg height="{base + 44}" role="img" aria-label="{label}">{"".join(shapes)}</svg></div>'


def _failures(overview: Overview) -> str:
    if not overview.errors:
        return '<p class="muted">Nothing failed.</p>'
    blocks = []
    for reason, count in sorted(overview.errors.items(), key=lambda pair: (-pair[1], pair[0])):
        rows = "".join(
            f"<li><p><b><bdi>{_text(row['id'])}</bdi></b> <span class='chip'>{_text(row['stage'])}</span></p><p>{_text(row['message'])}</p>"
            + (f"<p class='uri'><bdi>{_text(row['uri'])}</bdi></p>" if row["uri"] else "")
            + "</li>"
            for row in overview.examples[reason]
        )
        more = f'<p class="muted">and {count - EXAMPLES:,} more</p>' if count > EXAMPLES else ""
        blocks.append(f"<details><summary><code>{_text(reason)}</code><span>{count:,}</span></summary><ul>{rows}</ul>{more}</details>")
    return "".join(blocks)


def _table(values: Mapping[str, Any]) -> str:
    if not values:
        return '<p class="muted">Not recorded.</p>'
    told = {name: "\u2013" if value is None else value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    rows = "".join(f"<tr><th scope='row'>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in sorted(told.items()))
    return f"<table><tbody>{rows}</tbody></table>"


def _card(item: Item) -> str:
    values, (width, height) = item.values, item.size
    name, score, verdict = _text(values["id"]), values["score"], values["verdict"]
    figures = []
    for role, label in (("before", "Before"), ("mask", "Mask"), ("after", item.after)):
        source = item.pictures.get(role, "no erasure" if role == "after" else "not shown")
        picture = f'<p class="missing">{_text(source)}</p>'
        if source.startswith("data:image/"):
            picture = f'<img src="{source}" alt="{label}: {name}" width="{width}" height="{height}">'
            if role == "after":
                picture = f'<button type="button" class="open" aria-haspopup="dialog">{picture}</button>'
        figures.append(f'<figure class="{role}"><div class="picture">{picture}</div><figcaption>{label}</figcaption></figure>')
    category = f'<span class="chip"><bdi>{_text(values["category"])}</bdi></span>' if values["category"] else ""
    told = "" if score is None else f'<span class="score" title="score">{score:.2f}</span>'
    return (
        f'<article class="card" data-link="item-{item.number}" data-id="{name}" data-category="{_text(values["category"] or "")}" '
        f'data-score="{"" if score is None else score}" data-verdict="{verdict}" style="--w:{width};--h:{height}">'
        f'<header><h3 title="{name}"><bdi>{name}</bdi></h3>{category}<span class="size">{values["width"]} × {values["height"]}</span>'
        f'{told}<span class="badge {verdict}">{verdict}</span></header><div class="pictures">{"".join(figures)}</div></article>'
    )
