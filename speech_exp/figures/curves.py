"""Training curves of one run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Row = Mapping[str, float | str | None]  # a row of history.csv; None or NaN leaves a gap

# Training loss usually lies above validation loss; the legend says why.
_TRAINING = "training (often higher: with dropout and augmentation, averaged over the epoch)"
PHASE_TINTS = ("#FFFFFF", "#E4EFF7", "#FBEADF", "#E1F1EB", "#F6EAF1", "#FBF3DF")


def phases_of(history: Sequence[Row]) -> list[tuple[str, float]]:
    """Return (name, first epoch) of each stretch of rows with the same `phase`; rows without one continue the last phase."""
    phases: list[tuple[str, float]] = []
    for row in history:
        name = row.get("phase")
        if name and (not phases or phases[-1][0] != name):
            phases.append((str(name), float(row["epoch"] or 0)))
    return phases


def training_curves(
    history: Sequence[Row],
    best_epoch: int | None,
    phases: Sequence[tuple[str, float]],
    title: str,
    path: str | os.PathLike[str],
) -> Path:
    """Draw loss, validation accuracy (for CTC: word error rate) and learning rate over epochs.

    `history` has the rows of history.csv. `phases` are (name, first epoch) in order; they are shaded and named in a
    legend. `best_epoch` is marked unless it is None.
    """
    return style.save(draw_training_curves(history, best_epoch, phases, title), path)


@style.styled
def draw_training_curves(
    history: Sequence[Row], best_epoch: int | None, phases: Sequence[tuple[str, float]], title: str
) -> Figure:
    if not history:
        raise ValueError("the history has no epochs, expected at least one row: train before drawing curves")
    epochs_E = _column(history, "epoch")
    figure = style.new_figure(10.0, 3.6 + 0.2 * (len(phases) // 2))
    loss, quality, rate = figure.subplots(1, 3)
    _loss(loss, epochs_E, history)
    _quality(quality, epochs_E, history)
    lr_E = _column(history, "lr")
    rate.plot(epochs_E, lr_E, color=style.BLACK, **_points(epochs_E))
    rate.set(title="Learning rate", ylabel="learning rate (per step)", xlabel="epoch")
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _span(rate, lr_E)
    for axes in (loss, quality, rate):
        axes.grid(True)
        style.integer_ticks(axes)
        axes.set_xlim(epochs_E.min() - 0.5, epochs_E.max() + 0.5)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=style.GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        _shade(axes, phases, float(epochs_E.max()))
    _mark_best(loss, quality, epochs_E, history, best_epoch)
    marks = [*loss.get_legend_handles_labels()[0], *quality.get_legend_handles_labels()[0], *_phase_patches(phases)]
    figure.legend(handles=marks, loc="outside lower center", ncols=2)
    style.set_title(figure, title)
    return figure


def _loss(axes: Axes, epochs_E: np.ndarray, history: Sequence[Row]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    values = []
    for key, label, colour, line in (
        ("train_loss", _TRAINING, style.ORANGE, style.LINE_STYLES[1]),
        ("val_loss", "validation", style.BLACK, "-"),
    ):
        values_E = _column(history, key)
        axes.plot(epochs_E, values_E, color=colour, linestyle=line, label=label, **_points(epochs_E))
        values.append(values_E[np.isfinite(values_E)])
    shown = np.concatenate(values)
    axes.set(
        title="Loss",
        ylabel=f"loss (nats per {'utterance' if _quality_key(history)[0] == 'val_accuracy' else 'character'})",
        xlabel="epoch",
    )
    if shown.size and shown.min() > 0 and shown.max() > 20 * shown.min():
        axes.set_yscale("log")
        decades = np.log10(shown.max() / shown.min())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 4 else (1.0,)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _quality(axes: Axes, epochs_E: np.ndarray, history: Sequence[Row]) -> None:
    key, label = _quality_key(history)
    values_E = 100 * _column(history, key)
    axes.plot(epochs_E, values_E, color=style.BLACK, **_points(epochs_E))
    axes.set(title=f"Validation {label}", ylabel=f"{label} (%)", xlabel="epoch")
    _span(axes, values_E)
    if key == "val_accuracy":
        axes.set_ylim(top=min(axes.get_ylim()[1], 101.5))


def _quality_key(history: Sequence[Row]) -> tuple[str, str]:
    if any("val_accuracy" in row for row in history):
        return "val_accuracy", "accuracy"
    return "val_wer", "word error rate"


def _mark_best(loss: Axes, quality: Axes, epochs_E: np.ndarray, history: Sequence[Row], best_epoch: int | None) -> None:
    if best_epoch is None or best_epoch not in epochs_E:
        return
    index, key = int(np.flatnonzero(epochs_E == best_epoch)[0]), _quality_key(history)[0]
    value = 100 * _column(history, key)[index]
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 10,
        "linestyle": "none",
        "zorder": 5,
        "markerfacecolor": "none",
        "clip_on": False,
    }
    ring |= {"color": style.PURPLE, "markeredgewidth": 1.8}
    label = f"best: epoch {best_epoch}, {_quality_key(history)[1]} {value:.2f} %"
    quality.plot([best_epoch], [value], label=label, **ring)
    loss.plot([best_epoch], [_column(history, "val_loss")[index]], **ring)


def _column(history: Sequence[Row], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)


def _points(epochs_E: np.ndarray) -> dict[str, Any]:
    """Return line settings, with markers if there are few epochs: a line through a single point shows nothing."""
    return {"marker": "o" if len(epochs_E) <= 12 else None, "markersize": 4, "linewidth": 1.6}


def _span(axes: Axes, values: np.ndarray) -> None:
    """Set limits for a constant curve, whose ticks Matplotlib would otherwise write as an offset of a tiny range."""
    finite = values[np.isfinite(values)]
    if finite.size and np.ptp(finite) <= 1e-9 * np.abs(finite).max():
        level = float(finite[0])
        axes.set_ylim((0.5 * level, 1.5 * level) if level > 0 else (-1, 1))


def _shade(axes: Axes, phases: Sequence[tuple[str, float]], last_epoch: float) -> None:
    for index, (_, first) in enumerate(phases):
        end = phases[index + 1][1] if index + 1 < len(phases) else last_epoch + 1
        axes.axvspan(first - 0.5, end - 0.5, color=PHASE_TINTS[index % len(PHASE_TINTS)], zorder=0, linewidth=0)
        if index:
            axes.axvline(first - 0.5, color=style.GREY, linewidth=0.7, zorder=0.5)


def _phase_patches(phases: Sequence[tuple[str, float]]) -> list[Patch]:
    from matplotlib.patches import Patch

    return [
        Patch(
            facecolor=PHASE_TINTS[index % len(PHASE_TINTS)],
            edgecolor=style.GREY,
            label=f"{name} (from epoch {first:g})",
        )
        for index, (name, first) in enumerate(phases)
    ]
