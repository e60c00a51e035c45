"""Signals that ask a process to stop: SLURM's time-out and preemption, and a plain kill."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from speech_exp import ranks

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR2") if hasattr(signal, name)]


class StopSignals:
    """Context that only records a stop signal, so that the state can be saved first; `pass_on` then lets the signal act.

    The previous handler acts: submitit's, which requeues the job, or the system's, which ends the process.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # handlers can only be set there
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def pass_on(self) -> None:
        """Act on a signal that any rank received: rank 0 does it for all, and the others end with it."""
        number = next(one for one in ranks.all_gather(self.received) if one is not None)
        self.received = None
        ranks.broadcast_object(lambda: self._act(number))

    def _act(self, number: int) -> None:
        handler = self._before.get(number)
        self.__exit__()
        try:
            if callable(handler):
                handler(number, None)
                self.__enter__()  # this handler lets the process continue, and another signal may follow
                return
        except SystemExit:  # submitit's, raised without a reason after it has requeued the job
            pass
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
