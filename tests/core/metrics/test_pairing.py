"""Several models on the same items: paired differences see what two means cannot; tables say it."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from core.errors import UsageError
from core.metrics.known_sets import check_known_set
from core.metrics.pairing import as_csv, as_markdown, compared
from core.metrics.statistics import bootstrap_mean

RNG = np.random.default_rng(0)
LEVEL = RNG.normal(25, 6, 60)
FIRST = {f"i{number}": {"psnr": float(value), "lpips": None} for number, value in enumerate(LEVEL)}
SECOND = {f"i{number}": {"psnr": float(value)} for number, value in enumerate(LEVEL + RNG.normal(0.5, 0.2, 60))}


def test_paired_differences_are_surer_than_means() -> None:
    table = compared({"first": FIRST, "second": SECOND}, ("psnr", "lpips"))
    first, second = table["first"]["psnr"], table["second"]["psnr"]
    assert second["low"] < first["high"], "the means' intervals overlap"
    assert second["difference"]["low"] > 0, "the difference's is above 0"
    gains = np.array([SECOND[item]["psnr"] - FIRST[item]["psnr"] for item in sorted(FIRST)])
    assert second["difference"]["mean"] == pytest.approx(bootstrap_mean(gains).mean)
    assert "difference" not in first
    assert "lpips" not in table["first"]


def test_only_items_that_all_models_have_are_compared() -> None:
    fewer = {item: SECOND[item] for item in list(SECOND)[10:]}
    table = compared({"first": FIRST, "second": fewer}, ("psnr",))
    assert table["first"]["psnr"]["count"] == table["second"]["psnr"]["count"] == 50
    for models, says in (({"first": FIRST}, "two or more"), ({"first": FIRST, "second": {"other": {"psnr": 1.0}}}, "no item in common")):
        with pytest.raises(UsageError, match=says):
            compared(models, ("psnr",))


def test_tables_say_the_same() -> None:
    table = compared({"first": FIRST, "second": SECOND}, ("psnr",))
    lines = as_markdown(table, 2).splitlines()
    assert lines[0] == "| model | psnr |"
    assert lines[2] == f"| first | {table['first']['psnr']['mean']:.2f} |"
    assert "(**+0." in lines[3]
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["model"] for row in rows] == ["first", "second"]
    assert float(rows[1]["difference_mean"]) == table["second"]["psnr"]["difference"]["mean"]
    assert rows[0]["difference_mean"] == ""


def test_known_sets_have_their_published_size() -> None:
    for name, items in (("ober-test", 163), ("rord-val-343", 343), ("removalbench", 70), ("rorem-500", 500), ("", 7)):
        check_known_set(name, items)
    with pytest.raises(UsageError, match="343 items, and this copy has 1542"):
        check_known_set("rord-val-343", 1542)
    with pytest.raises(UsageError, match="the known sets are ober-test"):
        check_known_set("rord", 343)
