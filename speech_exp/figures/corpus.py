"""Figures of a data set: its durations, its targets and one of its batches.

Shape letters: U utterances, T frames, F features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_BINS = 50


def durations_figure(seconds_of: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> Path:
    """Draw a histogram of the utterance durations of each part."""
    return style.save(draw_durations(seconds_of), path)


@style.styled
def draw_durations(seconds_of: Mapping[str, np.ndarray]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = style.new_figure(7.0, 0.6 + 1.6 * len(seconds_of))
    rows = figure.subplots(len(seconds_of), 1, sharex=True, squeeze=False)[:, 0]
    edges = np.linspace(0, max(seconds_U.max() for seconds_U in seconds_of.values()), _BINS + 1)
    for axes, (name, seconds_U), colour in zip(rows, seconds_of.items(), style.FREE_COLOURS, strict=False):
        axes.hist(seconds_U, edges, color=colour, edgecolor="white", linewidth=0.4)
        median_s = float(np.median(seconds_U))
        axes.axvline(median_s, color=style.TEXT, linewidth=1.0, linestyle=(0, (4, 2)))
        axes.set(ylabel="utterances")
        hours = f"{seconds_U.sum() / 3600:,.2f} h"
        axes.set_title(f"{name}: {len(seconds_U):,} utterances, {hours}, median {median_s:.2f} s (dashed)")
        axes.grid(True, axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    rows[-1].set(xlabel="duration (s)", xlim=(0, edges[-1]))
    return figure


def counts_figure(counts: Mapping[str, int], title: str, unit: str, path: str | os.PathLike[str]) -> Path:
    """Draw the counts of the target characters or classes, the most frequent first; `unit` names what is counted."""
    return style.save(draw_counts(counts, title, unit), path)


@style.styled
def draw_counts(counts: Mapping[str, int], title: str, unit: str) -> Figure:
    figure = style.new_figure(7.0, 3.0)
    axes = figure.subplots()
    axes.bar(range(len(counts)), list(counts.values()), color=style.SKY)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xticks(range(len(counts)), list(counts))
    missing = [place for place, count in enumerate(counts.values()) if not count]
    for place in missing:
        axes.get_xticklabels()[place].set(color=style.VERMILLION, fontweight="bold")
    more = f", {len(missing)} never (red)" if missing else ""
    axes.set(xlabel=unit, ylabel="count", title=title + more, xlim=(-0.7, len(counts) - 0.3))
    axes.grid(True, axis="y")
    return figure


def batch_figure(
    utterances: Sequence[tuple[str, np.ndarray]], frames: int, hop_s: float, title: str, path: str | os.PathLike[str]
) -> Path:
    """Draw label and features (T, F) of each utterance in a batch padded to `frames`; values of exactly 0 count as masked."""
    return style.save(draw_batch(utterances, frames, hop_s, title), path)


@style.styled
def draw_batch(utterances: Sequence[tuple[str, np.ndarray]], frames: int, hop_s: float, title: str) -> Figure:
    from matplotlib.patches import Patch

    figure = style.new_figure(9.0, 1.2 + 0.72 * len(utterances))
    rows = figure.subplots(len(utterances), 1, sharex=True, squeeze=False)[:, 0]
    shown = np.concatenate([features_TF[features_TF != 0] for _, features_TF in utterances])
    low, high = np.percentile(shown, (1, 99)) if len(shown) else (0.0, 1.0)
    for axes, (label, features_TF) in zip(rows, utterances, strict=True):
        image = _show_padded(axes, features_TF, hop_s, (low, high))
        axes.set_title(label, fontsize=7.5, fontweight="normal", pad=3.5)
    rows[-1].set(xlabel="time (s)", xlim=(-0.5 * hop_s, (frames - 0.5) * hop_s))
    figure.colorbar(image, ax=list(rows), label="value of the feature", aspect=40, pad=0.01)
    style.set_title(figure, title)
    marks = [
        Patch(facecolor="white", edgecolor=style.GREY, label="masked"),
        Patch(facecolor=style.PALE, edgecolor=style.GREY, hatch="////", label="padding"),
    ]
    figure.legend(handles=marks, loc="outside lower right", ncols=2)
    return figure


def _show_padded(axes: Axes, features_TF: np.ndarray, hop_s: float, limits: tuple[float, float]) -> AxesImage:
    from matplotlib import colormaps

    size_T, size_F = features_TF.shape
    colours = colormaps["viridis"].with_extremes(bad="white")
    end_s = (size_T - 0.5) * hop_s
    axes.axvspan(end_s, 1e6, facecolor=style.PALE, edgecolor=style.GREY, hatch="////", linewidth=0.0)
    axes.set_yticks([])
    return axes.imshow(
        np.ma.masked_equal(features_TF, 0).T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(-0.5 * hop_s, end_s, -0.5, size_F - 0.5),
    )
