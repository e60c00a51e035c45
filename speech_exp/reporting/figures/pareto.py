"""Test score over a cost (bytes, latency, training), one marker a group, and the Pareto front of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.reporting.figures import style
from speech_exp.reporting.figures.comparing import LABEL_LIMIT, MOST_SERIES, legend_width, score_limits
from speech_exp.reporting.score import Score

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SHAPES = (*style.MARKERS, "<", ">", "p", "d", "h")
WITH_KD = " + kd"  # ends the setting of a group with a teacher: drawn as the hollow form of the same shape
MARKER_PT = 7.5
SHAPE_SCALE = {"*": 1.5, "P": 1.1, "X": 1.1, "p": 1.15, "h": 1.15, "d": 1.15, "D": 0.9}  # to look equally large


@dataclass(frozen=True)
class Cost:
    """What a score is paid with; the axis shows it divided by `shown_per`."""

    title: str
    axis: str
    shown_per: float = 1.0


BYTES = Cost("bytes", "stored model (kB = 1000 bytes, log scale)", 1000.0)
LATENCY = Cost("latency", "mean latency of an utterance (ms, log scale)")
TRAINING = Cost("training time", "training (s, log scale)")


@dataclass(frozen=True)
class Point:
    """A group; `model` is empty where the groups do not differ in it, `setting` is all else that they differ in."""

    model: str
    setting: str
    cost: float  # above 0
    score: float  # a fraction, mean over seeds
    half_width: float | None = None  # of its interval

    @property
    def label(self) -> str:
        return " · ".join(part for part in (self.model, self.setting) if part)


def comparison_front(points: Sequence[Point], cost: Cost, score: Score, path: str | os.PathLike[str]) -> Path:
    """Markers that would cover each other stand side by side, each tied to its true place by a line."""
    return style.save(draw_front(points, cost, score), path)


def pareto_front(points: Sequence[Point], score: Score) -> list[int]:
    """Indices, by rising cost, of the points that no other equals in one of cost and score and beats in the other."""
    sign = -1 if score.higher_is_better else 1
    # Rounded, as means of equal counts may differ in their last bit.
    places = [(point.cost, sign * round(point.score, 9)) for point in points]
    front = [
        at
        for at, place in enumerate(places)
        if not any(other != place and other[0] <= place[0] and other[1] <= place[1] for other in places)
    ]
    return sorted(front, key=lambda at: (places[at], at))


@style.styled
def draw_front(points: Sequence[Point], cost: Cost, score: Score) -> Figure:
    from matplotlib.ticker import FixedLocator, NullLocator

    looks, handles = _looks(points)
    names = [str(handle.get_label()) for handle in handles]
    figure = style.new_figure(5.4 + legend_width(names), max(3.8, 1.0 + 0.185 * len(handles)))
    axes = figure.subplots()
    intervals = len(points) <= MOST_SERIES and any(point.half_width is not None for point in points)
    costs = [point.cost for point in points]
    low, high = min(costs), max(costs)
    margin = max(1.15, (high / low) ** 0.08)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(_round_ticks(low / margin, high * margin)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / cost.shown_per:,.6g}")
    halves = [(point.half_width or 0) if intervals else 0 for point in points]
    ends = [point.score + sign * half for point, half in zip(points, halves, strict=True) for sign in (-1, 1)]
    score_limits(axes.set_ylim, ends, score)
    axes.grid(True)
    title = f"{score.title[0].upper()}{score.title[1:]} over {cost.title}"
    axes.set(xlabel=cost.axis, ylabel=f"test {score.title} (%)", title=title)
    heading = "mean over seeds" + (", 95 % interval" if intervals else "")
    figure.legend(handles, names, loc="outside right center", title=heading, title_fontsize=8, alignment="left")
    _draw_stairs(axes, points, score)
    figure.draw_without_rendering()  # lays out the axes: from here on a place in pixels is known
    _draw_points(axes, points, looks, halves)
    return figure


def _draw_points(axes: Axes, points: Sequence[Point], looks: Sequence[dict[str, Any]], halves: Sequence[float]) -> None:
    true_P2 = np.array([(point.cost, 100 * point.score) for point in points])
    pixels_P2 = axes.transData.transform(true_P2)
    width_px = MARKER_PT / 72 * axes.figure.dpi
    # Error bars, unlike markers, hide each other at whatever height they stand.
    moved_P2 = _side_by_side(pixels_P2 * (1, 0) if any(halves) else pixels_P2, 0.9 * width_px)
    shown_P2 = axes.transData.inverted().transform(np.column_stack([moved_P2[:, 0], pixels_P2[:, 1]]))
    for point, look, half, true_2, shown_2 in zip(points, looks, halves, true_P2, shown_P2, strict=True):
        colour = look["markeredgecolor"] if look["markerfacecolor"] == "white" else look["markerfacecolor"]
        if half:
            axes.errorbar(shown_2[0], shown_2[1], yerr=100 * half, color=colour, elinewidth=1.2, capsize=3, zorder=3)
        if not np.allclose(true_2, shown_2):
            axes.plot(*zip(true_2, shown_2, strict=True), color=colour, linewidth=0.8, zorder=3)
        axes.plot(*shown_2, linestyle="none", zorder=4, clip_on=False, label=point.label, **look)


def _side_by_side(pixels_P2: np.ndarray, apart_px: float) -> np.ndarray:
    """Places moved sideways, as little as can be and from left to right, until all are `apart_px` or more apart."""
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
    """The best score to be had for at most so much."""
    front = [points[at] for at in pareto_front(points, score)]
    costs = [point.cost for point in front] + [axes.get_xlim()[1]]
    best = [100 * point.score for point in front] + [100 * front[-1].score]
    axes.plot(costs, best, drawstyle="steps-post", **_FRONT)


_FRONT: dict[str, Any] = {"color": style.GREY, "linewidth": 1.3, "linestyle": style.LINE_STYLES[1], "zorder": 2}


def _looks(points: Sequence[Point]) -> tuple[list[dict[str, Any]], list[Artist]]:
    """The marker of each point, and the legend's entries.

    Of several models, colours are models and shapes are settings, so that 30 groups need 3 + 10 entries; otherwise, or
    where settings are more than shapes, each point has an entry of its own.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def entry(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=style.shorten(label, LABEL_LIMIT), **look)

    lines = [Line2D([], [], label="Pareto front", **_FRONT)]
    if len(points) > MOST_SERIES:
        lines.append(Line2D([], [], color=style.GREY, linewidth=0.8, label="moved aside to be seen"))
    models = list(dict.fromkeys(point.model for point in points))
    settings = list(dict.fromkeys(point.setting.removesuffix(WITH_KD) for point in points))
    if len(models) < 2 or len(settings) > len(SHAPES):
        series = [style.series_style(at) for at in range(len(points))]
        looks = [_look(str(one["color"]), str(one["marker"])) for one in series]
        return looks, [*(entry(p.label, **look) for p, look in zip(points, looks, strict=True)), *lines]
    looks = []
    for point in points:
        shape = SHAPES[settings.index(point.setting.removesuffix(WITH_KD))]
        colour = style.PALETTE[models.index(point.model) % len(style.PALETTE)]
        looks.append(_look(colour, shape, hollow=point.setting.endswith(WITH_KD)))
    handles: list[Artist] = [
        Patch(color=style.PALETTE[at % len(style.PALETTE)], label=model) for at, model in enumerate(models)
    ]
    if len(settings) > 1 or settings[0]:
        handles += [entry(one or "plain", **_look(style.GREY, SHAPES[at])) for at, one in enumerate(settings)]
    if any(point.setting.endswith(WITH_KD) for point in points):
        handles.append(entry("hollow: with kd", **_look(style.GREY, "o", hollow=True)))
    return looks, [*handles, *lines]


def _look(colour: str, shape: str, hollow: bool = False) -> dict[str, Any]:
    size = MARKER_PT * SHAPE_SCALE.get(shape, 1.0)
    face, edge, width = ("white", colour, 1.5) if hollow else (colour, "white", 0.7)
    return {
        "marker": shape,
        "markersize": size,
        "markerfacecolor": face,
        "markeredgecolor": edge,
        "markeredgewidth": width,
    }


def _round_ticks(low: float, high: float) -> list[float]:
    """Round costs within the limits, at most about seven; finer steps where they lie close together."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(n / 10 for n in range(10, 100))):
        ticks = [step * 10.0**power for power in range(-4, 13) for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside[:: -(-len(inside) // 7)]
    return [low, high]
