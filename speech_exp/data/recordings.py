"""Indexes a folder of recordings named `{digit}_{speaker}_{index}` and computes its fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from speech_exp.data.storage import with_retries

_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[A-Za-z-]+)_(?P<index>[0-9]+)")
_SUFFIXES = (".wav", ".flac")
_MOST_BYTES = 2**26  # largest recording; all recordings are read into memory


@dataclass(frozen=True)
class Recording:
    id: str  # file name without suffix
    path: Path
    label: int
    speaker: str
    index: int


@dataclass(frozen=True)
class Origin:
    """The speaker of an utterance and the recordings that it was joined from; empty if unknown.

    Utterances of one origin are not independent, so a comparison of models resamples them together.
    """

    speaker: str = ""
    recordings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """An utterance left out of the data set and the reason, as listed in the run record."""

    id: str
    reason: str


def refuse_too_many(dropped: Sequence[Dropped], total: int, most_share: float, kind: str = "recordings") -> None:
    """Raise a ValueError if more than `most_share` of `total` is dropped; a run must not continue as if nothing were lost."""
    if len(dropped) > most_share * total:
        raise ValueError(
            f"{len(dropped):,} of {total:,} {kind} cannot be used, more than the share dataset.max_dropped_share={most_share:g} "
            f"({dropped[0].id}: {dropped[0].reason}): restore them, or raise dataset.max_dropped_share"
        )


def index_recordings(folder: Path) -> tuple[list[Recording], list[Dropped]]:
    """Return the recordings of a folder, ordered by digit, speaker and index, and the audio files that cannot be used."""
    recordings, dropped, seen = [], [], set()
    found = with_retries(lambda: sorted(folder.iterdir()), str(folder), "check dataset.root")
    for path in (path for path in found if path.suffix.lower() in _SUFFIXES):
        match = _NAME.fullmatch(path.stem)
        stat = with_retries(path.stat, str(path), "check dataset.root")
        if not S_ISREG(stat.st_mode):
            dropped.append(Dropped(path.name, "a folder, FIFO or device in place of a file"))
        elif stat.st_size > _MOST_BYTES:
            dropped.append(
                Dropped(path.name, f"of {stat.st_size:,} bytes, expected a recording of at most {_MOST_BYTES:,}")
            )
        elif match is None:
            dropped.append(Dropped(path.name, "name is not {digit}_{speaker}_{index}"))
        elif path.stem in seen:
            dropped.append(Dropped(path.name, "a second file of the same name with another suffix"))
        else:
            seen.add(path.stem)
            recordings.append(Recording(path.stem, path, int(match["digit"]), match["speaker"], int(match["index"])))
    recordings.sort(key=lambda recording: (recording.label, recording.speaker, recording.index))
    return recordings, dropped


def read_contents(recordings: Sequence[Recording]) -> list[bytes]:
    """Read all files into memory, once for both the fingerprint and decoding; for small data sets only."""
    return [with_retries(each.path.read_bytes, str(each.path), "check dataset.root") for each in recordings]


def fingerprint(recordings: Sequence[Recording], contents: Sequence[bytes]) -> str:
    """Return a SHA-256 over names and contents; any changed, added or removed recording changes it."""
    digest = hashlib.sha256()
    for recording, content in zip(recordings, contents, strict=True):
        digest.update(f"{recording.id}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()
