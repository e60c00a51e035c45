"""Flowchart of a run: boxes in the order of the data flow, with the run's real sizes, wrapped into rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from speech_exp.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["data", "features", "augment", "encoder", "head", "output", "constraint"]

COLOURS: dict[Kind, str] = {
    "data": style.BLACK,
    "features": style.SKY,
    "augment": style.PURPLE,
    "encoder": style.BLUE,
    "head": style.GREEN,
    "output": style.ORANGE,
    "constraint": style.VERMILLION,
}
TITLE_PT, LINE_PT, LINE_IN = 9.5, 8.0, 0.17
PAGE_IN, MARGIN_IN, GAP_IN, GUTTER_IN = 10.0, 0.2, 0.42, 0.5
PADDING_IN, STRIP_IN, NARROWEST_IN, WIDEST_IN = 0.14, 0.07, 1.25, 2.6


@dataclass(frozen=True)
class Box:
    """One step: a title, lines of sizes and settings, and its kind, which gives the colour.

    A box of kind `constraint` is drawn dashed: it acts on the model and is no step of the data.
    """

    title: str
    lines: Sequence[str]
    kind: Kind


@dataclass(frozen=True)
class _Placed:
    """A box with its wrapped text and place in inches; y grows downwards."""

    kind: Kind
    title: list[str]
    lines: list[str]
    x: float
    y: float
    width: float
    height: float


def flowchart(boxes: Sequence[Box], path: str | os.PathLike[str]) -> Path:
    """Draw the boxes from left to right with arrows between them, in as many rows as they need."""
    return style.save(draw_flowchart(boxes), path)


@style.styled
def draw_flowchart(boxes: Sequence[Box]) -> Figure:
    if not boxes:
        raise ValueError("the flowchart has no boxes, expected at least one")
    for box in boxes:
        if box.kind not in get_args(Kind):
            raise ValueError(
                f"box {box.title!r} has the kind {box.kind!r}, expected one of {', '.join(get_args(Kind))}"
            )
    placed = _place(boxes)
    width = max(box.x + box.width for box in placed) + MARGIN_IN
    height = max(box.y + box.height for box in placed) + MARGIN_IN
    figure = style.new_figure(width, height, constrained=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for before, after in pairwise(placed):
        _connect(axes, before, after)
    for place in placed:
        _draw_box(axes, place)
    return figure


def _place(boxes: Sequence[Box]) -> list[_Placed]:
    probe = style.new_figure(1, 1)
    texts, widths = [], []
    for box in boxes:
        title = _wrap(probe, box.title, fontsize=TITLE_PT, fontweight="bold")
        lines = [part for line in box.lines for part in _wrap(probe, line, fontsize=LINE_PT)]
        longest = [style.text_width_in(probe, line, fontsize=TITLE_PT, fontweight="bold") for line in title]
        longest += [style.text_width_in(probe, line, fontsize=LINE_PT) for line in lines]
        texts.append((title, lines))
        widths.append(max(NARROWEST_IN, max(longest) + 2 * PADDING_IN + STRIP_IN))
    placed: list[_Placed] = []
    y = MARGIN_IN
    for row in _rows(widths):
        height = max(_height(*texts[at]) for at in row)
        x = MARGIN_IN
        for at in row:
            placed.append(_Placed(boxes[at].kind, *texts[at], x=x, y=y, width=widths[at], height=height))
            x += widths[at] + GAP_IN
        y += height + GUTTER_IN
    return placed


def _rows(widths: Sequence[float]) -> list[list[int]]:
    """Boxes in as few rows as fit the page, their widths as even as can be (the widest row as narrow as possible)."""

    def fill(limit: float) -> list[list[int]]:
        rows: list[list[int]] = [[]]
        used = 0.0
        for at, width in enumerate(widths):
            if rows[-1] and used + GAP_IN + width > limit + 1e-9:
                rows.append([])
            used = width if not rows[-1] else used + GAP_IN + width
            rows[-1].append(at)
        return rows

    page = PAGE_IN - 2 * MARGIN_IN
    count = len(fill(page))
    limits = sorted(
        {
            sum(widths[first:last]) + GAP_IN * (last - first - 1)
            for first in range(len(widths))
            for last in range(first + 1, len(widths) + 1)
        }
    )
    return next((fill(limit) for limit in limits if limit >= max(widths) and len(fill(limit)) <= count), fill(page))


def _wrap(probe: Figure, text: str, **font: object) -> list[str]:
    """Text in lines of at most the widest box's inner width; a word too long for it is cut."""
    room = WIDEST_IN - 2 * PADDING_IN - STRIP_IN
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and style.text_width_in(probe, longer, **font) <= room:
            lines[-1] = longer
            continue
        while style.text_width_in(probe, word, **font) > room:
            cut = len(word) - 1
            while cut > 1 and style.text_width_in(probe, word[:cut], **font) > room:
                cut -= 1
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines or [""]


def _height(title: Sequence[str], lines: Sequence[str]) -> float:
    return 2 * PADDING_IN + 0.19 * len(title) + (0.06 + LINE_IN * len(lines) if lines else 0)


def _draw_box(axes: Axes, box: _Placed) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch, Rectangle

    colour = COLOURS[box.kind]
    tint = tuple(1 - 0.1 * (1 - part) for part in to_rgb(colour))
    dashed = box.kind == "constraint"
    axes.add_patch(
        FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=tint,
            edgecolor=colour,
            linewidth=1.2,
            linestyle=(0, (4, 2)) if dashed else "-",
        )
    )
    axes.add_patch(Rectangle((box.x + 0.03, box.y + 0.06), STRIP_IN, box.height - 0.12, facecolor=colour, linewidth=0))
    x, y = box.x + STRIP_IN + PADDING_IN, box.y + PADDING_IN
    for line in box.title:
        axes.text(x, y + 0.095, line, fontsize=TITLE_PT, fontweight="bold", va="center")
        y += 0.19
    y += 0.06
    for line in box.lines:
        axes.text(x, y + LINE_IN / 2, line, fontsize=LINE_PT, va="center")
        y += LINE_IN


def _connect(axes: Axes, before: _Placed, after: _Placed) -> None:
    """An arrow to the next box, or, where the row ends, a line through the gutter to the start of the next row."""
    dashed = after.kind == "constraint"
    colour = style.VERMILLION if dashed else style.TEXT
    line: dict[str, Any] = {"color": colour, "linewidth": 1.3, "linestyle": (0, (4, 2)) if dashed else "-"}
    if before.y == after.y:
        y = before.y + before.height / 2
        start, end = (before.x + before.width + 0.03, y), (after.x - 0.03, y)
    else:
        out, into = before.x + before.width / 2, after.x + after.width / 2
        middle = before.y + before.height + 0.42 * GUTTER_IN
        axes.plot([out, out, into], [before.y + before.height + 0.02, middle, middle], solid_joinstyle="round", **line)
        start, end = (into, middle), (into, after.y - 0.02)
    arrow = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "shrinkA": 0, "shrinkB": 0, **line}
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
