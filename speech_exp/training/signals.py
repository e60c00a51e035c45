"""Signals that ask a process to end soon: SLURM's time-out and preemption, and a plain kill."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR2") if hasattr(signal, name)]


class StopSignals:
    """In this context such a signal is only noted, so that the state can be saved; `pass_on` then lets it act.

    The handlers from before act: submitit's, which puts the job into the queue again, or the system's, which ends it.
    """

    def __init__(self) -> None:
        self.received: tuple[int, FrameType | None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only there handlers can be set
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def pass_on(self) -> None:
        """Act on what was received."""
        assert self.received is not None
        number, frame = self.received
        self.received, handler = None, self._before.get(number)
        self.__exit__()
        if callable(handler):
            handler(number, frame)
        else:
            raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = (number, frame)
