"""Confusion matrix with counts and row percentages."""

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


def confusion_matrix(
    matrix_VV: np.ndarray, class_names: Sequence[str], title: str, path: str | os.PathLike[str]
) -> Path:
    """Draw a confusion matrix: rows are spoken, columns recognised classes; cells show the count and its share of the row.

    Correct answers are blue, errors vermillion. The shade of an error follows the square root of its share, which keeps
    even one error in fifty visible.
    """
    return style.save(draw_confusion_matrix(matrix_VV, class_names, title), path)


@style.styled
def draw_confusion_matrix(matrix_VV: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    counts_VV = np.asarray(matrix_VV)
    classes = len(class_names)
    if counts_VV.shape != (classes, classes):
        raise ValueError(
            f"the confusion matrix has shape {counts_VV.shape}, expected {(classes, classes)}: one row per class"
        )
    names = [style.shorten(name, 22) for name in class_names]
    cell_in = 0.55 if classes <= 12 else max(0.26, 6.6 / classes)
    side_in = max(cell_in * classes, 2.2)
    probe = style.new_figure(1, 1)
    label_in = max(style.text_width_in(probe, name, fontsize=8.0) for name in names)
    upright = label_in < 0.9 * side_in / classes
    figure = style.new_figure(side_in + label_in + 0.9, side_in + (0.2 if upright else label_in) + 1.15)
    axes = figure.subplots()
    shares_VV = counts_VV / np.maximum(counts_VV.sum(axis=1, keepdims=True), 1)
    axes.imshow(_colours(shares_VV), aspect="equal", interpolation="nearest")
    _write_cells(axes, counts_VV, shares_VV, side_in / classes)
    axes.set_xticks(range(classes), names, rotation=0 if upright else 90)
    axes.set_yticks(range(classes), names)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel="recognised class", ylabel="spoken class")
    total, right = int(counts_VV.sum()), int(np.trace(counts_VV))
    share = f" ({100 * right / total:.2f} %)" if total else ""
    style.set_title(figure, title, f"{right} of {total} correct{share}")
    return figure


def _colours(shares_VV: np.ndarray) -> np.ndarray:
    right: np.ndarray = style.shades(style.BLUE)(shares_VV)
    wrong = style.shades(style.VERMILLION)(np.sqrt(shares_VV))
    colours: np.ndarray = np.where(np.eye(len(shares_VV), dtype=bool)[..., None], right, wrong)
    colours[shares_VV == 0] = (*(int(style.PALE[at : at + 2], 16) / 255 for at in (1, 3, 5)), 1.0)
    return colours


def _write_cells(axes: Axes, counts_VV: np.ndarray, shares_VV: np.ndarray, cell_in: float) -> None:
    colours = _colours(shares_VV)
    digits = len(str(int(counts_VV.max())))
    size_pt = min(8.5, 72 * cell_in / (0.75 * digits + 0.5))
    with_share = cell_in >= 0.5
    lift = 0.09 / cell_in if with_share else 0.0
    for row, column in zip(*np.nonzero(counts_VV), strict=True):
        ink = style.ink_on(colours[row, column])
        axes.text(
            column, row - lift, f"{counts_VV[row, column]}", ha="center", va="center", color=ink, fontsize=size_pt,
            fontweight="bold",
        )  # fmt: skip
        if with_share:
            text = f"{100 * shares_VV[row, column]:.1f}%".replace("100.0", "100")
            axes.text(column, row + 0.11 / cell_in, text, ha="center", va="center", color=ink, fontsize=0.78 * size_pt)
