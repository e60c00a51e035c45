"""Progress of long work: a bar where a terminal is attached, plain lines where none is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from speech_exp import ranks

_PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    def advance(self, steps: float = 1, note: str = "") -> None:
        """`steps` more are done; `note` says how it goes."""


class _Plain:
    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done, self.shown, self.note = title, total, 0.0, 0.0, ""
        self.last_s = time.monotonic()

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.done += steps
        self.note = note or self.note
        if time.monotonic() - self.last_s >= _PLAIN_EVERY_S:
            self.last_s = time.monotonic()
            self.line()

    def line(self) -> None:
        self.shown = self.done
        print(f"{self.title}: {self.done:g}/{self.total:g} {self.note}".rstrip(), file=sys.stderr, flush=True)


class _Silent:
    def advance(self, steps: float = 1, note: str = "") -> None:
        pass


@contextmanager
def progress(title: str, total: float, *, for_all: bool = False) -> Iterator[Progress]:
    """Shows `title` and how many of `total` steps are done.

    Of processes that train together the first alone shows what they all do. What one of them does `for_all`, while the
    others wait, is shown by that one.
    """
    if ranks.number() and not for_all:
        yield _Silent()
        return
    if not sys.stderr.isatty():
        plain = _Plain(title, total)
        yield plain
        if plain.done > plain.shown:
            plain.line()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, note="")

        class _Rich:
            def advance(self, steps: float = 1, note: str = "") -> None:
                if note:
                    bars.update(task, note=note)
                bars.update(task, advance=steps)

        yield _Rich()


def print_table(facts: dict[str, str]) -> None:
    """Names and values in two columns on standard output."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
