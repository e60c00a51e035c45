"""Figure of the parts of a recording that a decision depends on: the drop of the correct logit when a window is masked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speech_exp.figures import style
from speech_exp.figures.features import show_features

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def occlusion_figure(
    features_TF: np.ndarray,
    starts_s: np.ndarray,
    drops: np.ndarray,
    window_s: float,
    hop_s: float,
    title: Sequence[str],
    path: str | os.PathLike[str],
    feature_names: Sequence[str] | None = None,
) -> Path:
    """Draw the drop of the correct class's logit for each masked window, above the features.

    `starts_s` are the start times of the windows in seconds and `drops` their logit(whole) - logit(masked): a window with a
    positive drop supports the class, one with a negative drop speaks against it. The window with the largest drop is framed.
    """
    return style.save(draw_occlusion(features_TF, starts_s, drops, window_s, hop_s, title, feature_names), path)


@style.styled
def draw_occlusion(
    features_TF: np.ndarray,
    starts_s: np.ndarray,
    drops: np.ndarray,
    window_s: float,
    hop_s: float,
    title: Sequence[str],
    feature_names: Sequence[str] | None = None,
) -> Figure:
    from matplotlib.patches import Rectangle

    starts_W, drops_W = np.asarray(starts_s, dtype=float), np.asarray(drops, dtype=float)
    if starts_W.shape != drops_W.shape or starts_W.ndim != 1 or starts_W.size == 0:
        raise ValueError(f"got window starts {starts_W.shape} and drops {drops_W.shape}, expected one drop per window")
    figure = style.new_figure(7.0, 4.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
    centres_W = starts_W + window_s / 2
    top.axhline(0, color=style.GREY, linewidth=0.8)
    fill = {"interpolate": True, "alpha": 0.35, "linewidth": 0}
    top.fill_between(
        centres_W, drops_W, 0, where=(drops_W >= 0).tolist(), color=style.BLUE, label="speaks for the class", **fill
    )
    if (drops_W < 0).any():
        top.fill_between(
            centres_W, drops_W, 0, where=(drops_W <= 0).tolist(), color=style.VERMILLION, label="speaks against it",
            hatch="////", **fill,
        )  # fmt: skip
    few = "o" if len(centres_W) <= 60 else None
    top.plot(centres_W, drops_W, color=style.BLACK, linewidth=1.2, marker=few, markersize=3)
    top.grid(True)
    top.set(ylabel="drop of the\ncorrect logit")
    show_features(bottom, features_TF, hop_s, feature_names)
    best = float(starts_W[np.argmax(drops_W)])
    count = np.asarray(features_TF).shape[1]
    # A white edge under the coloured one keeps the frame visible on any feature colour.
    for colour, width in (("white", 2.4), (style.VERMILLION, 1.4)):
        bottom.add_patch(
            Rectangle((best, -0.5), window_s, count, fill=False, edgecolor=colour, linewidth=width, zorder=3)
        )
    label = f"largest drop, masked window of {1000 * window_s:.0f} ms"
    top.axvspan(best, best + window_s, facecolor="none", edgecolor=style.VERMILLION, linewidth=1.2, label=label)
    bottom.set_xlim(-0.5 * hop_s, max((len(features_TF) - 0.5) * hop_s, float(starts_W.max()) + window_s))
    style.set_title(figure, *title)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
