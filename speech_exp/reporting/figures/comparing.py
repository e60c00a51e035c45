"""Figures of a comparison: plain numbers by group label, in the order in which the groups are to stand."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.reporting.figures import style
from speech_exp.reporting.score import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Means = Mapping[str, tuple[float, float | None]]  # label: (mean, half width of the interval or None)
Curve = tuple[Sequence[float], Sequence[float]]  # epochs, validation score
Names = tuple[str, str]  # model and setting of a group; its label is made of both

LABEL_LIMIT = 44
MOST_SERIES = 8  # beyond it a panel of curves is cluttered, and bands or error bars would hide each other
MOST_WRITTEN_CLASSES = 20


def comparison_scores(
    seeds: Mapping[str, Sequence[float]],
    means: Means,
    score: Score,
    path: str | os.PathLike[str],
    worst: Mapping[str, float] | None = None,
) -> Path:
    """Test score (a fraction) of each seed, the mean and its interval; `worst` marks the worst test speaker's."""
    return style.save(draw_scores(seeds, means, worst or {}, score), path)


def comparison_per_class(scores: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str]) -> Path:
    """F1 (0 to 1) of each class and group as a heat map."""
    return style.save(draw_per_class(scores), path)


def comparison_curves(
    curves: Mapping[str, Sequence[Curve]], names: Mapping[str, Names], score: Score, path: str | os.PathLike[str]
) -> Path:
    """Validation score over epochs: mean of a group's runs, and a band from its lowest to its highest run.

    Many groups are drawn without bands, one panel a model.
    """
    shown = {label: runs for label, runs in curves.items() if runs}
    many = len(shown) > MOST_SERIES
    return style.save(draw_curves_of_models(shown, names, score) if many else draw_curves(shown, score), path)


