"""What a process does with memory that it no longer needs."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
"""As in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """The process keeps what a network on a CPU gives back, up to a gigabyte, instead of handing it to the system.

    glibc otherwise returns large blocks at once, and the page faults of the next call make it about a tenth slower. With another C library
    nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_TOP_PAD, 64 * 2**20)  # no heap of a thread, which is as large, is given back whole
