"""Figures have a sensible size and no overlapping or clipped text, and refuse wrong data."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from speech_exp.comparison import charts, curve_charts, pareto
from speech_exp.comparison.score import ACCURACY, WER
from speech_exp.figures import confusion, curves, features, flow, metrics, occlusion, search, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG = ["a", "a class with a very long name indeed", "the longest class name of all, by far", "$x_1$"]
RUN = "lmu, task C, seed 0 (2026-11-30_22-00-00-123456)"
DIGITS = [str(digit) for digit in range(10)]
NINE = [f"{model} · C · {name}" for model in ("gru", "lstm", "lmu") for name in ("ema", "row_shared", "stochastic")]
NAMES = {name: (name.split(" · ")[0], name[6:]) for name in NINE}


def history(epochs: int) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        loss = 2.3 * 0.7**epoch
        rows.append(
            {"epoch": epoch, "train_loss": loss, "val_loss": loss + 0.01, "val_accuracy": 1 - loss / 3, "lr": 1e-3}
        )
    return rows


def features_of(frames: int, count: int = 20) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((frames, count))


def boxes(count: int) -> list[flow.Box]:
    kinds: list[flow.Kind] = ["data", "features", "augment", "encoder", "head", "output"]
    lines = ["20 -> 128 numbers", "a line of many words that must be wrapped to fit the box", "w" * 60]
    return [
        flow.Box(f"Step {at} with a title" * (1 + at % 3), lines[: at % 4], kinds[at % 6], constrained=at % 5 in (2, 3))
        for at in range(count)
    ]


CONSTRAINT = flow.Constraint("Task C", ["weights in {0, ±2^k}, k from -8 to 8", "a line of many words " * 9])


def per_class(names: list[str]) -> dict[str, dict[str, float]]:
    return {name: {"precision": 0.9, "recall": 1.0, "f1": 0.95, "support": 30} for name in names}


def matrix(classes: int) -> np.ndarray:
    counts = np.full((classes, classes), 12)
    np.fill_diagonal(counts, 2345)
    return counts


def groups(names: list[str], seeds: int) -> tuple[dict[str, list[float]], dict[str, charts.Mean]]:
    values = {name: [0.99 - 0.01 * at] * seeds for at, name in enumerate(names)}
    return values, {
        name: (own[0], own[0] - 0.004, own[0] + 0.004) if seeds > 1 else (own[0], None, None)
        for name, own in values.items()
    }


def curves_of(names: list[str], seeds: int, epochs: int) -> dict[str, list[curve_charts.Curve]]:
    own = [float(row["val_accuracy"]) for row in history(epochs)]
    return {name: [(list(range(1, epochs + 1)), own)] * seeds for name in names}


def points() -> list[pareto.Point]:
    """Return 36 groups at three accuracies and four sizes, so that most coincide with another."""
    names = ["A", "B1", "B2", *(f"C approach {at}" for at in range(8)), "C approach 0 + kd"]
    places = [(3.8e4 / (1 + at % 4), 0.99 + 0.003 * (at % 3)) for at in range(36)]
    models = ["gru", "lstm", "lmu"]
    return [
        pareto.Point(models[at % 3], names[at // 3], *place, place[1] - 0.005, place[1] + 0.005)
        for at, place in enumerate(places)
    ]


def trials(count: int) -> list[search.Trial]:
    values = np.random.default_rng(0).random(count)
    params = [{"trainer.lr": 10 ** -(1 + 3 * value), "trainer.weight_decay": value} for value in values]
    models = ("gru", "lstm", "lmu")
    return [search.Trial(at, values[at], params[at] | {"model": models[at % 3]}) for at in range(count)]


FIGURES: dict[str, Callable[[], Figure]] = {
    "curves": lambda: curves.draw_training_curves(history(20), 17, (), RUN),
    "curves, one epoch": lambda: curves.draw_training_curves(history(1), 1, (), RUN),
    "curves, no best": lambda: curves.draw_training_curves(history(3), None, (), RUN),
    "curves, stages": lambda: curves.draw_training_curves(
        history(20), 17, [("float", 1), *((f"stage {at}: {30 * at} % frozen", 10 + at) for at in range(5))], RUN
    ),
    "confusion, digits": lambda: confusion.draw_confusion_matrix(matrix(10), DIGITS, RUN),
    "confusion, long names": lambda: confusion.draw_confusion_matrix(matrix(4), LONG, RUN),
    "confusion, one class": lambda: confusion.draw_confusion_matrix(np.array([[3]]), ["yes"], RUN),
    "confusion, empty": lambda: confusion.draw_confusion_matrix(np.zeros((2, 2), dtype=int), ["yes", "no"], RUN),
    "confusion, 20": lambda: confusion.draw_confusion_matrix(
        matrix(20), [f"word number {at}" for at in range(20)], RUN
    ),
    "table": lambda: metrics.draw_metrics_table(
        per_class(DIGITS), {"accuracy": 0.99, "loss": 0.1, "parameters": 33674}, RUN
    ),
    "table, long names": lambda: metrics.draw_metrics_table(per_class(LONG), {}, RUN),
    "flow": lambda: flow.draw_flowchart(boxes(7), CONSTRAINT, RUN),
    "flow, one": lambda: flow.draw_flowchart(boxes(1), CONSTRAINT, RUN),
    "flow, many": lambda: flow.draw_flowchart(boxes(23), CONSTRAINT, RUN),
    "features": lambda: features.draw_features(np.zeros(4000), 8000, features_of(32), 0.016, [RUN, "3_theo_7"], None),
    "features, 39 names": lambda: features.draw_features(
        np.ones(4000), 8000, features_of(32, 39), 0.016, [RUN], [f"coefficient {at}" for at in range(39)]
    ),
    "features, one frame": lambda: features.draw_features(np.zeros(9), 8000, np.zeros((1, 20)), 0.016, ["short"], None),
    "occlusion": lambda: occlusion.draw_occlusion(
        features_of(32), np.arange(0, 0.4, 0.016), np.linspace(-1, 3, 25), 0.096, 0.016, [RUN, "3_theo_7"]
    ),
    "occlusion, one window": lambda: occlusion.draw_occlusion(features_of(4), [0.0], [0.5], 0.064, 0.016, ["short"]),  # type: ignore[arg-type]
    "accuracy": lambda: charts.draw_scores(*groups(NINE, 5), {NINE[0]: 0.8}, NAMES, ACCURACY),
    "accuracy, one seed": lambda: charts.draw_scores(*groups(["gru"], 1), {}, {"gru": ("gru", "")}, ACCURACY),
    "accuracy, perfect": lambda: charts.draw_scores(
        {"gru": [1.0, 1.0]}, {"gru": (1.0, 0.9878, 1.0)}, {}, {"gru": ("", "")}, ACCURACY
    ),
    "per class": lambda: charts.draw_per_class({name: dict.fromkeys(DIGITS, 0.97) for name in NINE}),
    "per class, other classes": lambda: charts.draw_per_class({"a": dict.fromkeys(LONG, 0.1), "b": {"c": 1.0}}),
    "group curves": lambda: curve_charts.draw_curves(curves_of(NINE, 3, 20), NAMES, ACCURACY),
    "group curves, one epoch": lambda: curve_charts.draw_curves(
        curves_of(["gru"], 1, 1), {"gru": ("gru", "")}, ACCURACY
    ),
    "group curves, many": lambda: curve_charts.draw_curves_of_models(curves_of(NINE, 3, 20), NAMES, ACCURACY),
    "group curves, many of no model": lambda: curve_charts.draw_curves_of_models(
        curves_of(NINE, 1, 1), {name: ("", name) for name in NINE}, ACCURACY
    ),
    "bytes": lambda: pareto.draw_front(points(), pareto.BYTES, ACCURACY),
    "bytes, few": lambda: pareto.draw_front(points()[:5], pareto.BYTES, ACCURACY),
    "bytes, one": lambda: pareto.draw_front([pareto.Point("", "", 38020, 1.0)], pareto.BYTES, ACCURACY),
    "bytes, more settings than shapes": lambda: pareto.draw_front(
        [pareto.Point(model, f"trainer.lr={at}", 3e4, 0.9) for at in range(16) for model in ("gru", "lstm")],
        pareto.BYTES,
        ACCURACY,
    ),
    "search": lambda: search.draw_search(trials(30), "accuracy", True, ["trainer.lr"], "search_lr_fsdd_gru_A_seed0"),
    "search, one trial": lambda: search.draw_search(trials(1), "wer", False, ["trainer.lr"], "search"),
    "curves, recognition": lambda: curves.draw_training_curves(
        [{"epoch": 1, "train_loss": 2.799, "val_loss": 2.609, "val_wer": 1.0, "lr": 1e-3}], 1, (), RUN
    ),
    "errors": lambda: charts.draw_scores(*groups(NINE, 5), {NINE[0]: 1.2}, NAMES, WER),
    "errors, perfect": lambda: charts.draw_scores(
        {"gru": [0.0, 0.0]}, {"gru": (0.0, 0.0, 0.0122)}, {}, {"gru": ("gru", "")}, WER
    ),
    "error curves": lambda: curve_charts.draw_curves(curves_of(NINE, 3, 20), NAMES, WER),
    "errors over latency": lambda: pareto.draw_front(
        [pareto.Point("gru", str(at), 0.031 * (1 + at), 0.05 / (1 + at), 0.0, 0.06) for at in range(5)],
        pareto.LATENCY,
        WER,
    ),
    "errors over training, one": lambda: pareto.draw_front([pareto.Point("", "", 5e4, 0.0)], pareto.TRAINING, WER),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_or_leaves_the_figure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.text import Text

    # Only drawn texts count: ticks outside the limits of an axis exist as texts too.
    drawn: dict[int, Text] = {}
    draw = Text.draw

    def recorded(self: Text, renderer: Any) -> None:
        drawn[id(self)] = self
        draw(self, renderer)

    figure = FIGURES[name]()
    monkeypatch.setattr(Text, "draw", recorded)
    figure.canvas.draw()
    texts = [
        (text.get_text(), text.get_window_extent())
        for text in drawn.values()
        if text.get_visible() and text.get_text().strip()
    ]
    page = figure.bbox
    assert texts
    for text, bounds in texts:
        assert bounds.x0 >= -1 and bounds.y0 >= -1, f"{text!r} leaves the figure"
        assert bounds.x1 <= page.x1 + 1 and bounds.y1 <= page.y1 + 1, f"{text!r} leaves the figure"
    low_N2, high_N2 = np.array([box.min for _, box in texts]), np.array([box.max for _, box in texts])
    shared_NN2 = np.minimum(high_N2[:, None], high_N2) - np.maximum(low_N2[:, None], low_N2)
    # Bounds include the space for ascenders and descenders, so they may overlap by half a pixel.
    overlaps_NN = np.triu((shared_NN2 > 0.5).all(axis=-1), k=1)
    assert [(texts[one][0], texts[other][0]) for one, other in np.argwhere(overlaps_NN)] == []


def test_text_stays_within_its_box_in_the_flowchart() -> None:
    from matplotlib.patches import FancyBboxPatch

    figure = flow.draw_flowchart(boxes(9), CONSTRAINT, "")
    figure.canvas.draw()
    axes = figure.axes[0]
    frames = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(frames) == 10
    assert not any(one.overlaps(other) for one, other in itertools.combinations(frames, 2))
    for text in axes.texts:
        if text.get_text():
            bounds = text.get_window_extent()
            assert any(box.contains(*bounds.min) and box.contains(*bounds.max) for box in frames), text.get_text()


@pytest.mark.parametrize("count", [1, 4, 7, 9, 23])
def test_frames_of_the_constraint_hold_what_it_acts_on_and_each_has_an_arrow(count: int) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch, Rectangle
    from matplotlib.text import Annotation

    def corners(patch: Any) -> tuple[float, float, float, float]:
        return patch.get_x(), patch.get_y(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height()

    axes, colour = flow.draw_flowchart(boxes(count), CONSTRAINT, "").axes[0], to_rgba(flow.CONSTRAINT)
    *steps, constraint = [corners(patch) for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    frames = [corners(one) for one in axes.patches if isinstance(one, Rectangle) and one.get_edgecolor() == colour]
    inside = [any(f[0] < x0 and f[1] < y0 and x1 < f[2] and y1 < f[3] for f in frames) for x0, y0, x1, y1 in steps]
    touched = [any(f[0] < x1 and x0 < f[2] and f[1] < y1 and y0 < f[3] for f in frames) for x0, y0, x1, y1 in steps]
    assert inside == touched == [box.constrained for box in boxes(count)]
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    ends = [arrow.xy for arrow in arrows if arrow.arrow_patch.get_edgecolor() == colour]  # type: ignore[union-attr]
    assert len(ends) == len(frames)
    assert all(sum(f[0] <= x <= f[2] and y == f[3] for f in frames) == 1 for x, y in ends)
    assert constraint[1] > max(y1 for *_, y1 in [*steps, *frames])


def test_every_word_of_the_boxes_is_drawn() -> None:
    axes = flow.draw_flowchart(boxes(9), CONSTRAINT, "").axes[0]
    drawn = "".join(text.get_text() for text in axes.texts).replace(" ", "")
    for title, lines in [*((box.title, box.lines) for box in boxes(9)), (CONSTRAINT.title, CONSTRAINT.lines)]:
        assert title.replace(" ", "") in drawn
        assert all(line.replace(" ", "") in drawn for line in lines)


def test_confusion_matrix_shows_counts_and_row_percentages() -> None:
    axes = confusion.draw_confusion_matrix(np.array([[29, 1], [0, 0]]), ["yes", "no"], "").axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "29", "3.3%", "96.7%"]


def test_phases_are_stretches_of_the_same_name() -> None:
    names = ["float", "float", "inq 30 %", "", None, "inq 60 %"]
    rows: list[dict[str, Any]] = [{"epoch": 5 + at, "phase": name} for at, name in enumerate(names)]
    assert curves.phases_of(rows) == [("float", 5), ("inq 30 %", 7), ("inq 60 %", 10)]
    assert curves.phases_of([{"epoch": 1.0}, {"epoch": 2.0, "phase": ""}]) == []
    assert curves.phases_of([{"epoch": 1.0, "phase": ""}, {"epoch": 2.0, "phase": "ema"}]) == [("ema", 2)]


def test_the_best_epoch_is_reported() -> None:
    figure = curves.draw_training_curves(history(5), 4, (), "")
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert f"best: epoch 4, accuracy {100 * history(5)[3]['val_accuracy']:.2f} %" in legends


def test_files_have_a_sane_size(tmp_path: Path) -> None:
    written = [
        curves.training_curves(history(5), 4, (), RUN, tmp_path / "new" / "a.png"),
        confusion.confusion_matrix(matrix(10), DIGITS, RUN, tmp_path / "b.png"),
        metrics.metrics_table(per_class(DIGITS), {"accuracy": 1.0}, RUN, tmp_path / "c.png"),
        flow.flowchart(boxes(7), CONSTRAINT, RUN, tmp_path / "d.png"),
        features.features_figure(np.zeros(4000), 8000, features_of(32), 0.016, [RUN], tmp_path / "e.png"),
        occlusion.occlusion_figure(features_of(32), np.zeros(1), np.ones(1), 0.1, 0.016, [RUN], tmp_path / "f.png"),
        charts.comparison_scores(*groups(NINE, 3), {}, NAMES, ACCURACY, tmp_path / "g.png"),
    ]
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", content[16:24])
        assert 400 < width < 2600 and 200 < height < 2600, path.name
        assert 3_000 < len(content) < 600_000, path.name


def test_values_that_are_missing_leave_gaps() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "train_loss": None, "lr": 1.0},
        {"epoch": 2, "train_loss": float("nan"), "lr": 1.0},
        {"epoch": 3, "train_loss": 0.5, "lr": 1.0},
    ]
    figure = curves.draw_training_curves(rows, 1, (), "")
    figure.canvas.draw()
    lines = [line for axes in figure.axes for line in axes.lines if list(line.get_xdata()) == [1, 2, 3]]
    values = [np.asarray(line.get_ydata(), dtype=float) for line in lines]
    assert any(np.array_equal(value, [np.nan, np.nan, 0.5], equal_nan=True) for value in values)


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda: curves.draw_training_curves([], 1, (), ""), "no epochs"),
        (lambda: confusion.draw_confusion_matrix(matrix(3), DIGITS, ""), r"shape \(3, 3\), expected \(10, 10\)"),
        (lambda: metrics.draw_metrics_table({}, {}, ""), "no classes"),
        (lambda: flow.draw_flowchart([], CONSTRAINT, ""), "no boxes"),
        (
            lambda: flow.draw_flowchart([flow.Box("x", [], "other")], CONSTRAINT, ""),
            "kind 'other', expected one of data",
        ),  # type: ignore[arg-type]
        (
            lambda: features.draw_features(np.zeros(9), 8000, features_of(3), 0.01, [], ["a"]),
            "got 1 names for 20 features",
        ),
        (
            lambda: occlusion.draw_occlusion(features_of(3), np.zeros(2), np.zeros(3), 0.1, 0.01, []),
            "expected one drop per window",
        ),
    ],
)
def test_wrong_data_is_refused(draw: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        draw()


def test_matplotlib_is_left_as_it_was() -> None:
    """Importing the package loads no Matplotlib; drawing loads no pyplot and restores the settings.

    dict.items reads the settings without asking for the backend, which would load pyplot.
    """
    code = (
        "import sys; import speech_exp.comparison.compare, speech_exp.figures.flow;"
        "assert 'matplotlib' not in sys.modules and 'scipy' not in sys.modules and 'torch' not in sys.modules;"
        "import matplotlib; now = lambda: list(dict.items(matplotlib.rcParams)); before = now();"
        "from speech_exp.figures.flow import Box, Constraint, draw_flowchart;"
        "draw_flowchart([Box('a', ['b'], 'data')], Constraint('c', []), 'd');"
        "assert now() == before; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def colours_of(figure: Figure) -> dict[str, set[str]]:
    """Colours of the lines in each panel, by the panel's title."""
    from matplotlib.colors import to_hex

    return {
        axes.get_title(loc="left"): {
            to_hex(line.get_color()).upper() for line in axes.lines if line.get_label()[0] != "_"
        }
        for axes in figure.axes
    }


