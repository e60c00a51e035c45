"""The main table of a comparison for a terminal: a row per group, and as many measures as fit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from speech_exp.comparison.formats.markdown import main_rows
from speech_exp.comparison.grouping import Group
from speech_exp.safe_text import visible

_GAP = "  "


def terminal_table(groups: Sequence[Group], width: int) -> str:
    """Return a table of at most `width` columns.

    Labels take at most half of it and continue on further lines. Measures come in the report's order; those that are too
    wide are left out.
    """
    labels = [textwrap.wrap(group.label, max(width // 2, 1), break_on_hyphens=False) for group in groups]
    label_width = max(len(line) for lines in labels for line in lines)
    columns, used = [], label_width
    for row in main_rows(groups):
        column = [row.title, *row.texts]
        column_width = max(map(len, column))
        if used + len(_GAP) + column_width <= width:
            columns.append([cell.rjust(column_width) for cell in column])
            used += len(_GAP) + column_width
    lines = []
    for (first, *further), *cells in zip([[""], *labels], *columns, strict=True):
        lines += [_GAP.join([first.ljust(label_width), *cells]).rstrip(), *further]
    return visible("\n".join(lines))
