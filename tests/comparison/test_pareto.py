"""Accuracy over bytes: the front by hand; every marker is visible and distinct."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from speech_exp.comparison.pareto import BYTES, Point, draw_front, pareto_front
from speech_exp.comparison.score import ACCURACY

TASKS = ["A", "B1", "B2", *(f"C approach {at}" for at in range(9)), "C approach 0 + kd"]


def front(*places: tuple[float, float]) -> list[int]:
    return pareto_front([Point("", str(at), *place) for at, place in enumerate(places)], ACCURACY)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (((100, 0.9),), [0]),
        (((300, 0.9), (100, 0.8), (200, 0.7)), [1, 0]),  # the last is larger and worse than the second
        (((100, 0.9), (100, 0.8)), [0]),  # as small, more accurate
        (((100, 0.9), (90, 0.9)), [1]),  # as accurate, smaller
        (((100, 0.9), (100, 0.9)), [0, 1]),  # neither dominates the other
        (((100, 0.3), (90, 0.1 + 0.2)), [1]),  # 0.1 + 0.2 > 0.3 in its last bit only
        (((90, 0.3), (100, 0.1 + 0.2)), [0]),
    ],
)
def test_front_by_hand(places: tuple[tuple[float, float], ...], expected: list[int]) -> None:
    assert front(*places) == expected


def drawn(points: list[Point]) -> tuple[Any, dict[str, Any]]:
    figure = draw_front(points, BYTES, ACCURACY)
    figure.canvas.draw()
    labels = {point.label for point in points}
    return figure, {str(line.get_label()): line for line in figure.axes[0].lines if line.get_label() in labels}


def pixels(figure: Any, line: Any) -> np.ndarray:
    return np.asarray(figure.axes[0].transData.transform(line.get_xydata())[0])


def test_39_groups_at_one_place_are_all_seen_and_no_two_look_the_same() -> None:
    figure, lines = drawn([Point(model, task, 9e3, 0.99) for model in ("gru", "lstm", "lmu") for task in TASKS])
    assert len(lines) == 39
    looks = {(one.get_marker(), one.get_markerfacecolor(), one.get_markeredgecolor()) for one in lines.values()}
    assert len(looks) == 39
    places = [pixels(figure, line) for line in lines.values()]
    width_px = 7.5 / 72 * figure.dpi
    assert min(np.hypot(*(a - b)) for a, b in itertools.combinations(places, 2)) > 0.8 * width_px
    assert len({round(place[1], 6) for place in places}) == 1  # moved sideways only, so accuracy stays readable


def test_a_marker_that_hides_no_other_is_at_its_bytes_and_accuracy() -> None:
    _, lines = drawn([Point("gru", "B1", 38020, 0.99), Point("lstm", "B1", 9505, 0.98)])
    assert np.allclose(lines["gru · B1"].get_xydata(), [[38020, 99.0]])
    assert np.allclose(lines["lstm · B1"].get_xydata(), [[9505, 98.0]])
    assert lines["gru · B1"].get_marker() == lines["lstm · B1"].get_marker()


def test_moved_marker_is_tied_to_its_true_place() -> None:
    figure, lines = drawn([Point("gru", "C ema", 9e3, 0.99), Point("gru", "C inq", 9e3, 0.99)])
    moved = [line for line in lines.values() if not np.allclose(line.get_xydata(), [[9e3, 99.0]])]
    assert len(moved) == 1
    (place,) = moved[0].get_xydata()
    ties = [line for line in figure.axes[0].lines if len(line.get_xydata()) == 2]
    assert any(np.allclose(line.get_xydata(), [[9e3, 99.0], place]) for line in ties)


def test_front_is_drawn_as_stairs_to_the_right_edge() -> None:
    figure, _ = drawn([Point("", "C ema", 5e3, 0.97), Point("", "B1", 4e4, 0.99), Point("", "B2", 4.5e4, 0.98)])
    (stairs,) = [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert np.allclose(stairs.get_ydata(), [97, 99, 99])
    assert np.allclose(stairs.get_xdata(), [5e3, 4e4, figure.axes[0].get_xlim()[1]])
