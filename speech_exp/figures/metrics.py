"""Figure with a table of precision, recall and F1 of each class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speech_exp.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (("precision", "precision (%)"), ("recall", "recall (%)"), ("f1", "F1 (%)"), ("support", "recordings"))
ROW_IN, COLUMN_IN, MARGIN_IN = 0.27, 1.05, 0.15


def metrics_table(
    per_class: Mapping[str, Mapping[str, float]],
    summary: Mapping[str, float | int | str],
    title: str,
    path: str | os.PathLike[str],
) -> Path:
    """Draw one row per class with `precision`, `recall`, `f1` (0 to 1) and `support` (count); cells are coloured by value.

    `summary` is written below, one line per item. Numbers whose name contains accuracy, f1, precision, recall, wer or cer
    are fractions and shown in percent; other numbers are shown with four significant digits, integers in full.
    """
    return style.save(draw_metrics_table(per_class, summary, title), path)


@style.styled
def draw_metrics_table(
    per_class: Mapping[str, Mapping[str, float]], summary: Mapping[str, float | int | str], title: str
) -> Figure:
    if not per_class:
        raise ValueError("the table has no classes, expected at least one")
    names = {name: style.shorten(str(name), 32) for name in per_class}
    lines = [(str(key).replace("_", " "), _summary_text(str(key), value)) for key, value in summary.items()]
    probe = style.new_figure(1, 1)
    name_in = 0.3 + max(style.text_width_in(probe, text, fontsize=9.0) for text in [*names.values(), "class"])
    if lines:
        name_in = max(name_in, 0.4 + max(style.text_width_in(probe, key, fontsize=9.0) for key, _ in lines))
    width = name_in + COLUMN_IN * len(COLUMNS)
    rows = 1 + len(per_class) + (len(lines) + 0.5 if lines else 0)
    title_lines = style.wrap(probe, title, width, **style.TITLE)
    top_in = ROW_IN * len(title_lines)
    height = rows * ROW_IN + top_in
    figure = style.new_figure(width + 2 * MARGIN_IN, height + 2 * MARGIN_IN, constrained=False)
    margin_x, margin_y = MARGIN_IN / (width + 2 * MARGIN_IN), MARGIN_IN / (height + 2 * MARGIN_IN)
    axes = figure.add_axes((margin_x, margin_y, 1 - 2 * margin_x, 1 - 2 * margin_y))
    axes.set(xlim=(0, width), ylim=(height - top_in, -top_in))
    axes.axis("off")
    axes.text(0, -0.5 * top_in, "\n".join(title_lines), va="center", **style.TITLE)
    _heading(axes, name_in, width)
    _class_rows(axes, per_class, names, name_in)
    top = (1 + len(per_class)) * ROW_IN
    axes.plot([0, width], [top, top], color=style.TEXT, linewidth=1.0, clip_on=False)
    for index, (key, value) in enumerate(lines):
        y = top + (index + 0.75) * ROW_IN
        axes.text(0.1, y, key, va="center")
        axes.text(name_in + 0.5 * COLUMN_IN, y, value, va="center", ha="center", fontweight="bold")
    return figure


def _heading(axes: Axes, name_in: float, width: float) -> None:
    axes.text(0.1, ROW_IN / 2, "class", va="center", fontweight="bold")
    for index, (_, title) in enumerate(COLUMNS):
        axes.text(name_in + (index + 0.5) * COLUMN_IN, ROW_IN / 2, title, va="center", ha="center", fontweight="bold")
    axes.plot([0, width], [ROW_IN, ROW_IN], color=style.TEXT, linewidth=1.0, clip_on=False)


def _class_rows(
    axes: Axes, per_class: Mapping[str, Mapping[str, float]], names: Mapping[str, str], name_in: float
) -> None:
    from matplotlib.patches import Rectangle

    metrics = [key for key, _ in COLUMNS if key != "support"]
    lowest = min(values[key] for values in per_class.values() for key in metrics)
    # Values of a good model span only 95 to 100 %: the palest colour means the tenth below the worst cell, at most 0.9.
    # The darkest colour is light enough for dark text.
    floor = min(0.9, int(10 * lowest) / 10)
    shades = style.shades(style.BLUE, 0.6)
    for index, (name, values) in enumerate(per_class.items()):
        y = (index + 1) * ROW_IN
        axes.text(0.1, y + ROW_IN / 2, names[name], va="center")
        for column, (key, _) in enumerate(COLUMNS):
            x = name_in + column * COLUMN_IN
            colour: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
            if key in metrics:
                colour = shades(0.06 + 0.9 * (values[key] - floor) / (1 - floor))
            axes.add_patch(Rectangle((x, y), COLUMN_IN, ROW_IN, facecolor=colour, edgecolor="white", linewidth=1.5))
            text = f"{100 * values[key]:.1f}" if key in metrics else f"{values[key]:.0f}"
            axes.text(x + COLUMN_IN / 2, y + ROW_IN / 2, text, va="center", ha="center", color=style.ink_on(colour))


def _summary_text(key: str, value: float | int | str) -> str:
    if isinstance(value, (str, bool)):
        return str(value)
    if any(word in key.lower() for word in ("accuracy", "f1", "precision", "recall", "wer", "cer")):
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
