"""Spoken digits in a folder of short recordings: FSDD, or the synthetic voices that ship with this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from speech_exp.bounds import NonNegativeInt, PositiveInt, Proportion
from speech_exp.data.data_set import DataSet, Targets
from speech_exp.data.digit_features import PreparedDigits
from speech_exp.data.digit_recordings import DigitRecordings
from speech_exp.data.download import Archive
from speech_exp.data.prepared import DataRequest, PreparedData
from speech_exp.data.recordings import Recording, fingerprint, index_recordings, read_contents
from speech_exp.data.root import candidate_roots, find_root
from speech_exp.data.splits import SPLITS, Parts, split_official, split_random, split_speaker
from speech_exp.data.synthetic.espeak import espeak_paths
from speech_exp.features.front_end import FrontEnd

BUNDLED = Path(__file__).parent


def speakers_of(name: str, bundled: bool, root: str | None, folder: str) -> list[str]:
    """Return the speakers of a data set of digits in alphabetical order, from the names of its files."""
    recordings, _ = index_recordings(find_root(name, _root(bundled, root), folder) / folder)
    return sorted({recording.speaker for recording in recordings})


def _root(bundled: bool, root: str | None) -> str | None:
    return str(BUNDLED) if bundled and root is None else root


@dataclass(eq=False)
class Digits(DataSet):
    """Recordings of the digits 0-9 in files `{digit}_{speaker}_{index}`, all in `folder` below the root.

    Args:
        name: name of the data set.
        bundled: whether the recordings ship inside this package, in its data folder.
        root: folder of the data set, or None to search for it (`candidate_roots`).
        index_ranges: first and last index of each part of the official split.
        shares: test and validation share of the random split.
        split_seed: seed of the random split.
        synthetic_voices: number of random voices added to the training part; needs an augmentation with variants.
        max_dropped_share: largest share of all recordings that may be left out for bad audio or names.
        download: archive that `action=prepare` downloads, or None.
    """

    name: str
    bundled: bool
    root: str | None
    folder: str
    sample_rate_hz: PositiveInt
    split: Literal["official", "random", "speaker"]
    index_ranges: dict[str, list[int]]
    shares: dict[str, float]
    split_seed: int
    test_speaker: str | None
    validation_speaker: str | None
    synthetic_voices: NonNegativeInt
    max_dropped_share: Proportion
    download: Archive | None

    class_names = tuple(str(digit) for digit in range(10))
    targets: ClassVar[Targets] = "classes"

    def __post_init__(self) -> None:
        self.root = _root(self.bundled, self.root)
        if self.split != "speaker" and (self.test_speaker is not None or self.validation_speaker is not None):
            raise ValueError(
                f"dataset.split={self.split} takes no test or validation speaker, got dataset.test_speaker={self.test_speaker} "
                f"dataset.validation_speaker={self.validation_speaker}: add dataset.split=speaker"
            )

    @property
    def source(self) -> str:
        """Name of the folder of recordings below the data root."""
        return self.name

    @cached_property
    def recorded(self) -> DigitRecordings:
        """The recordings of all parts, read when they are first needed."""
        folder = find_root(self.source, self.root, self.folder) / self.folder
        recordings, dropped = index_recordings(folder)
        if not recordings:
            raise ValueError(
                f"{folder} contains no recording named {{digit}}_{{speaker}}_{{index}}.wav or .flac: change dataset.root"
            )
        contents, parts = read_contents(recordings), self._split(recordings)
        for part in SPLITS:
            if not parts[part]:
                raise ValueError(
                    f"dataset.split={self.split} leaves no recording for {part} in {folder}: "
                    f"change dataset.split or dataset.root"
                )
        digest = fingerprint(recordings, contents)
        return DigitRecordings(
            recordings, contents, parts, dropped, digest, self.sample_rate_hz, self.max_dropped_share
        )

    @property
    def fingerprint(self) -> str:
        return self.recorded.fingerprint

    @property
    def summary(self) -> str:
        recordings = self.recorded.recordings
        return f"{len(recordings):,} recordings of {len({recording.speaker for recording in recordings})} speakers"

    @property
    def utterances_per_epoch(self) -> int:
        return len(self.recorded.parts["train"])

    def fetch(self) -> Path:
        if self.download is None:
            return find_root(self.source, self.root, self.folder)
        return self.download.fetch(candidate_roots(self.source, self.root)[0], self.folder)

    def check(self, front_end: FrontEnd, request: DataRequest) -> None:
        if request.trains and self.synthetic_voices and not front_end.variants:
            raise ValueError(
                f"dataset.synthetic_voices={self.synthetic_voices} are used only with an augmentation that makes variants, and "
                f"this one makes none: set augment=strong or dataset.synthetic_voices=0"
            )
        if request.trains and self.synthetic_voices:
            espeak_paths()  # raises if the synthesiser is missing
        if front_end.speeds != (1.0,):
            raise ValueError(
                f"augment.speeds={list(front_end.speeds)} change waveforms, but dataset={self.name} caches features: set "
                f"augment=strong, whose variants have other tempos, or augment.speeds=null"
            )

    def prepare(self, front_end: FrontEnd, request: DataRequest) -> PreparedData:
        self.check(front_end, request)
        return PreparedDigits(self.recorded, self.synthetic_voices, front_end, request)

    def _split(self, recordings: Sequence[Recording]) -> Parts:
        if self.split == "official":
            return split_official(recordings, self.index_ranges)
        if self.split == "random":
            return split_random(recordings, self.shares, self.split_seed)
        return split_speaker(
            recordings, self.test_speaker, self.validation_speaker, self.index_ranges["unseen_validation"]
        )
