"""Masks and padding look different, and classes that never occur are marked."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from speech_exp.figures import style
from speech_exp.figures.corpus import draw_batch, draw_counts, draw_durations


def test_masks_are_blank_and_padding_starts_after_each_utterance():
    generator = np.random.default_rng(0)
    long_TF, short_TF = generator.uniform(1, 2, (30, 4)), generator.uniform(1, 2, (20, 4))
    long_TF[5:9], short_TF[:, 2] = 0, 0
    figure = draw_batch([("a", long_TF), ("b", short_TF)], 30, 0.01, "two")
    for axes, features_TF in zip(figure.axes, (long_TF, short_TF), strict=False):
        (image,) = axes.get_images()
        assert (image.get_array().mask == (features_TF.T == 0)).all()
        (padding,) = axes.patches
        assert padding.get_x() == pytest.approx((len(features_TF) - 0.5) * 0.01)
        assert padding.get_hatch()
        assert axes.get_xlim() == pytest.approx((-0.005, 0.295))


def test_a_batch_that_is_masked_throughout_is_still_drawn(tmp_path):
    figure = draw_batch([("a", np.zeros((3, 2)))], 4, 0.01, "all masked")
    assert style.save(figure, tmp_path / "batch.png").stat().st_size > 0


def test_the_bars_are_the_counts_and_what_never_occurs_is_red():
    (axes,) = draw_counts({"e": 3, "a": 1, "z": 0}, "targets", "character").axes
    assert [bar.get_height() for bar in axes.patches] == [3, 1, 0]
    colours = {label.get_text(): to_hex(label.get_color()).upper() for label in axes.get_xticklabels()}
    assert [name for name, colour in colours.items() if colour == style.VERMILLION] == ["z"]
    assert "1 never" in axes.get_title(loc="left")


def test_each_part_has_its_histogram_of_all_its_utterances():
    figure = draw_durations({"train": np.array([1.0, 2.0, 2.5]), "test": np.array([0.2])})
    assert [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes] == [3, 1]
