"""``cleanplate stats``: what a dataset holds, as a table, as JSON, or as a page of plots that needs nothing else."""

from __future__ import annotations

import html
import json
import os
from itertools import pairwise
from typing import Any, Final

from core import storage
from core.statistics import AREA_EDGES, SCORE_EDGES, SIDE_EDGES, Statistics, gather
from jobs.progress import print_table
from jobs.stats_config import StatsConfig

_MOST_BARS: Final = 40
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e;background:#fff}"
    "svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#1c1c1e}rect{fill:#3a6ea5}h2{font-size:1.1rem;margin-top:2rem}"
    "@media(prefers-color-scheme:dark){body{background:#161618;color:#eee}text{fill:#eee}rect{fill:#6aa3dd}}"
)


def run(config: StatsConfig) -> int:
    """Gather and print; with ``--output`` also write the page."""
    found = gather(config.input, masks=config.masks, threads=config.threads or os.cpu_count() or 1)
    if config.output:
        output = storage.normalize_uri(config.output)
        storage.storage_for(output).write(output, page(found, storage.normalize_uri(config.input)).encode())
    values = summary(found)
    if config.json:
        print(json.dumps(values))
        return 0
    rows: dict[str, Any] = {"items": found.items}
    for name, counts in list(values.items())[1:]:
        if isinstance(counts, dict):
            shown = {key: count for key, count in counts.items() if count}
            more = len(shown) - _MOST_BARS
            rows |= {f"{name}: {key}": count for key, count in list(shown.items())[:_MOST_BARS]}
            rows |= {f"{name}: and {more} more": ""} if more > 0 else {}
        elif counts:
            rows[name] = counts
    if config.output:
        rows["page"] = output
    print_table("stats", rows)
    return 0


def summary(found: Statistics) -> dict[str, Any]:
    """The statistics as one JSON object: ``items``, ``unreadable``, and counts by value (largest first) or by bin."""
    return {
        "items": found.items,
        **{name: dict(getattr(found, name).most_common()) for name in ("categories", "origins", "verdicts")},
        "shorter side": dict(zip(_names(SIDE_EDGES, " px", open_end=True), found.sides, strict=True)),
        "mask area": dict(zip(_names(tuple(100 * edge for edge in AREA_EDGES), " %"), found.areas, strict=True)),
        "score": dict(zip(_names(SCORE_EDGES, ""), found.scores, strict=True)),
        "unreadable masks": found.unreadable,
    }


def _names(edges: tuple[float, ...], unit: str, *, open_end: bool = False) -> list[str]:
    names = [f"{low:g} to {high:g}{unit}" for low, high in pairwise(edges)]
    return [*names, f"{edges[-1]:g}{unit} and more"] if open_end else names


def page(found: Statistics, folder: str) -> str:
    """The page; every text from data is escaped, and nothing is loaded or run."""
    plots = [
        f"<h2>{html.escape(name.capitalize())}</h2>{_bars(counts)}"
        for name, counts in summary(found).items()
        if isinstance(counts, dict) and any(counts.values())
    ]
    title = html.escape(folder.rsplit("/", 1)[-1])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{found.items:,} items in {html.escape(folder)}</p>{''.join(plots)}</html>"
    )


def _bars(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:_MOST_BARS]
    most = max(count for _, count in shown) or 1
    rows = []
    for place, (name, count) in enumerate(shown):
        y = 22 * place
        label = html.escape(name if len(name) <= 30 else f"{name[:29]}…")
        wide = 480 * count / most
        rows.append(
            f'<text x="212" y="{y + 15}" text-anchor="end">{label}</text><rect x="220" y="{y + 3}" width="{wide:.1f}" height="16"/>'
            f'<text x="{226 + wide:.1f}" y="{y + 15}">{count:,}</text>'
        )
    more = f"<p>and {len(counts) - _MOST_BARS:,} more</p>" if len(counts) > _MOST_BARS else ""
    told = html.escape(", ".join(f"{name}: {count}" for name, count in shown), quote=True)
    return f'<svg viewBox="0 0 780 {22 * len(shown)}" role="img" aria-label="{told}">{"".join(rows)}</svg>{more}'