def test_a_model_has_its_colour_in_every_comparison_and_nothing_else_has_it() -> None:
    labels = {f"lmu · {task}": ("lmu", task) for task in ("A", "B1", "C ema")}  # groups of one model
    green = style.MODEL_COLOURS["lmu"]
    alone = curve_charts.draw_curves(curves_of(list(labels), 2, 3), labels, ACCURACY)
    assert colours_of(alone) == {"Validation accuracy": {green}}
    scores = charts.draw_scores(*groups(list(labels), 1), {}, labels, ACCURACY)
    assert {line.get_color() for line in scores.axes[0].lines} == {green}
    places = [pareto.Point("lmu", f"trainer.lr={at}", 3e4 * (1 + at), 0.9) for at in range(30)]
    markers = [line for line in pareto.draw_front(places, pareto.BYTES, ACCURACY).axes[0].lines if line.get_gid()]
    assert {line.get_markerfacecolor() for line in markers if line.get_linestyle() == "None"} == {green}
    panels = curve_charts.draw_curves_of_models(curves_of(NINE, 1, 3), NAMES, ACCURACY)
    assert [axes.get_title(loc="left") for axes in panels.axes] == ["gru", "lstm", "lmu"]
    assert [axes._left_title.get_color() for axes in panels.axes] == [  # type: ignore[attr-defined]
        style.MODEL_COLOURS[model] for model in ("gru", "lstm", "lmu")
    ]
    assert not set.union(*colours_of(panels).values()) & set(style.MODEL_COLOURS.values())
    run = curves.draw_training_curves(history(3), 2, (), RUN)
    assert not set.union(*colours_of(run).values()) & set(style.MODEL_COLOURS.values())
    (recurrent,) = {flow.Box("LMU", [], "encoder", model="lmu").colour}
    assert recurrent == green and not {*flow.COLOURS.values(), flow.CONSTRAINT} & set(style.MODEL_COLOURS.values())


