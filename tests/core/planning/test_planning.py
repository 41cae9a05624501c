"""The arithmetic of a plan against the notes that it came from and against itself; the simulation against the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UsageError
from core.planning import figures
from core.planning.demand import Demand, Question, demand_of, network_tflop
from core.planning.estimate import ClusterShape, Prices, costs, estimate
from core.planning.quantity import bytes_in_words, parse_count, seconds_in_words
from core.planning.simulation import Conditions, simulate

ROOT = Path(__file__).resolve().parents[3]
SHAPE = ClusterShape(nodes=2, gpus=4, cores=32, node_gbps=10.0)
DEMAND = Demand(0.1, 0.05, 1e5, 1e6)


@pytest.mark.parametrize("figure", figures.all_measured(), ids=lambda figure: figure.name)
def test_a_measured_figure_stands_in_its_record(figure: figures.Figure) -> None:
    text = (ROOT / figure.source).read_text()
    assert f"{figure.value:g}" in text, f"{figure.source} does not say {figure.value:g}"


@pytest.mark.parametrize(
    ("size", "calls", "encodes", "scored", "tflop"),
    [(512, 98, 2, False, 160.5), (512, 49, 2, False, 82.6), (512, 4, 1, False, 10.0), (512, 4, 1, True, 12.9), (1024, 4, 1, False, 42.4)],
)
def test_operations_are_those_that_were_counted(size: int, calls: int, encodes: int, scored: bool, tflop: float) -> None:
    assert network_tflop(size, calls, encodes=encodes, scored=scored) == pytest.approx(tflop, rel=0.005)


def test_a_model_with_guidance_asks_its_network_twice() -> None:
    rorem, objectclear = (
        demand_of(Question(model=model, steps=20, device="h100")) for model in ("LetsThink/RORem", "jixin0101/ObjectClear")
    )
    assert rorem.tflop is not None
    assert objectclear.tflop is not None
    assert objectclear.tflop - rorem.tflop == pytest.approx(20 * figures.TFLOP[512]["unet"])
    twice = demand_of(Question(model="LetsThink/RORem", steps=20, device="h100", candidates=2))
    assert twice.device_seconds == pytest.approx(2 * rorem.device_seconds)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (Question(model="somebody/unknown", device="h100"), "give what one took as --seconds-per-image"),
        (Question(model="LetsThink/RORem"), "on CPUs was not measured"),
        (Question(model="tiny", device="h100"), "no figure for tiny on a GPU"),
        (Question(model="LetsThink/RORem", device="h100", size=768), "counted at 512 and 1024 pixels, not at 768"),
    ],
)
def test_what_was_not_measured_is_not_guessed(question: Question, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        demand_of(question)
    if question.size == 512:
        assert demand_of(replace(question, seconds_per_image=0.5)).figures[0].kind == "given"


@pytest.mark.parametrize(
    ("changes", "bottleneck"),
    [
        ({}, "GPUs"),
        ({"cores": 1}, "cores"),
        ({"node_gbps": 0.01}, "network of the nodes"),
        ({"store_gbps": 0.01}, "bandwidth of the store"),
    ],
)
def test_the_slowest_resource_is_named_and_decides(changes: dict[str, float], bottleneck: str) -> None:
    shape = replace(SHAPE, **changes)  # type: ignore[arg-type]
    plan = estimate(20_000, DEMAND, shape)
    assert plan.bottleneck == bottleneck
    assert plan.images_per_second == pytest.approx(min(plan.rates.values()))
    assert max(plan.use().values()) == plan.use()[bottleneck] == 1.0
    played = simulate(20_000, DEMAND, shape, Conditions())
    assert played.images == 20_000
    assert played.seconds == pytest.approx(plan.seconds, rel=0.1), "the simulation disagrees with the arithmetic"


def test_more_of_the_bottleneck_is_quicker_and_more_losses_are_slower() -> None:
    base = simulate(50_000, DEMAND, SHAPE, Conditions()).seconds
    assert simulate(50_000, DEMAND, replace(SHAPE, nodes=4), Conditions()).seconds == pytest.approx(base / 2, rel=0.1)
    losses = [
        simulate(50_000, DEMAND, SHAPE, Conditions(losses_per_node_day=rate, node_start_seconds=60, seed=3)) for rate in (0, 100, 800)
    ]
    assert [run.images for run in losses] == [50_000] * 3, "an image was lost"
    assert losses[0].redone == 0 < losses[1].redone < losses[2].redone
    assert losses[0].seconds < losses[1].seconds < losses[2].seconds
    late = simulate(50_000, DEMAND, SHAPE, Conditions(node_start_seconds=100, nodes_per_minute=1))
    assert base + 100 < late.seconds < base + 200


def test_actors_that_die_cost_their_block_and_their_start() -> None:
    shape = ClusterShape(nodes=1, gpus=2, cores=16, node_gbps=10.0)
    calm = simulate(10_000, DEMAND, shape, Conditions())
    wild = simulate(10_000, DEMAND, shape, Conditions(actor_losses_per_hour=200, actor_start_seconds=10, seed=1))
    assert wild.images == 10_000
    assert wild.actor_losses > 0
    assert wild.redone >= wild.actor_losses
    lost = wild.actor_losses * (10 + wild.block_images * DEMAND.device_seconds) / 2
    assert calm.seconds < wild.seconds < calm.seconds + lost * 1.2


def test_the_same_dice_give_the_same_run_and_a_hopeless_one_is_said() -> None:
    conditions = Conditions(losses_per_node_day=50, node_start_seconds=30, seed=9)
    assert simulate(20_000, DEMAND, SHAPE, conditions) == simulate(20_000, DEMAND, SHAPE, conditions)
    with pytest.raises(UsageError, match="never ends"):
        simulate(2_000, Demand(60.0, 0.1, 1.0, 1.0), SHAPE, Conditions(losses_per_node_day=100_000))


def test_costs_are_named_only_where_a_price_was() -> None:
    plan = estimate(1_000_000, DEMAND, SHAPE)
    assert costs(plan, SHAPE, Prices(), seconds=3600, months=1) == {}
    found = costs(plan, SHAPE, Prices(node_hour=30, storage_gb_month=0.02, egress_gb=0.1), seconds=7200, months=2, redone=500_000)
    assert found == pytest.approx({"nodes": 2 * 2 * 30, "storage": 1000 * 2 * 0.02, "egress": 150 * 0.1})


@pytest.mark.parametrize(("text", "count"), [("10M", 10**7), ("250k", 250_000), ("1.5B", 15 * 10**8), ("10_000", 10_000), ("7", 7)])
def test_counts_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "-5", "0", "10 million"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write 250k, 10M"):
        parse_count(text)


def test_words() -> None:
    assert [bytes_in_words(value) for value in (999, 1.5e12)] == ["999 B", "1.5 TB"]
    assert [seconds_in_words(value) for value in (40, 720, 34_200, 864_000)] == ["40 s", "12 min", "9.5 h", "10 days"]
