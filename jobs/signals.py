"""Signals: a job that is asked to end does so in order."""

from __future__ import annotations

import signal
import threading


def interrupt_on_terminate() -> None:
    """Let a terminated job end as an interrupted one, its lease given back.

    Signals belong to the main thread; elsewhere nothing happens.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
