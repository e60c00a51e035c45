"""Which utterances of a table training takes, and why it leaves the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from speech_exp.data.cuts import CHARACTERS, GARBAGE, OUTSIDE, REFUSALS, CutTable
from speech_exp.data.recordings import Dropped

_NAMED = 1000  # utterances named of each reason; a corpus may hold millions of them


@dataclass(frozen=True)
class Limits:
    """Of training utterances; validation and test are never cut down, or their metrics would be others.

    Args:
        min_s, max_s: shortest and longest.
        max_frames: longest in frames, None for no such limit. An utterance is left out as a whole: a transcript never
            stays with audio that was cut.
    """

    min_s: float
    max_s: float
    max_frames: int | None

    def __post_init__(self) -> None:
        if not 0 <= self.min_s < self.max_s:
            raise ValueError(
                f"dataset.limits.min_s={self.min_s} and max_s={self.max_s}: expected 0 <= min_s < max_s, change dataset.limits.max_s"
            )
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(
                f"dataset.limits.max_frames={self.max_frames}: expected at least 1, change dataset.limits.max_frames"
            )

    def choose(
        self, table: CutTable, sample_rate_hz: int, fewest_U: np.ndarray, most_U: np.ndarray, frames_per_state: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Positions of the utterances to learn, and of the others by their reason.

        Args:
            fewest_U, most_U: frames of each utterance at the highest and at the lowest speed.
            frames_per_state: frames that the encoder makes one of.
        """
        seconds_U = table.samples_U / sample_rate_hz
        reasons = {
            **{reason: table.refusal_U == code for code, reason in enumerate(REFUSALS) if code},
            f"shorter than dataset.limits.min_s={self.min_s:g}": seconds_U < self.min_s,
            f"longer than dataset.limits.max_s={self.max_s:g}": seconds_U > self.max_s,
            "more characters than its frames can carry after the encoder's downsampling": table.needed_U
            > -(-fewest_U // frames_per_state),
        }
        if self.max_frames is not None:
            reasons[f"longer than dataset.limits.max_frames={self.max_frames}"] = most_U > self.max_frames
        usable_U, left_out = np.ones(len(table), dtype=bool), {}
        for reason, refused_U in reasons.items():
            left_out[reason] = np.flatnonzero(refused_U & usable_U)
            usable_U &= ~refused_U
        return np.flatnonzero(usable_U), left_out


def speech(table: CutTable, part: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Positions of what is scored of a part, and of the others by their reason.

    That is all but the segments that hold a garbage tag, as the release's recipes do.
    """
    for code in (CHARACTERS, OUTSIDE):
        if len(found := np.flatnonzero(table.refusal_U == code)):
            raise ValueError(
                f"{part} utterance {table.id(int(found[0]))} has {REFUSALS[code]}: mend it in GigaSpeech.json"
            )
    garbage_U = table.refusal_U == GARBAGE
    return np.flatnonzero(~garbage_U), {REFUSALS[GARBAGE]: np.flatnonzero(garbage_U)}


def named(table: CutTable, left_out: Mapping[str, np.ndarray]) -> list[Dropped]:
    """The first of each reason, and how many more there are."""
    dropped = []
    for reason, numbers_N in left_out.items():
        dropped += [Dropped(table.id(int(number)), reason) for number in numbers_N[:_NAMED]]
        if more := len(numbers_N[_NAMED:]):
            dropped.append(Dropped(f"and {more:,} more", reason))
    return dropped
