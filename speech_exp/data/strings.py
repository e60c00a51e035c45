"""Connected digits: which recordings of one speaker follow each other in a string, and the pauses between them.

A string is a plan; the samples are put together where the waveforms lie (`speech_exp.features.string_batches`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speech_exp.data.digits import Digits, LoadedDigits
from speech_exp.data.download import Archive
from speech_exp.data.recordings import Recording

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NOISE_STARTS = 2**16  # samples of the stored noise where the noise of a string may begin


@dataclass(frozen=True)
class DigitString:
    """Pause, recording, pause, ..., recording, pause."""

    id: str
    speaker: str
    recordings: tuple[int, ...]  # positions in `LoadedDigits.recordings`
    pauses: tuple[int, ...]  # samples: before the first recording, between neighbours, behind the last
    noise_start: int  # the pauses read the stored noise from here on, one after the other
    text: str


@dataclass(frozen=True)
class StringRules:
    """How strings are drawn.

    Args:
        digits: fewest and most recordings of a string.
        pause_s: shortest and longest pause between two recordings.
        edge_s: shortest and longest pause before the first and behind the last.
        noise_db: level of the noise in pauses against the background of the string's recordings. Digital silence there
            would tell every boundary by a level that no microphone gives.
        evaluation_passes: times each recording of validation and test is used, each time among others.
        seed: of all strings but those of the training epochs.
    """

    digits: list[int]
    pause_s: list[float]
    edge_s: list[float]
    noise_db: float
    evaluation_passes: int
    seed: int

    def __post_init__(self) -> None:
        for key, least in {"digits": 1, "pause_s": 0, "edge_s": 0}.items():
            value = getattr(self, key)
            if len(value) != 2 or not least <= value[0] <= value[1] < math.inf:
                raise ValueError(
                    f"dataset.strings.{key}={list(value)}: expected the least and the most, from {least} on, "
                    f"change dataset.strings.{key}"
                )
        if self.evaluation_passes < 1:
            raise ValueError(
                f"dataset.strings.evaluation_passes={self.evaluation_passes}: expected at least 1, "
                f"change dataset.strings.evaluation_passes"
            )

    def noise_samples(self, sample_rate_hz: int) -> int:
        """Samples of noise that must be stored: enough for the pauses of any string."""
        pauses = [*self.edge_s[1:] * 2, *self.pause_s[1:] * (self.digits[1] - 1)]
        return NOISE_STARTS + sum(round(pause * sample_rate_hz) for pause in pauses)

    def count(self, recordings: int) -> int:
        """Strings that one pass over this many recordings of a speaker gives, whatever the draw."""
        fewest, most = self.digits
        at_least = math.ceil(recordings / most)
        return min(max(round(2 * recordings / (fewest + most)), at_least), max(at_least, recordings // fewest))

    def fixed(self, part: str, members: Mapping[int, Recording], sample_rate_hz: int) -> list[DigitString]:
        """The same strings whenever they are asked for: those of validation and test, and an epoch of training."""
        passes = 1 if part == "train" else self.evaluation_passes
        return self.draw(members, sample_rate_hz, random.Random(f"{self.seed}:{part}"), passes)

    def draw(
        self, members: Mapping[int, Recording], sample_rate_hz: int, generator: random.Random, passes: int = 1
    ) -> list[DigitString]:
        """Strings of the recordings of one part, given by their positions.

        Each pass permutes the recordings of each speaker and cuts them into strings, so that it uses every recording
        once. Only where their number cannot be cut into strings of `digits` recordings (8 into strings of 5 to 7), some
        of them are used again.
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
        """Recordings of each string: uniform, then moved one by one until they add up."""
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


class DigitStrings(Digits):
    """Strings of the recordings of another data set, `source`, whose split they inherit."""

    targets = "text"

    def __init__(
        self,
        name: str,
        source: str,
        bundled: bool,
        root: str | None,
        folder: str,
        sample_rate_hz: int,
        split: Literal["official", "random", "speaker"],
        index_ranges: dict[str, list[int]],
        shares: dict[str, float],
        split_seed: int,
        test_speaker: str | None,
        validation_speaker: str | None,
        synthetic_voices: int,
        download: Archive | None,
        strings: StringRules,
    ) -> None:
        if synthetic_voices:
            raise ValueError(
                f"dataset.synthetic_voices={synthetic_voices} has no meaning with dataset={name}, whose strings are of "
                f"recorded voices: leave it out"
            )
        same = (
            bundled, root, folder, sample_rate_hz, split, index_ranges, shares, split_seed, test_speaker,
            validation_speaker, synthetic_voices, download,
        )  # fmt: skip
        super().__init__(name, *same)
        self._source = Digits(source, *same)
        self.strings = strings

    def load(self) -> LoadedDigits:
        """The recordings of the source, with its split."""
        return self._source.load()

    def prepare(self) -> Path:
        """Download and verify the source where it is missing; return its root."""
        return self._source.prepare()

    def utterances_per_epoch(self, loaded: LoadedDigits) -> int:
        """Training strings of an epoch, while no recording is dropped."""
        speakers = [recording.speaker for recording in loaded.parts["train"]]
        return sum(self.strings.count(speakers.count(speaker)) for speaker in sorted(set(speakers)))
