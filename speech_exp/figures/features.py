"""Figure of the waveform and features of one recording over a shared time axis."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MAX_FEATURE_NAMES = 10


def features_figure(
    waveform_N: np.ndarray,
    sample_rate_hz: float,
    features_TF: np.ndarray,
    hop_s: float,
    title: Sequence[str],
    path: str | os.PathLike[str],
    feature_names: Sequence[str] | None = None,
) -> Path:
    """Draw a waveform (full scale is 1) above its features; frame t is centred on t * hop_s, the centre of its window."""
    return style.save(draw_features(waveform_N, sample_rate_hz, features_TF, hop_s, title, feature_names), path)


@style.styled
def draw_features(
    waveform_N: np.ndarray,
    sample_rate_hz: float,
    features_TF: np.ndarray,
    hop_s: float,
    title: Sequence[str],
    feature_names: Sequence[str] | None = None,
) -> Figure:
    figure = style.new_figure(7.0, 4.2)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 2), width_ratios=(1, 0.022))
    wave = figure.add_subplot(grid[0, 0])
    matrix = figure.add_subplot(grid[1, 0], sharex=wave)
    seconds_N = np.arange(len(waveform_N)) / sample_rate_hz
    wave.plot(seconds_N, waveform_N, color=style.BLUE, linewidth=0.6)
    wave.set(ylabel="amplitude\n(full scale 1)")
    wave.tick_params(labelbottom=False)
    wave.grid(True)
    image = show_features(matrix, features_TF, hop_s, feature_names)
    ends = (len(waveform_N) / sample_rate_hz, (len(features_TF) - 0.5) * hop_s)
    wave.set_xlim(-0.5 * hop_s, max(ends))
    figure.colorbar(image, cax=figure.add_subplot(grid[1, 1]), label="value of the feature")
    style.set_title(figure, *title)
    return figure


def show_features(
    axes: Axes, features_TF: np.ndarray, hop_s: float, feature_names: Sequence[str] | None = None
) -> AxesImage:
    """Draw the matrix with time in seconds; colours span its 1st to 99th percentile, so outliers do not flatten the rest."""
    frames, count = np.asarray(features_TF).shape
    if feature_names is not None and len(feature_names) != count:
        raise ValueError(f"got {len(feature_names)} names for {count} features, expected one name per feature")
    low, high = np.percentile(features_TF, (1, 99))
    image = axes.imshow(
        np.asarray(features_TF).T,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        vmin=low,
        vmax=high if high > low else low + 1,
        extent=(-0.5 * hop_s, (frames - 0.5) * hop_s, -0.5, count - 0.5),
    )
    step = max(1, -(-count // MAX_FEATURE_NAMES))
    shown = range(0, count, step)
    axes.set_yticks(shown, [style.shorten(feature_names[at], 16) if feature_names else str(at) for at in shown])
    axes.set(xlabel="time (s)", ylabel="feature")
    return image
