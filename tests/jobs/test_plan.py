"""``cleanplate plan``: what it prints is what it computed, and every number says where it came from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.main import main, parse
from jobs.plan import make_plan

CALL = ["--images", "100k", "--model", "LetsThink/RORem", "--gpus", "16", "--steps", "4"]


def plan(*arguments: str) -> dict[str, Any]:
    return make_plan(parse("plan", [*CALL, *arguments]))


def test_a_plan_adds_up() -> None:
    made = plan("--price-node-hour", "24", "--price-egress-gb", "0.09", "--node-start-seconds", "300")
    assert (made["images"], made["nodes"], made["gpus"], made["bottleneck"]) == (100_000, 2, 16, "GPUs")
    assert made["hours"] >= made["hours_steady"]
    assert made["hours_steady"] == pytest.approx(100_000 / made["images_per_second"] / 3600, rel=0.01)
    assert made["cost_total"] == pytest.approx(sum(made["cost"].values()))
    assert made["cost"]["nodes"] == pytest.approx(made["hours"] * 2 * 24, rel=0.01)
    assert set(made["prices_not_given"]) == {"storage_gb_month", "thousand_requests"}
    kinds = {figure["name"]: figure["kind"] for figure in made["figures"]}
    assert kinds["a node works after"] == "given"
    assert kinds["network of a node"] == "assumed"
    assert {"measured", "counted", "published"} <= set(kinds.values())


def test_losses_show_in_time_and_egress() -> None:
    calm, lossy = plan(), plan("--losses-per-node-day", "400")
    assert lossy["simulation"]["node_losses"] > 0
    assert lossy["hours"] > calm["hours"]
    assert lossy["egress_bytes"] > calm["egress_bytes"] == calm["read_bytes"]


def test_it_prints_a_table_and_where_each_number_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *CALL]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("waits for", "GPUs", "measured", "counted", "published", "no price given", "--seconds-per-image"):
        assert words in text
    assert main(["plan", *CALL, "--json", "--no-simulate"]) == 0
    assert json.loads(capsys.readouterr().out)["simulation"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "lots"], "is no number of images"),
        (["--images", "10", "--gpus", "12"], "is no multiple of --gpus-per-node 8"),
        (["--images", "10", "--model", "no/figure", "--gpus", "8"], "no figure for the model no/figure"),
        (["--images", "10", "--megapixels", "0"], "--megapixels is 0"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1