@style.styled
def draw_scores(seeds: Mapping[str, Sequence[float]], means: Means, worst: Mapping[str, float], score: Score) -> Figure:
    from matplotlib.lines import Line2D

    labels = list(seeds)
    row_in = 0.44 if len(labels) <= MOST_SERIES else 0.36
    figure = style.new_figure(_width(labels, 4.6), 1.25 + row_in * len(labels))
    axes = figure.subplots()
    for row, label in enumerate(labels):
        mean, half = means[label]
        values = 100 * np.sort(np.asarray(seeds[label], dtype=float))
        if half is None:
            axes.plot(values, [row] * len(values), "o", color=style.SKY, markersize=6, markeredgecolor="white")
        else:
            axes.plot(values, row + 0.2 + _stacked(values), "o", color=style.SKY, markersize=5, markeredgecolor="white")
            axes.plot([100 * (mean - half), 100 * (mean + half)], [row, row], color=style.BLUE, linewidth=2, zorder=3)
            axes.plot([100 * mean], [row], "D", color=style.BLUE, markersize=6, markeredgecolor="white", zorder=4)
        if label in worst:
            axes.plot([100 * worst[label]], [row], "v", color=style.VERMILLION, markersize=6, zorder=4)
    axes.set_yticks(range(len(labels)), _short(labels))
    axes.set_ylim(len(labels) - 0.3, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(True)
    axes.set(xlabel=f"test {score.title} (%)", title=f"Test {score.title}")
    shown = [value for label in labels for value in seeds[label]] + [mean for mean, _ in means.values()]
    shown += [*worst.values(), *(mean + sign * (half or 0) for mean, half in means.values() for sign in (-1, 1))]
    score_limits(axes.set_xlim, shown, score)
    _write_means(axes, labels, means)
    plain: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white"}
    handles = [Line2D([], [], color=style.SKY, marker="o", label="one seed", **plain)]
    if any(half is not None for _, half in means.values()):
        handles.append(Line2D([], [], color=style.BLUE, marker="D", label="mean", **plain))
        handles.append(Line2D([], [], color=style.BLUE, linewidth=2, label="95 % interval"))
    if worst:
        handles.append(Line2D([], [], color=style.VERMILLION, marker="v", linestyle="none", label="worst speaker"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _stacked(values: np.ndarray) -> np.ndarray:
    """Offsets, in rows, that pile up equal scores, common in small test sets, so that none hides another."""
    before = [sum(abs(other - value) < 0.02 for other in values[:at]) for at, value in enumerate(values)]
    return np.minimum(0.09 * np.array(before), 0.3)


def _write_means(axes: Axes, labels: Sequence[str], means: Means) -> None:
    """The numbers in a column right of the axes, where no point can lie under them."""
    twin = axes.twinx()
    texts = []
    for mean, half in (means[label] for label in labels):
        texts.append(f"{100 * mean:.2f}" + (f" ± {100 * half:.2f}" if half is not None else ""))
    twin.set_yticks(range(len(labels)), texts)
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
    cell_in = 0.48 if len(classes) <= MOST_WRITTEN_CLASSES else 0.24
    probe = style.new_figure(1, 1)
    name_in = max(style.text_width_in(probe, name, fontsize=8.0) for name in names)
    upright = name_in < 0.9 * cell_in
    width, height = (
        _width(labels, cell_in * len(classes) + 0.9),
        0.3 * len(labels) + (0.15 if upright else name_in) + 0.85,
    )
    figure = style.new_figure(max(width, 3.2), max(height, 1.7))
    axes = figure.subplots()
    # Most scores lie close to 1: the scale starts at the tenth below the lowest, at most at 0.9.
    floor = min(0.9, np.floor(10 * np.nanmin(matrix_GV)) / 10)
    shades = style.shades(style.BLUE, 0.6).with_extremes(bad=style.PALE)
    image = axes.imshow(
        100 * matrix_GV, cmap=shades, vmin=100 * floor, vmax=100, aspect="auto", interpolation="nearest"
    )
    axes.set_xticks(range(len(classes)), names, rotation=0 if upright else 90)
    axes.set_yticks(range(len(labels)), _short(labels))
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel="class", title="F1 of each class")
    figure.colorbar(image, ax=axes, label="F1 (%)", aspect=12, fraction=0.04)
    if len(classes) <= MOST_WRITTEN_CLASSES:
        for row, column in zip(*np.nonzero(np.isfinite(matrix_GV)), strict=True):
            value = 100 * matrix_GV[row, column]
            ink = style.ink_on(tuple(shades((value / 100 - floor) / (1 - floor))))
            text = f"{value:.1f}".replace("100.0", "100")
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
    return figure


@style.styled
def draw_curves(curves: Mapping[str, Sequence[Curve]], score: Score) -> Figure:
    """The right panel repeats the second half of the epochs, where the first steps no longer squeeze the scale."""
    labels = list(curves)
    last = max(max(epochs) for label in labels for epochs, _ in curves[label])
    panels = 2 if last >= 6 else 1
    figure = style.new_figure((4.2 if panels == 1 else 7.6) + legend_width(labels), max(3.0, 0.7 + 0.19 * len(labels)))
    axes_list = [figure.subplots()] if panels == 1 else list(figure.subplots(1, 2))
    summaries = {label: _summary(curves[label]) for label in labels}
    for axes in axes_list:
        for index, label in enumerate(labels):
            epochs, mean, low, high = summaries[label]
            look = style.series_style(index)
            _plot_curve(axes, epochs, mean, label, look)
            if len(curves[label]) > 1:
                axes.fill_between(epochs, low, high, color=look["color"], alpha=0.13, linewidth=0)
        axes.grid(True)
        style.integer_ticks(axes)
        axes.set(xlabel="epoch", ylabel=f"validation {score.title} (%)")
    axes_list[0].set_title(f"Validation {score.title}")
    if panels == 2:
        start = (last + 1) // 2
        values = [(low[epochs >= start], high[epochs >= start]) for epochs, _, low, high in summaries.values()]
        shown = np.concatenate([part for pair in values for part in pair]) / 100
        axes_list[1].set(title="Second half", xlim=(start, last))
        score_limits(axes_list[1].set_ylim, shown[np.isfinite(shown)], score)
    handles, names = axes_list[0].get_legend_handles_labels()
    band = "\nbands: lowest to\nhighest run" if any(len(curves[label]) > 1 for label in labels) else ""
    figure.legend(
        handles, names, loc="outside right center", title=f"mean of runs{band}", title_fontsize=8, alignment="left"
    )
    return figure


@style.styled
def draw_curves_of_models(curves: Mapping[str, Sequence[Curve]], names: Mapping[str, Names], score: Score) -> Figure:
    """Means alone over the second half of the shortest curve and what comes after it, one panel a model."""
    models = list(dict.fromkeys(names[label][0] for label in curves))
    settings = list(dict.fromkeys(names[label][1] for label in curves))
    figure = style.new_figure(1.2 + 3.2 * len(models) + legend_width(settings), max(3.4, 0.9 + 0.185 * len(settings)))
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    summaries = {label: _summary(runs)[:2] for label, runs in curves.items()}
    lasts = [epochs[-1] for epochs, _ in summaries.values()]
    start, last = min(lasts) // 2, max(lasts)
    handles: dict[str, Any] = {}
    for model, axes in zip(models, panels, strict=True):
        for label in (label for label in curves if names[label][0] == model):
            setting = names[label][1] or "plain"
            look = style.series_style(settings.index(names[label][1]))
            handles[setting] = _plot_curve(axes, *summaries[label], setting, look)
        axes.grid(True)
        style.integer_ticks(axes)
        axes.set(xlabel="epoch", title=model or f"Validation {score.title}")
        axes.set_xlim(start, last)
    panels[0].set_ylabel(f"validation {score.title} (%)")
    shown = np.concatenate([mean[epochs >= start] for epochs, mean in summaries.values()])
    score_limits(panels[0].set_ylim, shown / 100, score)
    ordered = [handles[setting or "plain"] for setting in settings]
    figure.legend(handles=ordered, loc="outside right center", title="mean of runs", title_fontsize=8, alignment="left")
    return figure


def _plot_curve(axes: Axes, epochs: np.ndarray, mean: np.ndarray, label: str, look: dict[str, Any]) -> Any:
    """The line, with markers where epochs are few."""
    marker = look["marker"] if len(epochs) <= 12 else None
    short = style.shorten(label, LABEL_LIMIT)
    return axes.plot(epochs, mean, linewidth=1.6, markersize=4, label=short, **{**look, "marker": marker})[0]


def _summary(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, mean, lowest and highest score in percent; a run stopped early keeps its last value, so that the mean
    does not jump when it drops out."""
    epochs = np.array(sorted({epoch for one, _ in runs for epoch in one}))
    values = []
    for own_epochs, accuracies in runs:
        order = np.argsort(own_epochs)
        values.append(
            np.interp(epochs, np.asarray(own_epochs)[order], 100 * np.asarray(accuracies, dtype=float)[order])
        )
    stacked = np.stack(values)
    return epochs, stacked.mean(axis=0), stacked.min(axis=0), stacked.max(axis=0)


def score_limits(setter: Callable[..., Any], fractions: Sequence[float] | np.ndarray, score: Score) -> None:
    """Limits in percent around the values, at least one point wide: beyond the best score, 100 or an error rate of 0,
    only by what a marker needs."""
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
