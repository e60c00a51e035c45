"""Figures of validation scores over epochs, drawn from plain numbers by group label, in the order of the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.comparison.charts import LABEL_LIMIT, MAX_SERIES, Names, legend_width, model_colours, score_limits
from speech_exp.comparison.score import Score
from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]  # epochs, validation score


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
def draw_curves(curves: Mapping[str, Sequence[Curve]], names: Mapping[str, Names], score: Score) -> Figure:
    """Draw the curves; from six epochs on, a second panel repeats the later half, without the start that squeezes the scale."""
    labels = list(curves)
    last = max(max(epochs) for label in labels for epochs, _ in curves[label])
    panels = 2 if last >= 6 else 1
    figure = style.new_figure((4.2 if panels == 1 else 7.6) + legend_width(labels), max(3.0, 0.7 + 0.19 * len(labels)))
    axes_list = [figure.subplots()] if panels == 1 else list(figure.subplots(1, 2))
    summaries = {label: _summary(curves[label]) for label in labels}
    looks = _line_styles(labels, names)
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
        axes_list[1].set(title="Second half")
        _epoch_limits(axes_list[1], start, last)
        score_limits(axes_list[1].set_ylim, shown[np.isfinite(shown)], score)
    handles, shown_names = axes_list[0].get_legend_handles_labels()
    band = "\nbands: lowest to\nhighest run" if last > 1 and any(len(curves[label]) > 1 for label in labels) else ""
    place: dict[str, Any] = {"loc": "outside right center", "title_fontsize": 8, "alignment": "left"}
    legend = figure.legend(handles, shown_names, title=f"mean of runs{band}", **place)
    for label, line, text in zip(labels, legend.legend_handles, legend.get_texts(), strict=True):
        for part in (line, text):
            if part is not None:
                part.set_gid(style.group_id(label))
    return figure


def _line_styles(labels: Sequence[str], names: Mapping[str, Names]) -> dict[str, dict[str, Any]]:
    """Return the line of each group: the colour of its model and a line style for its setting.

    If there are more settings than line styles, each group has a colour that is not one of a model's.
    """
    settings = list(dict.fromkeys(names[label][1] for label in labels))
    if len(settings) > len(style.LINE_STYLES):
        return {label: style.setting_style(at) for at, label in enumerate(labels)}
    colours = model_colours(names)
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
    start, last = (min(lasts) + 1) // 2, max(lasts)
    handles: dict[str, Any] = {}
    for model, axes in zip(models, panels, strict=True):
        for label in (label for label in curves if names[label][0] == model):
            setting = names[label][1] or "plain"
            look = style.setting_style(settings.index(names[label][1]))
            handles[setting] = _plot_curve(axes, *summaries[label], setting, {**look, "gid": style.group_id(label)})
        axes.grid(True)
        style.integer_ticks(axes)
        axes.set(xlabel="epoch")
        axes.set_title(model, color=model_colours(names)[model])
        _epoch_limits(axes, start, last)
    panels[0].set_ylabel(f"validation {score.title} (%)")
    shown = np.concatenate([mean[epochs >= start] for epochs, mean in summaries.values()])
    score_limits(panels[0].set_ylim, shown / 100, score)
    ordered = [handles[setting or "plain"] for setting in settings]
    figure.legend(handles=ordered, loc="outside right center", title="mean of runs", title_fontsize=8, alignment="left")
    return figure


def _epoch_limits(axes: Axes, first: float, last: float) -> None:
    """Show these epochs, with room for the markers at both ends."""
    margin = 0.03 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)


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
