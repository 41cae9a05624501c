"""How the scripts of this folder end: with 0, or with one line and a status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from core.errors import CleanplateError


def exit_status(run: Callable[[], object]) -> int:
    """0 after ``run``; where it raises a ``CleanplateError``, that error's status, after its message on standard error."""
    try:
        run()
    except CleanplateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0
