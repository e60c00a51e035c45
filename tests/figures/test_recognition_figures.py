"""Figures of a recogniser: each symbol is named at its time, each error counted once, the loss has its unit."""

from __future__ import annotations

import numpy as np
import pytest

from speech_exp.figures.curves import draw_training_curves
from speech_exp.figures.recognition import draw_errors, draw_posterior

SYMBOLS = ("<blank>", " ", "a", "b")


def test_every_stretch_of_a_symbol_is_named_at_its_peak() -> None:
    posterior_TV = np.array(
        [[1.0, 0, 0, 0], [0.2, 0, 0.8, 0], [0.1, 0, 0.9, 0], [0.7, 0.3, 0, 0], [0.5, 0, 0.5, 0], [0.95, 0, 0, 0.05]]
    )
    figure = draw_posterior(
        np.random.default_rng(0).normal(size=(12, 3)), 0.01, posterior_TV, 0.02, SYMBOLS, ["x", "reference: a"]
    )
    names = sorted((text.xy[0], text.get_text()) for text in figure.axes[1].texts)
    # b never reaches a tenth; frames 1 and 2 are one stretch of a.
    assert names == [(pytest.approx(0.04), "a"), (pytest.approx(0.06), "␣"), (pytest.approx(0.08), "a")]


@pytest.mark.parametrize(("seconds", "inches"), [(1, 10), (8, 16), (60, 40)])
def test_a_long_utterance_is_drawn_wide_enough_to_read_its_symbols(seconds: int, inches: int) -> None:
    posterior_TV = np.full((50 * seconds, len(SYMBOLS)), 1 / len(SYMBOLS))
    figure = draw_posterior(np.zeros((100 * seconds, 3)), 0.01, posterior_TV, 0.02, SYMBOLS, ["x", "reference: a"])
    assert figure.get_figwidth() == inches


def test_a_posterior_of_other_symbols_is_refused() -> None:
    with pytest.raises(ValueError, match="got 4 names for 3 symbols"):
        draw_posterior(np.zeros((4, 2)), 0.01, np.zeros((2, 3)), 0.02, SYMBOLS, ["x", "reference: a"])


def test_errors_are_stacked_by_type_the_word_with_most_first() -> None:
    figure = draw_errors({"ONE": {"deleted": 1}, "SIX": {"substituted": 2, "inserted": 1}}, 900, "gru, task A, seed 0")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SIX", "ONE"]
    widths = [[bar.get_width() for bar in container] for container in axes.containers]
    assert widths == [[2, 0], [0, 1], [1, 0]]
    assert figure.get_suptitle() == "gru, task A, seed 0\n4 word errors in 900 words"


@pytest.mark.parametrize(("metric", "unit"), [("val_accuracy", "utterance"), ("val_wer", "character")])
def test_the_loss_has_the_unit_of_its_objective(metric: str, unit: str) -> None:
    rows = [{"epoch": 1.0, "train_loss": 2.0, "val_loss": 1.0, metric: 0.5, "lr": 0.1}]
    assert draw_training_curves(rows, None, (), "").axes[0].get_ylabel() == f"loss (nats per {unit})"
