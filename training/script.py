"""What the scripts of this folder have in common: options of those that read triplets, work in processes, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from core.errors import CleanplateError

Result = TypeVar("Result")


def triplets_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a script that makes something of triplets: ``--data``, ``--limit``, ``--processes`` and ``--seed``."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(doc or "").split("\n\n", 1)[0])
    parser.add_argument("--data", required=True, help="triplets with targets and effect masks (cleanplate compose)")
    parser.add_argument("--limit", type=int, help="only the first so many triplets")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def in_shares(work: Callable[[tuple[int, int]], Result], processes: int) -> list[Result]:
    """What ``work`` gives for every share (place, number of shares) of its items, each in a process of its own."""
    # not forked: a copy of a process with running threads of torch would wait for them for ever
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, [(part, processes) for part in range(processes)]))


def exit_status(run: Callable[[], object]) -> int:
    """0 after ``run``; where it raises a ``CleanplateError``, that error's status, after its message on standard error."""
    try:
        run()
    except CleanplateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0
