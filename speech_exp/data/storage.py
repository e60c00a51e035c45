"""Reads from storage that may fail: a short outage is waited out, a long one ends the run, neither counts as bad audio."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from speech_exp.files import reason

_T = TypeVar("_T")

_PAUSES_S = (1.0, 5.0, 20.0)  # between tries; a mount that recovers usually does so within this time
_BLOCK_BYTES = 2**20


class StorageError(ValueError):
    """Stored data that should exist cannot be read or has changed; the run stops rather than train without it."""


def with_retries(read: Callable[[], _T], name: str, remedy: str = "restore it") -> _T:
    """Return `read()`; retry it after an OSError, and finally raise a `StorageError` that names `name`.

    A missing file is retried too, because a lost mount looks the same.
    """
    for pause_s in _PAUSES_S:
        try:
            return read()
        except OSError:
            time.sleep(pause_s)
    try:
        return read()
    except OSError as error:
        raise StorageError(
            f"{name} cannot be read ({reason(error)}, {len(_PAUSES_S) + 1} tries in {sum(_PAUSES_S):g} s): {remedy}, then "
            f"repeat the command"
        ) from None


def read_through(path: Path) -> None:
    """Read a whole file to find out whether the storage works; libsndfile reports a failing disk as bad audio.

    Raises an OSError if the storage fails.
    """
    with path.open("rb", buffering=0) as file:
        while file.read(_BLOCK_BYTES):
            pass
