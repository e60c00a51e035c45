"""Progress of long work: a bar in a terminal, plain lines elsewhere; and tables for the terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from speech_exp import ranks

if TYPE_CHECKING:
    import rich.progress

_PLAIN_EVERY_S = 30.0
_BAR_COLUMNS = 16  # leaves a third of a terminal of 80 columns for the note


class Progress:
    """The progress of some work: the number of steps done, of `total` (0: unknown); this base class displays nothing."""

    def __init__(self, total: float, done: float = 0.0) -> None:
        self.total, self.done, self.note = total, done, ""

    def advance(self, steps: float = 1) -> None:
        """Report that `steps` more are done."""
        self.reach(self.done + steps)

    def reach(self, done: float, note: str = "") -> None:
        """Report that `done` steps are done in total; `note` is a short status text, shown until the next one."""
        self.done, self.note = done, note or self.note


class _Lines(Progress):
    """Prints a line every 30 s, even while a single step takes longer, and one at the end."""

    def __init__(self, title: str, total: float, done: float) -> None:
        super().__init__(total, done)
        self.title, self.start, self.shown, self.started_s = title, done, done, time.monotonic()
        self.over = threading.Event()
        threading.Thread(target=self._repeat, daemon=True).start()

    def _repeat(self) -> None:
        while not self.over.wait(_PLAIN_EVERY_S):
            self.line()

    def line(self) -> None:
        self.shown = self.done
        facts = (
            f"{self.title}: {self.done:,.0f}" + (f"/{self.total:,.0f}" if self.total else ""),
            self._left(),
            self.note,
        )
        print(*filter(None, facts), sep=", ", file=sys.stderr, flush=True)

    def _left(self) -> str:
        """Return the time left at the mean speed since the start; empty if nothing is left or nothing is done yet."""
        if not self.start < self.done < self.total:
            return ""
        elapsed_s = time.monotonic() - self.started_s
        return f"{duration(elapsed_s * (self.total - self.done) / (self.done - self.start))} left"


class _Bar(Progress):
    def __init__(self, bars: rich.progress.Progress, title: str, total: float, done: float) -> None:
        super().__init__(total, done)
        self._bars, self._task = bars, bars.add_task(title, total=total or None, completed=int(done), note="")

    def reach(self, done: float, note: str = "") -> None:
        super().reach(done, note)
        self._bars.update(self._task, completed=done, note=self.note)


@contextmanager
def progress(title: str, total: float, *, done: float = 0.0, for_all: bool = False) -> Iterator[Progress]:
    """Show `title` and how many of `total` steps are done, `done` of them before.

    When several ranks train together, only rank 0 shows the progress. With `for_all`, any rank shows it: for work that one rank
    does on behalf of all while the others wait.
    """
    if ranks.rank() and not for_all:
        yield Progress(total, done)
    elif sys.stderr.isatty():
        with _bars(sys.stderr) as bars:
            yield _Bar(bars, title, total, done)
    else:
        lines = _Lines(title, total, done)
        try:
            yield lines
        finally:
            lines.over.set()
        if lines.done > lines.shown:
            lines.line()


def _bars(terminal: TextIO) -> rich.progress.Progress:
    """Return rich's progress display; if the terminal is too narrow, only the note is cut."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column
    from rich.text import Text

    class Note(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    whole = Column(no_wrap=True)
    return Bars(
        TextColumn("{task.description}", table_column=whole),
        BarColumn(_BAR_COLUMNS, table_column=whole),
        MofNCompleteColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        Note(),
        console=Console(file=terminal),
    )


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 45 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left = round(seconds)
    largest = next((at for at, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    counts: list[str] = []
    for name, size in units[largest : largest + 2]:
        count, left = divmod(left, size)
        if count or not counts:
            counts.append(f"{count} {name}")
    return " ".join(counts)


def table_lines(facts: dict[str, str]) -> list[str]:
    """Return names and values in two columns."""
    width = max(map(len, facts))
    return [f"{name:<{width}}  {value}" for name, value in facts.items()]


def print_table(facts: dict[str, str]) -> None:
    """Print names and values in two columns on standard output."""
    print(*table_lines(facts), sep="\n")
