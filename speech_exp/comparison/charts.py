"""Figures of a comparison, drawn from plain numbers by group label, in the order of the groups."""

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
Curve = tuple[Sequence[float], Sequence[float]]  # epochs, validation score
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


def comparison_curves(
    curves: Mapping[str, Sequence[Curve]], names: Mapping[str, Names], score: Score, path: Path
) -> Path:
    """Draw the validation score over epochs: the mean of a group's runs, and a band from the lowest to the highest run.

    Many groups are drawn without bands, in one panel per model.
    """
    shown = {label: runs for label, runs in curves.items() if runs}
    draw = draw_curves_of_models if len(shown) > MAX_SERIES else draw_curves
    return style.save_with_svg(draw(shown, names, score), path)


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
        of_group: dict[str, Any] = {"color": _colours(names)[names[label][0]], "gid": style.group_id(label)}
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


def _colours(names: Mapping[str, Names]) -> dict[str, str]:
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
    """Write the numbers in a column to the right of the axes, where they cannot cover a point."""
    twin = axes.twinx()
    texts = []
    for mean, low, high in (means[label] for label in labels):
        interval = "" if low is None or high is None else f" ({100 * low:.2f} to {100 * high:.2f})"
        texts.append(f"{100 * mean:.2f}{interval}")
    _name_rows(twin, labels, texts)
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


@style.styled
def draw_curves(curves: Mapping[str, Sequence[Curve]], names: Mapping[str, Names], score: Score) -> Figure:
    """Draw the curves; from six epochs on, a second panel repeats the later half, without the start that squeezes the scale."""
    labels = list(curves)
    last = max(max(epochs) for label in labels for epochs, _ in curves[label])
    panels = 2 if last >= 6 else 1
    figure = style.new_figure((4.2 if panels == 1 else 7.6) + legend_width(labels), max(3.0, 0.7 + 0.19 * len(labels)))
    axes_list = [figure.subplots()] if panels == 1 else list(figure.subplots(1, 2))
    summaries = {label: _summary(curves[label]) for label in labels}
    looks = _looks(labels, names)
    for axes in axes_list:
        for label in labels:
            epochs, mean, low, high = summaries[label]
            _plot_curve(axes, epochs, mean, label, {**looks[label], "gid": style.group_id(label)})
            if len(curves[label]) > 1:
                fill = {"color": looks[label]["color"], "gid": style.group_id(label)}
                axes.fill_between(epochs, low, high, alpha=0.13, linewidth=0, **fill)
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
    handles, shown_names = axes_list[0].get_legend_handles_labels()
    band = "\nbands: lowest to\nhighest run" if any(len(curves[label]) > 1 for label in labels) else ""
    place: dict[str, Any] = {"loc": "outside right center", "title_fontsize": 8, "alignment": "left"}
    legend = figure.legend(handles, shown_names, title=f"mean of runs{band}", **place)
    for label, line, text in zip(labels, legend.legend_handles, legend.get_texts(), strict=True):
        for part in (line, text):
            if part is not None:
                part.set_gid(style.group_id(label))
    return figure


def _looks(labels: Sequence[str], names: Mapping[str, Names]) -> dict[str, dict[str, Any]]:
    """Return the line of each group: the colour of its model and a line style for its setting, if these are few enough."""
    settings = list(dict.fromkeys(names[label][1] for label in labels))
    if len({names[label][0] for label in labels}) < 2 or len(settings) > len(style.LINE_STYLES):
        return {label: style.series_style(at) for at, label in enumerate(labels)}
    colours = _colours(names)
    looks = {}
    for label in labels:
        model, setting = names[label]
        at = settings.index(setting)
        looks[label] = {"color": colours[model], "linestyle": style.LINE_STYLES[at], "marker": style.MARKERS[at]}
    return looks


@style.styled
def draw_curves_of_models(curves: Mapping[str, Sequence[Curve]], names: Mapping[str, Names], score: Score) -> Figure:
    """Draw only the means, in one panel per model, from the middle of the shortest curve onwards."""
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
            handles[setting] = _plot_curve(axes, *summaries[label], setting, {**look, "gid": style.group_id(label)})
        axes.grid(True)
        style.integer_ticks(axes)
        axes.set(xlabel="epoch", title=model or f"Validation {score.title}")
        if model:
            axes.title.set_color(_colours(names)[model])
        axes.set_xlim(start, last)
    panels[0].set_ylabel(f"validation {score.title} (%)")
    shown = np.concatenate([mean[epochs >= start] for epochs, mean in summaries.values()])
    score_limits(panels[0].set_ylim, shown / 100, score)
    ordered = [handles[setting or "plain"] for setting in settings]
    figure.legend(handles=ordered, loc="outside right center", title="mean of runs", title_fontsize=8, alignment="left")
    return figure


def _plot_curve(axes: Axes, epochs: np.ndarray, mean: np.ndarray, label: str, look: dict[str, Any]) -> Any:
    """Draw the line, with markers if there are few epochs."""
    marker = look["marker"] if len(epochs) <= 12 else None
    short = style.shorten(label, LABEL_LIMIT)
    return axes.plot(epochs, mean, linewidth=1.6, markersize=4, label=short, **{**look, "marker": marker})[0]


def _summary(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the epochs and the mean, lowest and highest score in percent.

    A run that stopped early keeps its last value; otherwise the mean would jump when the run drops out.
    """
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
