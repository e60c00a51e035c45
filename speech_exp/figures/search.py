"""Figure of a hyperparameter search: the metric of each trial in order, and over each parameter that was varied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3


@dataclass(frozen=True)
class Trial:
    """One finished trial: the metric that the search judges it by (a fraction), and the value of each parameter."""

    number: int
    value: float
    params: Mapping[str, Any]


def search_figure(
    trials: Sequence[Trial],
    metric: str,
    maximize: bool,
    logarithmic: Sequence[str],
    title: str,
    path: str | os.PathLike[str],
) -> Path:
    """Draw the history of a search and one panel per parameter; `logarithmic` names those that were drawn on a log scale."""
    return style.save(draw_search(trials, metric, maximize, logarithmic, title), path)


@style.styled
def draw_search(trials: Sequence[Trial], metric: str, maximize: bool, logarithmic: Sequence[str], title: str) -> Figure:
    if not trials:
        raise ValueError("the search has no finished trials, expected at least one: repeat the search")
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    columns = min(_COLUMNS, 1 + len(keys))
    rows = -(-(1 + len(keys)) // columns)
    figure = style.new_figure(0.4 + 3.2 * columns, 0.9 + 2.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    best = (max if maximize else min)(trials, key=lambda trial: trial.value)
    _history(panels[0], trials, best, maximize)
    for axes, key in zip(panels[1:], keys, strict=False):
        _slice(axes, [trial for trial in trials if key in trial.params], best, key, key in logarithmic)
    for axes in panels[1 + len(keys) :]:
        axes.remove()
    for row in range(rows):
        panels[row * columns].set_ylabel(f"validation {metric} (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.set_title(figure, title, f"best: trial {best.number}, {100 * best.value:.2f} %")
    return figure


def _history(axes: Axes, trials: Sequence[Trial], best: Trial, maximize: bool) -> None:
    ordered = sorted(trials, key=lambda trial: trial.number)
    numbers = [trial.number for trial in ordered]
    values = 100 * np.array([trial.value for trial in ordered])
    so_far = (np.maximum if maximize else np.minimum).accumulate(values)
    axes.plot(numbers, so_far, color=style.GREY, linewidth=1.3, drawstyle="steps-post", label="best so far")
    _points(axes, numbers, ordered, best)
    axes.set(xlabel="trial", title="History")
    axes.grid(True)
    style.integer_ticks(axes)
    axes.margins(0.08)


def _slice(axes: Axes, trials: Sequence[Trial], best: Trial, key: str, logarithmic: bool) -> None:
    values = [trial.params[key] for trial in trials]
    words = any(isinstance(value, (str, bool)) or value is None for value in values)
    _points(axes, [style.shorten(str(value), 16) for value in values] if words else values, trials, best)
    axes.set(xlabel=style.shorten(key, 36), title=style.shorten(key.rpartition(".")[2], 28))
    axes.grid(True)
    axes.margins(0.08)
    if logarithmic:
        axes.set_xscale("log")
        style.logarithmic_ticks(axes)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _points(axes: Axes, places: Sequence[Any], trials: Sequence[Trial], best: Trial) -> None:
    values = [100 * trial.value for trial in trials]
    look: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgecolor": "white"}
    axes.plot(places, values, color=style.BLACK, label="one trial", **look)
    at = next((at for at, trial in enumerate(trials) if trial is best), None)
    if at is not None:
        ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": style.PURPLE}
        axes.plot([places[at]], [values[at]], label="best trial", **{**look, **ring, "markeredgewidth": 1.8})
