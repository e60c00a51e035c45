"""Figure of the test score over a cost (bytes, latency, training time), one marker per group, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.comparison.charts import LABEL_LIMIT, MAX_SERIES, legend_width, score_limits
from speech_exp.comparison.score import Score
from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SHAPES = (*style.MARKERS, "<", ">", "p", "d", "h")
FILLS = ("full", "left", "top", "right", "bottom")
WITH_KD = " + kd"  # suffix of a setting with a teacher, which is drawn as a hollow marker of the same shape
MARKER_PT = 7.5
SHAPE_SCALE = {"*": 1.5, "P": 1.1, "X": 1.1, "p": 1.15, "h": 1.15, "d": 1.15, "D": 0.9}  # to look equally large


@dataclass(frozen=True)
class Cost:
    """A cost to plot the score against; the axis shows it divided by `shown_per`."""

    title: str
    axis: str
    shown_per: float = 1.0


BYTES = Cost("bytes", "stored model (kB = 1000 bytes, log scale)", 1000.0)
LATENCY = Cost("latency", "mean latency of an utterance (ms, log scale)")
TRAINING = Cost("training time", "training (s, log scale)")


@dataclass(frozen=True)
class Point:
    """One group; `setting` is everything but the model that the groups differ in."""

    model: str
    setting: str
    cost: float  # above 0
    score: float  # a fraction, mean over seeds
    low: float | None = None  # its interval
    high: float | None = None
    group: str = ""  # label of the group

    @property
    def label(self) -> str:
        return " · ".join(part for part in (self.model, self.setting) if part)


def comparison_front(points: Sequence[Point], cost: Cost, score: Score, path: Path) -> Path:
    """Draw the groups and their Pareto front; overlapping markers are moved apart, with a line to their true position."""
    return style.save_with_svg(draw_front(points, cost, score), path)


def pareto_front(points: Sequence[Point], score: Score) -> list[int]:
    """Return the indices, by rising cost, of the points that no other dominates (no worse in both, better in one)."""
    sign = -1 if score.higher_is_better else 1
    # Round the scores, because means of equal counts may differ in the last bit.
    places = [(point.cost, sign * round(point.score, 9)) for point in points]
    front = [
        at
        for at, place in enumerate(places)
        if not any(other != place and other[0] <= place[0] and other[1] <= place[1] for other in places)
    ]
    return sorted(front, key=lambda at: (places[at], at))


@style.styled
def draw_front(points: Sequence[Point], cost: Cost, score: Score) -> Figure:
    looks, handles = _marker_styles(points)
    names = [str(handle.get_label()) for handle in handles]
    figure = style.new_figure(5.4 + legend_width(names), max(3.8, 1.0 + 0.185 * len(handles)))
    axes = figure.subplots()
    intervals = len(points) <= MAX_SERIES and any(point.low is not None for point in points)
    costs = [point.cost for point in points]
    low, high = min(costs), max(costs)
    margin = max(1.15, (high / low) ** 0.08)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    style.logarithmic_ticks(axes)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / cost.shown_per:,.6g}")
    ends = [end for point in points for end in (point.low, point.high) if end is not None and intervals]
    score_limits(axes.set_ylim, [*(point.score for point in points), *ends], score)
    axes.grid(True)
    title = f"{score.title[0].upper()}{score.title[1:]} over {cost.title}"
    axes.set(xlabel=cost.axis, ylabel=f"test {score.title} (%)", title=title)
    heading = "mean over seeds" + (", 95 % interval" if intervals else "")
    figure.legend(handles, names, loc="outside right center", title=heading, title_fontsize=8, alignment="left")
    _draw_stairs(axes, points, score)
    figure.draw_without_rendering()  # lays out the axes; positions in pixels are known from here on
    _draw_points(axes, points, looks, intervals)
    return figure


def _draw_points(axes: Axes, points: Sequence[Point], looks: Sequence[dict[str, Any]], intervals: bool) -> None:
    true_P2 = np.array([(point.cost, 100 * point.score) for point in points])
    pixels_P2 = axes.transData.transform(true_P2)
    width_px = MARKER_PT / 72 * axes.figure.dpi
    # Unlike markers, error bars hide each other even at different heights.
    moved_P2 = _side_by_side(pixels_P2 * (1, 0) if intervals else pixels_P2, 0.9 * width_px)
    shown_P2 = axes.transData.inverted().transform(np.column_stack([moved_P2[:, 0], pixels_P2[:, 1]]))
    for point, look, true_2, shown_2 in zip(points, looks, true_P2, shown_P2, strict=True):
        of_group: dict[str, Any] = {"gid": style.group_id(point.group)}
        colour = look["markeredgecolor"] if look["markerfacecolor"] == "white" else look["markerfacecolor"]
        if intervals and point.low is not None and point.high is not None:
            ends = [100 * point.low, 100 * point.high]
            axes.plot(
                [shown_2[0]] * 2, ends, color=colour, linewidth=1.2, marker="_", markersize=6, zorder=3, **of_group
            )
        if not np.allclose(true_2, shown_2):
            axes.plot(*zip(true_2, shown_2, strict=True), color=colour, linewidth=0.8, zorder=3, **of_group)
        axes.plot(*shown_2, linestyle="none", zorder=4, clip_on=False, label=point.label, **look, **of_group)


def _side_by_side(pixels_P2: np.ndarray, apart_px: float) -> np.ndarray:
    """Move positions sideways, from left to right and as little as possible, until all are at least `apart_px` apart."""
    moved_P2 = pixels_P2.astype(float)
    done: list[int] = []
    for at in np.lexsort((pixels_P2[:, 1], pixels_P2[:, 0])):
        for step in count():
            shift = (step + 1) // 2 * (1 if step % 2 else -1)
            moved_P2[at, 0] = pixels_P2[at, 0] + shift * apart_px
            if all(np.hypot(*(moved_P2[at] - moved_P2[other])) >= apart_px - 1e-6 for other in done):
                break
        done.append(int(at))
    return moved_P2


def _draw_stairs(axes: Axes, points: Sequence[Point], score: Score) -> None:
    """Draw the best score that is available up to each cost."""
    front = [points[at] for at in pareto_front(points, score)]
    costs = [point.cost for point in front] + [axes.get_xlim()[1]]
    best = [100 * point.score for point in front] + [100 * front[-1].score]
    axes.plot(costs, best, drawstyle="steps-post", **_FRONT)


_FRONT: dict[str, Any] = {"color": style.GREY, "linewidth": 1.3, "linestyle": style.LINE_STYLES[1], "zorder": 2}


def _marker_styles(points: Sequence[Point]) -> tuple[list[dict[str, Any]], list[Artist]]:
    """Return the marker of each point, and the entries of the legend.

    Colours mean models and shapes mean settings: 30 groups need only 3 + 10 entries. With more settings than shapes, the
    shapes come again half filled.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def entry(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=style.shorten(label, LABEL_LIMIT), **look)

    lines = [Line2D([], [], label="Pareto front", **_FRONT)]
    if len(points) > MAX_SERIES:
        lines.append(Line2D([], [], color=style.GREY, linewidth=0.8, label="moved aside (line to the true place)"))
    models = list(dict.fromkeys(point.model for point in points))
    settings = list(dict.fromkeys(point.setting.removesuffix(WITH_KD) for point in points))
    looks, colours = [], style.model_colours(models)
    for point in points:
        at = settings.index(point.setting.removesuffix(WITH_KD))
        looks.append(_look(colours[point.model], at, hollow=point.setting.endswith(WITH_KD)))
    handles: list[Artist] = [Patch(color=colours[model], label=model) for model in models]
    if len(settings) > 1 or settings[0]:
        handles += [entry(one or "plain", **_look(style.GREY, at)) for at, one in enumerate(settings)]
    if any(point.setting.endswith(WITH_KD) for point in points):
        handles.append(entry("hollow: with kd", **_look(style.GREY, 0, hollow=True)))
    return looks, [*handles, *lines]


def _look(colour: str, setting: int, hollow: bool = False) -> dict[str, Any]:
    shape, fill = SHAPES[setting % len(SHAPES)], FILLS[setting // len(SHAPES) % len(FILLS)]
    size = MARKER_PT * SHAPE_SCALE.get(shape, 1.0)
    face, edge, width = ("white", colour, 1.5) if hollow else (colour, "white", 0.7)
    if fill != "full":
        edge, width = colour, 1.0
    return {
        "fillstyle": fill,
        "markerfacecoloralt": "white",
        "marker": shape,
        "markersize": size,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": width,
    }
