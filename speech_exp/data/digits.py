"""Spoken digits as a folder of short recordings: FSDD, and the synthetic voices that ship with this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from speech_exp.data.audio import decode_recording
from speech_exp.data.download import Archive
from speech_exp.data.recordings import Dropped, Recording, fingerprint, index_recordings, read_contents
from speech_exp.data.root import candidate_roots, find_root
from speech_exp.data.splits import SPLITS, Parts, split_official, split_random, split_speaker

BUNDLED = Path(__file__).parent


@dataclass(frozen=True)
class LoadedDigits:
    """All recordings of a data set, their file contents, and the split into parts."""

    recordings: list[Recording]
    contents: list[bytes]
    parts: Parts
    dropped: list[Dropped]
    fingerprint: str
    sample_rate_hz: int
    synthetic_voices: int = 0

    @property
    def summary(self) -> str:
        return f"{len(self.recordings):,} recordings of {len({one.speaker for one in self.recordings})} speakers"

    def waveform(self, position: int) -> np.ndarray:
        """Waveform (N,) float32 of recording `position`; `AudioError` where the file is bad."""
        return decode_recording(self.contents[position], self.recordings[position].path.name, self.sample_rate_hz)


class Digits:
    """Digits 0-9 in files `{digit}_{speaker}_{index}`; `folder` below the root holds them.

    Args:
        name: data set name, also the folder searched for below the data root.
        bundled: the recordings ship inside this package, below its data folder.
        root: folder of the data set, or None to search (`candidate_roots`).
        index_ranges: first and last index of each part of the official split.
        shares: test and validation share of the random split.
        split_seed: seed of the random split.
        synthetic_voices: random voices that join the training part, where the augmentation makes variants.
        download: archive that `action=prepare` fetches, or None.
    """

    class_names = tuple(str(digit) for digit in range(10))
    targets = "classes"  # what it gives an objective

    def __init__(
        self,
        name: str,
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
    ) -> None:
        self.name, self.bundled, self.folder, self.sample_rate_hz = name, bundled, folder, sample_rate_hz
        self.root = str(BUNDLED) if bundled and root is None else root
        self.split, self.index_ranges, self.shares, self.split_seed = split, index_ranges, shares, split_seed
        self.test_speaker, self.validation_speaker, self.download = test_speaker, validation_speaker, download
        self.synthetic_voices = synthetic_voices
        if split != "speaker" and (test_speaker is not None or validation_speaker is not None):
            raise ValueError(
                f"dataset.split={split} takes no test or validation speaker, got dataset.test_speaker={test_speaker} "
                f"dataset.validation_speaker={validation_speaker}: add dataset.split=speaker"
            )

    def load(self) -> LoadedDigits:
        """Index, read and split the recordings."""
        folder = find_root(self.name, self.root, self.folder) / self.folder
        recordings, dropped = index_recordings(folder)
        if not recordings:
            raise ValueError(
                f"{folder} holds no recording named {{digit}}_{{speaker}}_{{index}}.wav or .flac: change dataset.root"
            )
        contents = read_contents(recordings)
        parts = self._split(recordings)
        for name in SPLITS:
            if not parts[name]:
                raise ValueError(
                    f"dataset.split={self.split} leaves no recording for {name} in {folder}: "
                    f"change dataset.split or dataset.root"
                )
        return LoadedDigits(
            recordings,
            contents,
            parts,
            dropped,
            fingerprint(recordings, contents),
            self.sample_rate_hz,
            self.synthetic_voices,
        )

    def utterances_per_epoch(self, loaded: LoadedDigits) -> int:
        """Training utterances, while no recording is dropped."""
        return len(loaded.parts["train"])

    def prepare(self) -> Path:
        """Download and verify what is missing; return the root."""
        root = candidate_roots(self.name, self.root)[0]
        if self.download is None:
            return find_root(self.name, self.root, self.folder)
        return self.download.fetch(root, self.folder)

    def _split(self, recordings: Sequence[Recording]) -> Parts:
        if self.split == "official":
            return split_official(recordings, self.index_ranges)
        if self.split == "random":
            return split_random(recordings, self.shares, self.split_seed)
        return split_speaker(
            recordings, self.test_speaker, self.validation_speaker, self.index_ranges["unseen_validation"]
        )
