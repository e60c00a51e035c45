"""Figures of what a recogniser recognised and when, and of the words that it got wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speech_exp.figures import style
from speech_exp.figures.features import show_features

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIN_PROBABILITY = 0.1  # a symbol is drawn if its probability reaches this in any frame
_INCHES_PER_SECOND, _MAX_WIDTH_IN = 2.0, 40.0  # speech has about 14 symbols per second, and each one is labelled
_KINDS = ("substituted", "deleted", "inserted")


def posterior_figure(
    features_TF: np.ndarray,
    hop_s: float,
    posterior_TV: np.ndarray,
    step_s: float,
    symbols: Sequence[str],
    title: Sequence[str],
    path: str | os.PathLike[str],
    feature_names: Sequence[str] | None = None,
) -> Path:
    """Draw the features above the probability of each symbol in each frame of the encoder's output, `step_s` apart.

    `title` has one item per line.
    """
    return style.save(draw_posterior(features_TF, hop_s, posterior_TV, step_s, symbols, title, feature_names), path)


@style.styled
def draw_posterior(
    features_TF: np.ndarray,
    hop_s: float,
    posterior_TV: np.ndarray,
    step_s: float,
    symbols: Sequence[str],
    title: Sequence[str],
    feature_names: Sequence[str] | None = None,
) -> Figure:
    if posterior_TV.shape[1] != len(symbols):
        raise ValueError(f"got {len(symbols)} names for {posterior_TV.shape[1]} symbols, expected one name per symbol")
    shown = [number for number in np.flatnonzero(posterior_TV.max(0) >= _MIN_PROBABILITY).tolist() if number]
    width = min(max(10.0, _INCHES_PER_SECOND * len(features_TF) * hop_s), _MAX_WIDTH_IN)
    figure = style.new_figure(width, 5.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    show_features(top, features_TF, hop_s, feature_names)
    top.set_xlabel("")
    seconds_T = np.arange(len(posterior_TV)) * step_s
    bottom.plot(seconds_T, posterior_TV[:, 0], color=style.GREY, linewidth=1.0, linestyle=(0, (4, 2)), label="blank")
    for order, number in enumerate(shown):
        colour = style.PALETTE[order % len(style.PALETTE)]
        bottom.plot(seconds_T, posterior_TV[:, number], color=colour, linewidth=1.2)
        for peak in _peaks(posterior_TV[:, number]):
            name = "␣" if symbols[number] == " " else symbols[number]
            bottom.annotate(
                name, (seconds_T[peak], posterior_TV[peak, number]), (0, 2), textcoords="offset points", ha="center",
                color=colour, fontweight="bold",
            )  # fmt: skip
    bottom.set(ylim=(0, 1.12), ylabel="probability of the symbol", xlabel="time (s)")
    bottom.grid(True)
    bottom.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0))
    style.set_title(figure, *title)
    return figure


def errors_figure(edits: Mapping[str, Mapping[str, int]], words: int, title: str, path: str | os.PathLike[str]) -> Path:
    """Draw the errors of each word by type; `edits` is {word: {substituted, deleted, inserted: count}}."""
    return style.save(draw_errors(edits, words, title), path)


@style.styled
def draw_errors(edits: Mapping[str, Mapping[str, int]], words: int, title: str, most: int = 20) -> Figure:
    ranked = sorted(edits, key=lambda word: (-sum(edits[word].values()), word))[:most]
    figure = style.new_figure(7.0, max(2.0, 1.3 + 0.26 * len(ranked)))
    axes = figure.subplots()
    left = np.zeros(len(ranked))
    for kind, colour, hatch in zip(_KINDS, (style.BLUE, style.ORANGE, style.PURPLE), ("", "///", "..."), strict=True):
        counts = np.array([edits[word].get(kind, 0) for word in ranked], dtype=float)
        axes.barh(range(len(ranked)), counts, left=left, color=colour, hatch=hatch, edgecolor="white", label=kind)
        left += counts
    axes.set_yticks(range(len(ranked)), [style.shorten(word, 20) for word in ranked])
    axes.invert_yaxis()
    style.integer_ticks(axes)
    total = sum(sum(counts.values()) for counts in edits.values())
    axes.set(xlabel="errors", ylabel="word (if inserted: as recognised)")
    style.set_title(figure, title, f"{total} word errors in {words:,} words")
    if ranked:
        figure.legend(loc="outside lower center", ncols=len(_KINDS))
    else:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center")
    return figure


def _peaks(probability_T: np.ndarray) -> list[int]:
    """Return the most probable frame of each stretch in which the symbol is probable."""
    peaks, inside = [], False
    for frame, probability in enumerate(probability_T):
        if probability < _MIN_PROBABILITY:
            inside = False
        elif not inside:
            peaks.append(frame)
            inside = True
        elif probability > probability_T[peaks[-1]]:
            peaks[-1] = frame
    return peaks
