"""Connected digits: the recordings of one speaker that form a string, and the pauses between them.

A string is only a plan; `speech_exp.data.string_batches` joins the samples on the device of the waveforms.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speech_exp.bounds import PositiveInt
from speech_exp.data.recordings import Origin, Recording

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOISE_STARTS = 2**16  # positions in the stored noise, in samples, where a string's noise may start


@dataclass(frozen=True)
class DigitString:
    """One string of digits: pause, recording, pause, ..., recording, pause."""

    id: str
    speaker: str
    recordings: tuple[int, ...]  # positions in `DigitRecordings.recordings`
    pauses: tuple[int, ...]  # samples: before the first recording, between neighbours, after the last
    noise_start: int  # the pauses use consecutive stretches of the stored noise, starting here
    text: str

    def origin(self, recordings: Sequence[Recording]) -> Origin:
        """Return the speaker and recordings of the string; its positions refer to `recordings`."""
        return Origin(self.speaker, tuple(recordings[position].id for position in self.recordings))


@dataclass(frozen=True)
class StringRules:
    """Rules by which strings are drawn at random.

    Args:
        digits: fewest and most recordings in a string.
        pause_s: shortest and longest pause between two recordings.
        edge_s: shortest and longest pause before the first and after the last recording.
        noise_db: level of the noise in pauses relative to the background noise of the string's recordings. Digital silence
            would give away every boundary, at a level that no microphone produces.
        evaluation_passes: how often each validation and test recording is used, each time in a new string.
        seed: seed of the fixed strings, not of those drawn for training epochs.
    """

    digits: list[int]
    pause_s: list[float]
    edge_s: list[float]
    noise_db: float
    evaluation_passes: PositiveInt
    seed: int

    def __post_init__(self) -> None:
        for key, least in {"digits": 1, "pause_s": 0, "edge_s": 0}.items():
            value = getattr(self, key)
            if len(value) != 2 or not least <= value[0] <= value[1] < math.inf:
                raise ValueError(
                    f"dataset.strings.{key}={list(value)}: expected the least and the most, from {least} on, "
                    f"change dataset.strings.{key}"
                )

    def noise_samples(self, sample_rate_hz: int) -> int:
        """Return how many samples of noise must be stored for the pauses of any string."""
        pauses = [*self.edge_s[1:] * 2, *self.pause_s[1:] * (self.digits[1] - 1)]
        return NOISE_STARTS + sum(round(pause * sample_rate_hz) for pause in pauses)

    def count(self, recordings: int) -> int:
        """Return how many strings one pass makes from this many recordings of a speaker; it does not depend on the draw."""
        fewest, most = self.digits
        at_least = math.ceil(recordings / most)
        return min(max(round(2 * recordings / (fewest + most)), at_least), max(at_least, recordings // fewest))

    def fixed(self, part: str, members: Mapping[int, Recording], sample_rate_hz: int) -> list[DigitString]:
        """Return the fixed strings of a part, the same on every call: all strings of validation or test, or one pass of train."""
        passes = 1 if part == "train" else self.evaluation_passes
        return self.draw(members, sample_rate_hz, random.Random(f"{self.seed}:{part}"), passes)

    def draw(
        self, members: Mapping[int, Recording], sample_rate_hz: int, generator: random.Random, passes: int = 1
    ) -> list[DigitString]:
        """Draw strings from the recordings of one part; `members` maps positions to recordings.

        Each pass permutes the recordings of each speaker and cuts them into strings, so it uses every recording once.
        Some are used again only if their number cannot be cut into strings of `digits` recordings (8 into 5 to 7).
        """
        of_speaker: dict[str, list[int]] = {}
        for position, recording in members.items():
            of_speaker.setdefault(recording.speaker, []).append(position)
        strings: list[DigitString] = []
        for _ in range(passes):
            for positions in of_speaker.values():
                sizes = self._sizes(len(positions), generator)
                order: list[int] = []
                while len(order) < sum(sizes):
                    order += generator.sample(positions, len(positions))
                for size in sizes:
                    chosen, order = order[:size], order[size:]
                    recordings = {position: members[position] for position in chosen}
                    strings.append(self._string(len(strings), chosen, recordings, sample_rate_hz, generator))
        return strings

    def _sizes(self, recordings: int, generator: random.Random) -> list[int]:
        """Draw the size of each string: uniform, then changed one by one until the sum is right."""
        fewest, most = self.digits
        strings = self.count(recordings)
        sizes = [generator.randint(fewest, most) for _ in range(strings)]
        missing = max(recordings, strings * fewest) - sum(sizes)
        step, limit = (1, most) if missing > 0 else (-1, fewest)
        for _ in range(abs(missing)):
            movable = [number for number, size in enumerate(sizes) if size != limit]
            sizes[generator.choice(movable)] += step
        return sizes

    def _string(
        self,
        number: int,
        chosen: Sequence[int],
        recordings: Mapping[int, Recording],
        sample_rate_hz: int,
        generator: random.Random,
    ) -> DigitString:
        ranges_s = [self.edge_s, *[self.pause_s] * (len(chosen) - 1), self.edge_s]
        labels = [recordings[position].label for position in chosen]
        speaker = recordings[chosen[0]].speaker
        return DigitString(
            f"{number}_{speaker}_{''.join(map(str, labels))}",
            speaker,
            tuple(chosen),
            tuple(round(generator.uniform(*range_s) * sample_rate_hz) for range_s in ranges_s),
            generator.randrange(NOISE_STARTS),
            " ".join(WORDS[label] for label in labels),
        )
