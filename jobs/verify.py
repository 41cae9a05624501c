"""``cleanplate verify``: nothing lost, nothing twice, every picture opens."""

from __future__ import annotations

import json
from typing import Any

from core import storage
from core.errors import UsageError
from core.lease import is_held
from core.plan import read_plan_info
from core.verification import check_pictures, count_output
from jobs.config import VerifyConfig
from jobs.job_state import JobFiles, read_object
from jobs.progress import print_table


def run(config: VerifyConfig) -> int:
    """Print the count; exit status 0 only where the job is finished and right."""
    summary = verify(config)
    if config.json:
        print(json.dumps(summary))
    else:
        rows = {name: value for name, value in summary.items() if name not in {"failures", "examples"}}
        rows.update({f"  failed: {reason}": count for reason, count in summary["failures"].items()})
        rows.update({f"  example {index}": text for index, text in enumerate(summary["examples"], 1)})
        print_table("verify", rows)
    return 0 if summary["status"] == "finished" else 1


def verify(config: VerifyConfig) -> dict[str, Any]:
    """The count of the job in ``config.input``.

    ``status`` is ``finished``, ``running`` or ``stopped`` (items are left; run the command again to go on), or ``broken`` (an id is twice
    or foreign, items are missing from a finished job, or a picture does not open).

    Raises:
        UsageError: there is no job's output at that place.
    """
    output = storage.normalize_uri(config.input)
    files = JobFiles(output)
    plan = read_plan_info(files.plan)
    if plan is None:
        raise UsageError(f"{output} is not the output of a cleanplate job (it has no plan); give the --output of cleanplate clean")
    count = count_output(output, files.plan, plan)
    pictures = check_pictures(output, config.threads) if config.images else None
    dataset = read_object(files.dataset)
    broken = count.twice or count.foreign or (dataset is not None and count.lost) or (pictures is not None and pictures.faults)
    status = "broken" if broken else "finished" if dataset is not None else "running" if is_held(files.lease) else "stopped"
    return {
        "status": status,
        "in": count.items,
        "out": count.out,
        "failed": count.failed,
        "lost" if dataset is not None else "left": count.lost,
        "twice": count.twice,
        "foreign": count.foreign,
        **{f"verdict {name}": number for name, number in sorted(count.verdicts.items())},
        "failures": dict(count.failures.most_common()),
        "pictures opened": pictures.pictures if pictures else None,
        "pictures that do not open": pictures.faults if pictures else None,
        "examples": (pictures.examples if pictures else [])
        + [f"not in the output: {item}" for item in count.lost_examples if dataset is not None],
    }
