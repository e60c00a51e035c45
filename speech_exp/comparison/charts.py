"""Figures of the test scores of a comparison, drawn from plain numbers by group label, in the order of the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.comparison.score import Score
from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mean = tuple[float, float | None, float | None]  # mean, and low and high end of its interval (None without one)
Means = Mapping[str, Mean]  # by label
Names = tuple[str, str]  # model and setting of a group, which form its label

LABEL_LIMIT = 44
MAX_SERIES = 8  # with more, a panel of curves is cluttered, and bands or error bars hide each other
MAX_WRITTEN_CLASSES = 20


def comparison_scores(
    seeds: Mapping[str, Sequence[float]],
    means: Means,
    worst: Mapping[str, float],
    names: Mapping[str, Names],
    score: Score,
    path: Path,
) -> Path:
    """Draw the test score (a fraction) of each seed, the mean and its interval; `worst` is the worst test speaker's score."""
    return style.save_with_svg(draw_scores(seeds, means, worst, names, score), path)


def comparison_per_class(scores: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Draw the F1 (0 to 1) of each class and group as a heat map."""
    return style.save_with_svg(draw_per_class(scores), path)


@style.styled
def draw_scores(
    seeds: Mapping[str, Sequence[float]],
    means: Means,
    worst: Mapping[str, float],
    names: Mapping[str, Names],
    score: Score,
) -> Figure:
    from matplotlib.lines import Line2D

    labels = list(seeds)
    row_in = 0.44 if len(labels) <= MAX_SERIES else 0.36
    figure = style.new_figure(_width(labels, 4.6), 1.25 + row_in * len(labels))
    axes = figure.subplots()
    for row, label in enumerate(labels):
        mean, low, high = means[label]
        of_group: dict[str, Any] = {"color": model_colours(names)[names[label][0]], "gid": style.group_id(label)}
        seed = {**of_group, "alpha": 0.45, "markeredgecolor": "white"}
        values = 100 * np.sort(np.asarray(seeds[label], dtype=float))
        if low is None or high is None:
            axes.plot(values, [row] * len(values), "o", markersize=6, **seed)
        else:
            axes.plot(values, row + 0.2 + _stacked(values), "o", markersize=5, **seed)
            axes.plot([100 * low, 100 * high], [row, row], linewidth=2, zorder=3, **of_group)
            axes.plot([100 * mean], [row], "D", markersize=6, markeredgecolor="white", zorder=4, **of_group)
        if label in worst:
            axes.plot([100 * worst[label]], [row], "v", markersize=6, zorder=4, **of_group | {"color": style.TEXT})
    _name_rows(axes, labels, _short(labels))
    axes.set_ylim(len(labels) - 0.3, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(True)
    axes.set(xlabel=f"test {score.title} (%)", title=f"Test {score.title}")
    shown = [value for label in labels for value in seeds[label]] + [*worst.values()]
    shown += [value for own in means.values() for value in own if value is not None]
    score_limits(axes.set_xlim, shown, score)
    _write_means(axes, labels, means)
    plain: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white"}
    handles = [Line2D([], [], color=style.GREY, alpha=0.45, marker="o", label="one seed", **plain)]
    if any(low is not None for _, low, _ in means.values()):
        handles.append(Line2D([], [], color=style.GREY, marker="D", label="mean", **plain))
        handles.append(Line2D([], [], color=style.GREY, linewidth=2, label="95 % interval"))
    if worst:
        handles.append(Line2D([], [], color=style.TEXT, marker="v", linestyle="none", label="worst speaker"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def model_colours(names: Mapping[str, Names]) -> dict[str, str]:
    return style.model_colours(model for model, _ in names.values())


def _name_rows(axes: Axes, labels: Sequence[str], texts: Sequence[str]) -> None:
    """Write a text beside the row of each group."""
    axes.set_yticks(range(len(labels)), texts)
    for label, text in zip(labels, axes.get_yticklabels(), strict=True):
        text.set_gid(style.group_id(label))


def _stacked(values: np.ndarray) -> np.ndarray:
    """Return offsets, in rows, that stack equal scores (common in small test sets) to keep all of them visible."""
    before = [sum(abs(other - value) < 0.02 for other in values[:at]) for at, value in enumerate(values)]
    return np.minimum(0.09 * np.array(before), 0.3)


def _write_means(axes: Axes, labels: Sequence[str], means: Means) -> None:
    """Write the numbers in a column to the right of the axes, where they cannot cover a point, with a title above."""
    twin = axes.twinx()
    texts = []
    for mean, low, high in (means[label] for label in labels):
        interval = "" if low is None or high is None else f" ({100 * low:.2f} to {100 * high:.2f})"
        texts.append(f"{100 * mean:.2f}{interval}")
    _name_rows(twin, labels, texts)
    head = "mean (95 % interval)" if any(low is not None for _, low, _ in means.values()) else "mean"
    twin.annotate(head, (1, 1), (3.5, 4), xycoords="axes fraction", textcoords="offset points", fontsize=8)
    twin.set_ylim(axes.get_ylim())
    twin.tick_params(axis="y", length=0)
    for spine in twin.spines.values():
        spine.set_visible(False)


@style.styled
def draw_per_class(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    labels = list(scores)
    classes = list(dict.fromkeys(name for values in scores.values() for name in values))
    matrix_GV = np.array([[scores[label].get(name, np.nan) for name in classes] for label in labels])
    names = [style.shorten(name, 22) for name in classes]
    cell_in = 0.48 if len(classes) <= MAX_WRITTEN_CLASSES else 0.24
    probe = style.new_figure(1, 1)
    name_in = max(style.text_width_in(probe, name, fontsize=8.0) for name in names)
    upright = name_in < 0.9 * cell_in
    width, height = (
        _width(labels, cell_in * len(classes) + 0.9),
        0.3 * len(labels) + (0.15 if upright else name_in) + 0.85,
    )
    figure = style.new_figure(max(width, 3.2), max(height, 1.7))
    axes = figure.subplots()
    # Most scores are close to 1: start the scale at the tenth below the lowest score, but at most at 0.9.
    floor = min(0.9, np.floor(10 * np.nanmin(matrix_GV)) / 10)
    shades = style.shades(style.BLUE, 0.6).with_extremes(bad=style.PALE)
    masked_GV = np.ma.masked_invalid(100 * matrix_GV)
    edges_V = np.arange(len(classes) + 1) - 0.5
    for row, label in enumerate(labels):
        image = axes.pcolormesh(
            edges_V, (row - 0.5, row + 0.5), masked_GV[row : row + 1], cmap=shades, vmin=100 * floor, vmax=100,
            gid=style.group_id(label),
        )  # fmt: skip
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xticks(range(len(classes)), names, rotation=0 if upright else 90)
    _name_rows(axes, labels, _short(labels))
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel="class", title="F1 of each class")
    figure.colorbar(image, ax=axes, label="F1 (%)", aspect=12, fraction=0.04)
    if len(classes) <= MAX_WRITTEN_CLASSES:
        for row, column in zip(*np.nonzero(np.isfinite(matrix_GV)), strict=True):
            value = 100 * matrix_GV[row, column]
            ink = style.ink_on(tuple(shades((value / 100 - floor) / (1 - floor))))
            text = f"{value:.1f}".replace("100.0", "100")
            axes.text(
                column, row, text, ha="center", va="center", fontsize=7.5, color=ink, gid=style.group_id(labels[row])
            )
    return figure


def score_limits(setter: Callable[..., Any], fractions: Sequence[float] | np.ndarray, score: Score) -> None:
    """Set axis limits in percent around the values, at least one point wide.

    They exceed the best possible score (100, or an error rate of 0) only by the space that a marker needs.
    """
    low, high = 100 * min(fractions), 100 * max(fractions)
    margin = max(0.06 * (high - low), 0.15)
    if high - low < 1:
        margin = max(margin, (1 - (high - low)) / 2)
    if score.higher_is_better:
        setter(low - margin, min(high + margin, max(100.0, high) + 0.04 * (100 - low) + 0.08))
    else:
        setter(max(low - margin, min(0.0, low) - 0.04 * high - 0.08), high + margin)


def _short(labels: Sequence[str]) -> list[str]:
    return [style.shorten(label, LABEL_LIMIT) for label in labels]


def _label_width(labels: Sequence[str]) -> float:
    probe = style.new_figure(1, 1)
    return max(style.text_width_in(probe, label, fontsize=8.0) for label in _short(labels))


def _width(labels: Sequence[str], plot_in: float) -> float:
    return plot_in + _label_width(labels) + 0.4


def legend_width(labels: Sequence[str]) -> float:
    return max(_label_width(labels), 0.9) + 0.7
