"""Normalised features have zero mean and unit variance: of the training part, or of each recording.

Shape letters: N all frames of all utterances one after the other, U utterances, F features.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_exp.features.normalization import Normalizer


def frames(lengths_U: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return utterances with different means and deviations, and features of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths_U)
    parts = [
        (torch.randn(length, 3, generator=generator) * (1 + number) + 5 * number) * torch.tensor([100.0, 1.0, 0.01])
        for number, length in enumerate(lengths_U)
    ]
    return torch.cat(parts), lengths


def test_global_gives_the_training_frames_zero_mean_and_unit_variance() -> None:
    frames_NF, lengths_U = frames([20, 30, 50])
    normalizer = Normalizer("global")
    normalizer.fit(frames_NF)
    normalized_NF = normalizer(frames_NF, lengths_U).double()
    torch.testing.assert_close(normalized_NF.mean(0), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized_NF.std(0), torch.ones(3).double(), atol=1e-5, rtol=0)


def test_global_takes_its_statistics_from_what_it_was_fitted_to_alone() -> None:
    train_NF, _ = frames([20, 30])
    other_NF, lengths_U = frames([40, 10], seed=1)
    normalizer = Normalizer("global")
    normalizer.fit(train_NF)
    expected_NF = (other_NF - train_NF.mean(0)) / train_NF.std(0)
    torch.testing.assert_close(normalizer(other_NF, lengths_U), expected_NF)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=8), st.integers(0, 100))
def test_utterance_gives_each_recording_zero_mean_and_about_unit_variance(lengths: list[int], seed: int) -> None:
    frames_NF, lengths_U = frames(lengths, seed)
    normalizer = Normalizer("utterance")
    normalizer.fit(frames_NF[:1])  # changes nothing
    for own_TF, raw_TF in zip(normalizer(frames_NF, lengths_U).split(lengths), frames_NF.split(lengths), strict=True):
        # The deviation is regularised by 0.1, so that features that hardly vary are not amplified.
        variance_F = raw_TF.var(0, correction=0)
        torch.testing.assert_close(own_TF.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            own_TF.std(0, correction=0), (variance_F / (variance_F + 0.01)).sqrt(), atol=1e-3, rtol=0
        )


def test_utterance_does_not_depend_on_the_other_recordings() -> None:
    lengths = [7, 31, 12]
    frames_NF, lengths_U = frames(lengths)
    together = Normalizer("utterance")(frames_NF, lengths_U).split(lengths)
    for number, own_TF in enumerate(frames_NF.split(lengths)):
        alone_TF = Normalizer("utterance")(own_TF, torch.tensor([lengths[number]]))
        torch.testing.assert_close(alone_TF, together[number], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["global", "utterance"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1131.3708, 12345.678])
@pytest.mark.parametrize("length", [1, 3, 37, 1000])
def test_a_feature_that_never_varies_becomes_zero(mode: str, value: float, length: int) -> None:
    constant_NF = torch.full((length + 5, 2), value)
    lengths_U = torch.tensor([length, 5])
    normalizer = Normalizer(mode)  # type: ignore[arg-type]
    normalizer.fit(constant_NF)
    assert not normalizer(constant_NF, lengths_U).any()


@pytest.mark.parametrize("mode", ["global", "utterance"])
def test_loaded_statistics_are_used_as_they_are(mode: str) -> None:
    train_NF, _ = frames([20, 30])
    other_NF, lengths_U = frames([40, 10], seed=1)
    first, second = Normalizer(mode), Normalizer(mode)  # type: ignore[arg-type]
    first.fit(train_NF)
    second.load({name: value.clone() for name, value in first.statistics().items()}, train_NF.shape[1])
    assert torch.equal(first(other_NF, lengths_U), second(other_NF, lengths_U))
    assert (
        first.statistics().keys() == second.statistics().keys() == ({"mean_F", "std_F"} if mode == "global" else set())
    )


def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features\.normalization=speaker: expected one of global, utterance, change"):
        Normalizer("speaker")  # type: ignore[arg-type]


def test_the_mean_of_many_frames_does_not_depend_on_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    frames_NF = torch.randn(200_000, 2, generator=generator) * 100 - 600
    one, other = Normalizer("global"), Normalizer("global")
    one.fit(frames_NF)
    other.fit(frames_NF.flip(0))
    assert torch.equal(one.statistics()["mean_F"], other.statistics()["mean_F"])
    assert torch.equal(one.statistics()["std_F"], other.statistics()["std_F"])
