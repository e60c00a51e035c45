"""Select the utterances of a table for training or scoring, and record why the others are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from speech_exp.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from speech_exp.data.corpus.cuts import CHARACTERS, GARBAGE, OUTSIDE, REJECTIONS, CutTable
from speech_exp.data.recordings import Dropped

_NAMED = 1000  # utterances listed by id for each reason; a corpus may have millions


@dataclass(frozen=True)
class Limits:
    """Limits on the length of training utterances; they do not apply to validation and test, whose metrics would change.

    An utterance is used whole or left out: its audio is never cut, because the transcript would no longer match.

    Args:
        min_s, max_s: shortest and longest.
        max_frames: longest in frames, None for no such limit.
    """

    min_s: NonNegativeFloat
    max_s: PositiveFloat
    max_frames: PositiveInt | None

    def __post_init__(self) -> None:
        if not self.min_s < self.max_s:
            raise ValueError(
                f"dataset.limits.min_s={self.min_s} and max_s={self.max_s}: expected min_s < max_s, change dataset.limits.max_s"
            )

    def choose(
        self, table: CutTable, sample_rate_hz: int, fewest_U: np.ndarray, most_U: np.ndarray, frames_per_state: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the positions of the utterances to train on, and {reason: positions} of the others.

        Args:
            fewest_U, most_U: frames of each utterance at the highest and at the lowest speed.
            frames_per_state: the encoder's downsampling factor.
        """
        seconds_U = table.samples_U / sample_rate_hz
        reasons = {
            **{reason: table.refusal_U == code for code, reason in enumerate(REJECTIONS) if code},
            f"shorter than dataset.limits.min_s={self.min_s:g}": seconds_U < self.min_s,
            f"longer than dataset.limits.max_s={self.max_s:g}": seconds_U > self.max_s,
            "more characters than frames after the encoder's downsampling allow": table.needed_U
            > -(-fewest_U // frames_per_state),
        }
        if self.max_frames is not None:
            reasons[f"longer than dataset.limits.max_frames={self.max_frames}"] = most_U > self.max_frames
        usable_U, left_out = np.ones(len(table), dtype=bool), {}
        for reason, refused_U in reasons.items():
            left_out[reason] = np.flatnonzero(refused_U & usable_U)
            usable_U &= ~refused_U
        return np.flatnonzero(usable_U), left_out


def scored_utterances(table: CutTable, part: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the positions of the utterances of an evaluation part to score, and {reason: positions} of the others.

    All segments are scored except those with a garbage tag, as in the release's recipes.
    """
    for code in (CHARACTERS, OUTSIDE):
        if len(found := np.flatnonzero(table.refusal_U == code)):
            raise ValueError(
                f"{part} utterance {table.id(int(found[0]))} has {REJECTIONS[code]}: correct it in GigaSpeech.json"
            )
    garbage_U = table.refusal_U == GARBAGE
    return np.flatnonzero(~garbage_U), {REJECTIONS[GARBAGE]: np.flatnonzero(garbage_U)}


def list_dropped(table: CutTable, left_out: Mapping[str, np.ndarray]) -> list[Dropped]:
    """List the first utterances left out for each reason, and how many more there are."""
    dropped = []
    for reason, numbers_N in left_out.items():
        dropped += [Dropped(table.id(int(number)), reason) for number in numbers_N[:_NAMED]]
        if more := len(numbers_N[_NAMED:]):
            dropped.append(Dropped(f"and {more:,} more", reason))
    return dropped
