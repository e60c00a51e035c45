"""Signals that ask a process to end soon: SLURM's time-out and preemption, and a plain kill."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from speech_exp import ranks

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR2") if hasattr(signal, name)]


class StopSignals:
    """In this context such a signal is only noted, so that the state can be saved; `pass_on` then lets it act.

    The handlers from before act: submitit's, which puts the job into the queue again, or the system's, which ends it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
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
        """Act on what this process received, or one that trains with it: rank 0 does it for all, who end with it."""
        number = next(one for one in ranks.gathered(self.received) if one is not None)
        self.received = None
        ranks.from_first(lambda: self._act(number))

    def _act(self, number: int) -> None:
        handler = self._before.get(number)
        self.__exit__()
        try:
            if callable(handler):
                handler(number, None)
                self.__enter__()  # this one lets the process go on, and another signal may follow
                return
        except SystemExit:  # submitit's, after it has put the job into the queue again, does not say why
            pass
        raise SystemExit(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
