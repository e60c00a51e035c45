"""The main table of a comparison for a terminal: one line per group, and as many measures as fit."""

from __future__ import annotations

from collections.abc import Sequence

from speech_exp.comparison.formats.markdown import main_rows
from speech_exp.comparison.grouping import Group
from speech_exp.safe_text import visible

_GAP = "  "


def terminal_table(groups: Sequence[Group], width: int) -> str:
    """Return a table of at most `width` columns; measures come in the report's order, those that are too wide are left out."""
    cells = [["", *(group.label for group in groups)]]
    used = _width(cells[0])
    for row in main_rows(groups):
        column = [row.title, *row.texts]
        if used + len(_GAP) + _width(column) <= width:
            cells.append(column)
            used += len(_GAP) + _width(column)
    columns = [[cell.ljust(_width(cells[0])) for cell in cells[0]]]
    columns += [[cell.rjust(_width(column)) for cell in column] for column in cells[1:]]
    return visible("\n".join(_GAP.join(line).rstrip() for line in zip(*columns, strict=True)))


def _width(cells: Sequence[str]) -> int:
    return max(map(len, cells))
