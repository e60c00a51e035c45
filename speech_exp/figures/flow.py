"""Flowchart of a run: boxes in the order of the data flow, with the run's real sizes, wrapped into rows.

A constraint is not a step of the data flow: it is drawn below, dashed, with arrows to frames around the steps it acts on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["data", "features", "augment", "encoder", "head", "output"]

COLOURS: dict[Kind, str] = {
    "data": style.BLACK,
    "features": style.SKY,
    "augment": style.PURPLE,
    "encoder": style.GREY,
    "head": style.GREY,
    "output": style.BLACK,
}
CONSTRAINT = style.ORANGE
DASHES = (0, (4, 2))
TITLE_PT, LINE_PT, LINE_IN = 9.5, 8.0, 0.17
PAGE_IN, MARGIN_IN, GAP_IN, GUTTER_IN = 10.0, 0.3, 0.42, 0.6
PADDING_IN, STRIP_IN, MIN_WIDTH_IN, MAX_WIDTH_IN = 0.14, 0.07, 1.25, 2.6
FRAME_IN, TRUNK_IN = 0.1, 0.24  # gap between a frame and its boxes; distance of the constraint's arrow line below a row


@dataclass(frozen=True)
class Box:
    """One step: a title, lines with sizes and settings, and a kind, which determines the colour unless there is a model."""

    title: str
    lines: Sequence[str]
    kind: Kind
    constrained: bool = False  # whether the flowchart's constraint acts on it
    model: str | None = None  # of a recurrent layer, which has the colour of its model

    @property
    def colour(self) -> str:
        return COLOURS[self.kind] if self.model is None else style.model_colours([self.model])[self.model]


@dataclass(frozen=True)
class Constraint:
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class _Placed:
    """A box with its wrapped text and its position in inches; y grows downwards."""

    colour: str
    title: list[str]
    lines: list[str]
    x: float
    y: float
    width: float
    height: float
    constrained: bool = False
    dashed: bool = False

    @property
    def bottom(self) -> float:
        return self.y + self.height


def flowchart(boxes: Sequence[Box], constraint: Constraint, title: str, path: str | os.PathLike[str]) -> Path:
    """Draw the boxes from left to right with arrows between them, in as many rows as they need."""
    return style.save(draw_flowchart(boxes, constraint, title), path)


@style.styled
def draw_flowchart(boxes: Sequence[Box], constraint: Constraint, title: str) -> Figure:
    if not boxes:
        raise ValueError("the flowchart has no boxes, expected at least one")
    for box in boxes:
        if box.kind not in get_args(Kind):
            raise ValueError(
                f"box {box.title!r} has the kind {box.kind!r}, expected one of {', '.join(get_args(Kind))}"
            )
    rows = _place(boxes)
    placed = [box for row in rows for box in row]
    frames = [frame for row in rows for frame in _frames(row)]
    acting = _place_constraint(constraint, rows, frames)
    width = max(box.x + box.width for box in [*placed, acting]) + MARGIN_IN
    height = acting.bottom + MARGIN_IN
    lines = style.wrap(style.new_figure(1, 1), title, width - 2 * MARGIN_IN, **style.TITLE)
    top_in = style.TITLE_LINE_IN * len(lines)
    figure = style.new_figure(width, height + top_in, constrained=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, -top_in))
    axes.axis("off")
    axes.text(MARGIN_IN, 0.12 - top_in, "\n".join(lines), va="top", **style.TITLE)
    _draw_constraint(axes, acting, frames)
    for before, after in pairwise(placed):
        _connect(axes, before, after)
    for one in [*placed, acting]:
        _draw_box(axes, one)
    return figure


def _place(boxes: Sequence[Box]) -> list[list[_Placed]]:
    probe = style.new_figure(1, 1)
    texts = [_text(probe, box, MAX_WIDTH_IN) for box in boxes]
    widths = [width for _, _, width in texts]
    rows: list[list[_Placed]] = []
    y = MARGIN_IN
    for row in _rows(widths):
        height = max(_height(title, lines) for title, lines, _ in (texts[at] for at in row))
        x = MARGIN_IN
        rows.append([])
        for at in row:
            title, lines, width = texts[at]
            rows[-1].append(_Placed(boxes[at].colour, title, lines, x, y, width, height, boxes[at].constrained))
            x += width + GAP_IN
        y += height + GUTTER_IN
    return rows


def _text(probe: Figure, box: Box | Constraint, widest_in: float) -> tuple[list[str], list[str], float]:
    """Wrap title and lines to a box of at most `widest_in`; return them and the width that the box needs."""
    room = widest_in - 2 * PADDING_IN - STRIP_IN
    title = style.wrap(probe, box.title, room, fontsize=TITLE_PT, fontweight="bold")
    lines = [part for line in box.lines for part in style.wrap(probe, line, room, fontsize=LINE_PT)]
    longest = [style.text_width_in(probe, line, fontsize=TITLE_PT, fontweight="bold") for line in title]
    longest += [style.text_width_in(probe, line, fontsize=LINE_PT) for line in lines]
    return title, lines, max(MIN_WIDTH_IN, max(longest) + 2 * PADDING_IN + STRIP_IN)


def _place_constraint(constraint: Constraint, rows: Sequence[Sequence[_Placed]], frames: Sequence[_Placed]) -> _Placed:
    """Place the constraint in a separate row below all others, under the frames of the last row if it has any."""
    title, lines, width = _text(style.new_figure(1, 1), constraint, 2 * MAX_WIDTH_IN)
    last = rows[-1][0]
    above = [frame for frame in frames if frame.bottom > last.bottom]
    x = MARGIN_IN
    if above:
        centre = (min(frame.x for frame in above) + max(frame.x + frame.width for frame in above)) / 2
        rightmost = max(box.x + box.width for row in rows for box in row)
        x = max(MARGIN_IN, min(centre - width / 2, rightmost - width))
    return _Placed(CONSTRAINT, title, lines, x, last.bottom + GUTTER_IN, width, _height(title, lines), dashed=True)


def _frames(row: Sequence[_Placed]) -> list[_Placed]:
    """Return one frame around each stretch of neighbouring boxes that the constraint acts on."""
    frames = []
    for constrained, stretch in groupby(row, key=lambda box: box.constrained):
        if constrained:
            boxes = list(stretch)
            first, last = boxes[0], boxes[-1]
            x, y, width = first.x - FRAME_IN, first.y - FRAME_IN, last.x + last.width - first.x + 2 * FRAME_IN
            frames.append(_Placed(CONSTRAINT, [], [], x, y, width, first.height + 2 * FRAME_IN, dashed=True))
    return frames


def _rows(widths: Sequence[float]) -> list[list[int]]:
    """Split the boxes into as few rows as fit the page, with the widest row as narrow as possible."""

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


def _height(title: Sequence[str], lines: Sequence[str]) -> float:
    return 2 * PADDING_IN + 0.19 * len(title) + (0.06 + LINE_IN * len(lines) if lines else 0)


def _draw_box(axes: Axes, box: _Placed) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch, Rectangle

    tint = tuple(1 - 0.1 * (1 - part) for part in to_rgb(box.colour))
    axes.add_patch(
        FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=tint,
            edgecolor=box.colour,
            linewidth=1.2,
            linestyle=DASHES if box.dashed else "-",
        )
    )
    place, height = (box.x + 0.03, box.y + 0.06), box.height - 0.12
    axes.add_patch(Rectangle(place, STRIP_IN, height, facecolor=box.colour, linewidth=0))
    x, y = box.x + STRIP_IN + PADDING_IN, box.y + PADDING_IN
    for line in box.title:
        axes.text(x, y + 0.095, line, fontsize=TITLE_PT, fontweight="bold", va="center")
        y += 0.19
    y += 0.06
    for line in box.lines:
        axes.text(x, y + LINE_IN / 2, line, fontsize=LINE_PT, va="center")
        y += LINE_IN


def _connect(axes: Axes, before: _Placed, after: _Placed) -> None:
    """Draw an arrow to the next box, or at the end of a row a line through the gutter to the start of the next row."""
    line: dict[str, Any] = {"color": style.TEXT, "linewidth": 1.3}
    if before.y == after.y:
        y = before.y + before.height / 2
        start, end = (before.x + before.width + 0.03, y), (after.x - 0.03, y)
    else:
        out, into = before.x + before.width / 2, after.x + after.width / 2
        middle = before.bottom + 0.58 * GUTTER_IN
        axes.plot([out, out, into], [before.bottom + 0.02, middle, middle], solid_joinstyle="round", **line)
        start, end = (into, middle), (into, after.y - 0.02)
    _arrow(axes, start, end, line)


def _draw_constraint(axes: Axes, constraint: _Placed, frames: Sequence[_Placed]) -> None:
    """Draw the frames and dashed arrows to them: straight up in the last row, along the left margin to rows further up."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = {"linewidth": 1.3, "linestyle": DASHES}
    line, outline = {"color": CONSTRAINT, **look}, {"edgecolor": CONSTRAINT, **look}
    tint = tuple(1 - 0.06 * (1 - part) for part in to_rgb(CONSTRAINT))
    for frame in frames:
        axes.add_patch(Rectangle((frame.x, frame.y), frame.width, frame.height, facecolor=tint, **outline))
        trunk = frame.bottom - FRAME_IN + TRUNK_IN
        if constraint.y - frame.bottom < GUTTER_IN:
            left, right = constraint.x + 0.2, constraint.x + constraint.width - 0.2
            start = min(max(frame.x + frame.width / 2, left), right)
            into = start if frame.x < start < frame.x + frame.width else frame.x + frame.width / 2
            axes.plot([start, start, into], [constraint.y, trunk, trunk], **line)
        else:
            into, side, middle = frame.x + 0.25, 0.4 * MARGIN_IN, constraint.y + constraint.height / 2
            axes.plot([constraint.x, side, side, into], [middle, middle, trunk, trunk], **line)
        _arrow(axes, (into, trunk), (into, frame.bottom), line)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], line: dict[str, Any]) -> None:
    arrow = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "shrinkA": 0, "shrinkB": 0, **line}
    axes.annotate("", xy=end, xytext=start, arrowprops=arrow)
