"""Index of a folder of recordings named `{digit}_{speaker}_{index}`, and its fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[A-Za-z-]+)_(?P<index>[0-9]+)")
_SUFFIXES = (".wav", ".flac")


@dataclass(frozen=True)
class Recording:
    id: str  # file name without suffix
    path: Path
    label: int
    speaker: str
    index: int


@dataclass(frozen=True)
class Dropped:
    """A file left out of the data set, as the run record names it."""

    id: str
    reason: str


def index_recordings(folder: Path) -> tuple[list[Recording], list[Dropped]]:
    """Recordings of a folder ordered by digit, speaker and index, and the audio files whose names do not fit."""
    recordings, dropped, seen = [], [], set()
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            dropped.append(Dropped(path.name, "name is not {digit}_{speaker}_{index}"))
        elif path.stem in seen:
            dropped.append(Dropped(path.name, "a second file of the same name with another suffix"))
        else:
            seen.add(path.stem)
            recordings.append(Recording(path.stem, path, int(match["digit"]), match["speaker"], int(match["index"])))
    recordings.sort(key=lambda recording: (recording.label, recording.speaker, recording.index))
    return recordings, dropped


def read_contents(recordings: Sequence[Recording]) -> list[bytes]:
    """File contents, read once for fingerprint and decoding; small data sets only."""
    return [recording.path.read_bytes() for recording in recordings]


def fingerprint(recordings: Sequence[Recording], contents: Sequence[bytes]) -> str:
    """SHA-256 over names and contents, so that any changed, added or removed recording changes it."""
    digest = hashlib.sha256()
    for recording, content in zip(recordings, contents, strict=True):
        digest.update(f"{recording.id}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