@pytest.mark.parametrize("epochs", [1, 2, 8])
def test_no_marker_of_an_epoch_is_cut(epochs: int) -> None:
    names = {name: NAMES[name] for name in NINE[:2]}
    drawn = [
        curve_charts.draw_curves(curves_of(list(names), 2, epochs), names, ACCURACY),
        curve_charts.draw_curves_of_models(curves_of(NINE, 2, epochs), NAMES, ACCURACY),
        curves.draw_training_curves(history(epochs), 1, (), RUN),
    ]
    for figure in drawn:
        figure.canvas.draw()
        for axes in figure.axes:
            panel = axes.get_window_extent()
            places = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() != "None"])
            pixels = axes.transData.transform(places)[:, 0]
            at_edge = np.minimum(np.abs(pixels - panel.x0), np.abs(pixels - panel.x1))
            assert at_edge.min() > 2 / 72 * figure.dpi  # half a marker of 4 points


def test_the_best_trial_of_a_search_is_ringed_and_its_scale_is_the_samplers() -> None:
    shown = trials(9)
    figure = search.draw_search(shown, "accuracy", True, ["trainer.lr"], "search_lr_fsdd_gru_A_seed0")
    best = max(shown, key=lambda trial: trial.value)
    rings = [line for axes in figure.axes for line in axes.lines if line.get_label() == "best trial"]
    assert len(rings) == 4
    assert [float(ring.get_ydata()[0]) for ring in rings] == [100 * best.value] * 4
    assert float(rings[1].get_xdata()[0]) == best.params["trainer.lr"]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log", "linear", "linear"]
