"""``cleanplate plan``: hours, cost, storage, egress and the bottleneck of a job, before anything is started."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from core.planning import figures
from core.planning.demand import Demand, Question, demand_of
from core.planning.estimate import ClusterShape, Prices, costs, estimate
from core.planning.quantity import bytes_in_words, parse_count, seconds_in_words
from core.planning.simulation import Conditions, simulate
from jobs.operations_config import PlanConfig
from jobs.progress import print_table

_REMEDIES: Final = {
    "GPUs": "more --gpus, fewer --steps (4 with an LCM LoRA), fewer --candidates",
    "cores": "more --cores-per-node, smaller photos, or --image-format png (WebP takes a third longer)",
    "network of the nodes": "nodes with a quicker network, or --image-format webp (a third fewer bytes)",
    "bandwidth of the store": "a store that gives more, or fewer nodes for a longer time",
}


def run(config: PlanConfig) -> int:
    """Plan and print."""
    plan = make_plan(config)
    if config.json:
        print(json.dumps(plan))
    else:
        _print(plan)
    return 0


def make_plan(config: PlanConfig) -> dict[str, Any]:
    """The plan as one JSON object.

    Raises:
        UsageError: there is no figure for the model or the device.
    """
    images, cluster = parse_count(config.images), cluster_of(config)
    demand = demand_of(question_of(config))
    steady = estimate(images, demand, cluster)
    played = simulate(images, demand, cluster, conditions_of(config)) if config.simulate else None
    seconds = played.seconds if played else steady.seconds + config.node_start_seconds
    prices = Prices(
        node_hour=config.price_node_hour,
        storage_gb_month=config.price_storage_gb_month,
        egress_gb=config.price_egress_gb,
        thousand_requests=config.price_thousand_requests,
    )
    priced = costs(steady, cluster, prices, seconds=seconds, months=config.months, redone=played.redone if played else 0)
    return {
        "images": images,
        "nodes": cluster.nodes,
        "gpus": cluster.nodes * cluster.gpus,
        "hours": round(seconds / 3600, 3),
        "hours_steady": round(steady.seconds / 3600, 3),
        "images_per_second": round(steady.images_per_second, 2),
        "bottleneck": steady.bottleneck,
        "remedy": _REMEDIES[steady.bottleneck],
        "use": {name: round(share, 3) for name, share in steady.use().items()},
        "read_bytes": round(steady.bytes_in),
        "stored_bytes": round(steady.bytes_out),
        "egress_bytes": round(steady.bytes_in * (1 + (played.redone / images if played else 0))),
        "requests": steady.requests,
        "cost": {name: round(value, 2) for name, value in priced.items()},
        "cost_total": round(sum(priced.values()), 2) if priced else None,
        "prices_not_given": [name for name, value in asdict(prices).items() if value is None],
        "tflop_per_image": round(demand.tflop, 3) if demand.tflop is not None else None,
        "simulation": asdict(played) if played else None,
        "figures": [asdict(figure) for figure in rests_on(config, demand)],
    }


def rests_on(config: PlanConfig, demand: Demand) -> list[figures.Figure]:
    """Every figure that the plan was made of."""
    network = figures.Figure("network of a node", config.node_gbps, "Gbit/s", _origin(config, "node_gbps"), "--node-gbps")
    start = figures.Figure(
        "a node works after", config.node_start_seconds, "s", _origin(config, "node_start_seconds"), "--node-start-seconds"
    )
    return [*demand.figures, figures.EFFICIENCY, network, start]


def _origin(config: PlanConfig, name: str) -> figures.Kind:
    return "assumed" if getattr(config, name) == PlanConfig.__dataclass_fields__[name].default else "given"


def question_of(config: PlanConfig) -> Question:
    """What an image asks for."""
    return Question(
        model=config.model,
        steps=config.steps,
        doubled=None if config.guidance is None else config.guidance > 1,
        candidates=config.candidates,
        scored=config.discriminator != "none",
        size=config.size,
        megapixels=config.megapixels,
        image_format=config.image_format,
        accepted=config.accepted,
        device=config.gpu if config.gpus else None,
        sustained_tflops=config.sustained_tflops,
        seconds_per_image=config.seconds_per_image,
    )


def cluster_of(config: PlanConfig) -> ClusterShape:
    """Equal nodes; with fewer GPUs than a node has, one smaller node."""
    gpus = min(config.gpus, config.gpus_per_node)
    nodes = config.gpus // gpus if gpus else config.nodes
    return ClusterShape(
        nodes=nodes,
        gpus=gpus,
        cores=config.cores_per_node,
        node_gbps=config.node_gbps,
        store_gbps=config.store_gbps,
        efficiency=figures.EFFICIENCY.value,
    )


def conditions_of(config: PlanConfig) -> Conditions:
    """What happens to the cluster."""
    return Conditions(node_start_seconds=config.node_start_seconds, losses_per_node_day=config.losses_per_node_day, seed=config.seed)


def _print(plan: dict[str, Any]) -> None:
    devices = f"{plan['gpus']} GPUs on {plan['nodes']} nodes" if plan["gpus"] else f"{plan['nodes']} nodes without GPUs"
    played: dict[str, Any] | None = plan["simulation"]
    rows: dict[str, Any] = {
        "images": plan["images"],
        "cluster": devices,
        "time": f"{seconds_in_words(plan['hours'] * 3600)}, start of the nodes included",
        "rate": f"{plan['images_per_second']:,.1f} images/s",
        "waits for": plan["bottleneck"],
        "what helps": plan["remedy"],
        "in use": ", ".join(f"{name} {share:.0%}" for name, share in plan["use"].items()),
        "read from the store": bytes_in_words(plan["read_bytes"]),
        "left in the store": bytes_in_words(plan["stored_bytes"]),
        "egress, store elsewhere": bytes_in_words(plan["egress_bytes"]),
        "requests": plan["requests"],
    }
    if played:
        rows["simulated"] = (
            f"{seconds_in_words(played['seconds'])}, {played['node_losses']} nodes lost, {played['redone']:,} images done again, "
            f"devices at work {played['device_use']:.0%} of the time"
        )
    rows |= {f"cost, {name}": f"{value:,.2f}" for name, value in plan["cost"].items()}
    if plan["cost_total"] is not None:
        rows["cost"] = f"{plan['cost_total']:,.2f}"
    if plan["prices_not_given"]:
        rows["no price given"] = ", ".join(f"--price-{name.replace('_', '-')}" for name in plan["prices_not_given"])
    print_table("plan", rows)
    table = Table(title="what it rests on", title_justify="left")
    for title in ("figure", "value", "origin", "source"):
        table.add_column(title, overflow="fold")
    for figure in plan["figures"]:
        table.add_row(figure["name"], f"{figure['value']:,.4g} {figure['unit']}", figure["kind"], figure["source"])
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"measured: on {figures.MEASURED_ON}; run a few hundred images on your own nodes and give --seconds-per-image.")
