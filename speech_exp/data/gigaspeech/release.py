"""Reads and checks the release of GigaSpeech on disk: `GigaSpeech.json` and `audio/**/*.opus`.

The real JSON file is larger than a gigabyte, so it is parsed as a stream. Audio files are only checked for existence.
"""

from __future__ import annotations

import os
import reprlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from speech_exp.data.gigaspeech.json_guard import GuardedJson
from speech_exp.safe_text import escaped

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

METADATA = "GigaSpeech.json"
SUBSETS = ("xs", "s", "m", "l", "xl", "dev", "test")  # each of the first five contains the ones before it
HOW_TO_GET_IT = (
    "download it with action=prepare and GIGASPEECH_PASSWORD in the environment, the password that SpeechColab sends for the signed form, "
    "https://github.com/SpeechColab/GigaSpeech"
)
_NUMBER = (int, float)
_AUDIO_FIELDS = {
    "aid": str, "path": str, "md5": str, "duration": _NUMBER, "sample_rate": int, "channels": int, "subsets": list,
    "segments": list,
}  # fmt: skip
_SEGMENT_FIELDS = {
    "sid": str, "begin_time": _NUMBER, "end_time": _NUMBER, "text_tn": str, "speaker": str, "subsets": list,
}  # fmt: skip
_NAMED = 3  # missing files named in the error
_MOST_NAME = 128  # characters of an id
_MOST_PATH = 1024
_MOST_S = 7 * 24 * 3600  # longest recording
_MOST_SEGMENT_S = 600
_SLACK_S = 1.0  # a segment may end this much after its recording without an error; training leaves it out
_PARTS = {"dev": "DEV", "test": "TEST"}  # every other subset is a training subset


@dataclass
class Release:
    """One pass over a release.

    Args:
        subsets: entries of `SUBSETS` whose segments are wanted.
        advance: called with the megabytes of GigaSpeech.json read since the last call.
    """

    root: Path
    subsets: tuple[str, ...]
    advance: Callable[[float], object] = lambda _: None
    missing: list[str] = field(default_factory=list, init=False)  # paths of wanted audio files that do not exist
    _ids: set[str] = field(default_factory=set, init=False)  # ids and paths of the audios read so far
    _segment_hashes: array[int] = field(
        default_factory=lambda: array("q"), init=False
    )  # 8 bytes for each of about ten million segments

    def __post_init__(self) -> None:
        for subset in self.subsets:
            if subset not in SUBSETS:
                raise ValueError(f"dataset.subset={subset} is unknown: expected one of {', '.join(SUBSETS[:5])}")

    @property
    def path(self) -> Path:
        return self.root / METADATA

    def audios(self) -> Iterator[dict[str, Any]]:
        """Yield the checked entries of the wanted subsets in file order; audio files that do not exist go into `missing`."""
        tags = {f"{{{subset.upper()}}}" for subset in self.subsets}
        for audio in self._entries():
            if tags.isdisjoint(audio["subsets"]):
                continue
            if not (self.root / audio["path"]).is_file():
                self.missing.append(audio["path"])
            yield audio

    def refuse_missing(self) -> None:
        """Raise a ValueError that names the missing files found by `audios`, if there are any."""
        if self.missing:
            more = f" and {len(self.missing) - _NAMED} more" if len(self.missing) > _NAMED else ""
            raise ValueError(
                f"{len(self.missing)} audio files of the subsets {', '.join(self.subsets)} are missing below {self.root} "
                f"({', '.join(self.missing[:_NAMED])}{more}): check dataset.root and dataset.subset, or {HOW_TO_GET_IT}"
            )

    def cuts(self) -> Iterator[tuple[MonoCut, list[str], str]]:
        """Yield for each wanted segment its cut, its subsets (entries of `SUBSETS`) and the MD5 of its audio."""
        from lhotse.cut import MonoCut
        from lhotse.recipes.gigaspeech import parse_utterance
        from lhotse.utils import fastcopy

        for audio in self.audios():
            recording, supervisions = parse_utterance(audio, self.root)
            for segment, supervision in zip(audio["segments"], supervisions, strict=True):
                subsets = [tag.strip("{}").lower() for tag in segment["subsets"]]
                if set(self.subsets).isdisjoint(subsets):
                    continue
                start, duration = supervision.start, supervision.duration
                # Times in a cut are relative to its start.
                cut = MonoCut(
                    supervision.id,
                    start,
                    duration,
                    0,
                    recording=recording,
                    supervisions=[fastcopy(supervision, start=0.0)],
                )
                yield cut, subsets, audio["md5"]

    def _entries(self) -> Iterator[dict[str, Any]]:
        ijson = import_ijson()
        if not self.path.is_file():
            raise ValueError(
                f"{self.path} is missing: set dataset.root to the folder that contains it, or {HOW_TO_GET_IT}"
            )
        found, read_bytes = 0, 0
        self._ids.clear()
        del self._segment_hashes[:]
        with self.path.open("rb") as file:
            guarded = GuardedJson(file, str(self.path))
            try:
                for audio in ijson.items(guarded, "audios.item", use_float=True):
                    guarded.entry_ends()
                    self._check(audio, found)
                    yield audio
                    found += 1
                    self.advance((file.tell() - read_bytes) / 1e6)
                    read_bytes = file.tell()
            except ijson.JSONError as error:
                raise ValueError(
                    f"{self.path} is not complete JSON ({escaped(' '.join(str(error).split())[:80])}): replace it, or {HOW_TO_GET_IT}"
                ) from None
        if not found:
            raise ValueError(f"{self.path} lists no audio (field audios): replace it, or {HOW_TO_GET_IT}")
        self._refuse_duplicate_segment_ids()

    def _check(self, audio: Any, number: int) -> None:
        name = f"audio number {number}"
        self._check_fields(audio, _AUDIO_FIELDS, name)
        self._check_id(audio["aid"], f"aid of {name}")
        name = f"audio {audio['aid']}"
        self._check_path(audio["path"], name)
        for key in (f"aid {audio['aid']}", f"path {PurePosixPath(audio['path'])}"):
            if key in self._ids:
                raise self._error(f"{name} repeats the {key} of an earlier audio")
            self._ids.add(key)
        for key, most in (("duration", _MOST_S), ("sample_rate", 1_000_000), ("channels", 64)):
            if not 0 < audio[key] <= most:
                raise self._error(f"field {key} of {name} is {audio[key]}, expected more than 0 and at most {most:,}")
        part = self._part(audio["subsets"], name)
        for position, segment in enumerate(audio["segments"]):
            self._check_segment(segment, audio, part, f"segment number {position} of {name}")

    def _check_segment(self, segment: Any, audio: dict[str, Any], part: str | None, name: str) -> None:
        self._check_fields(segment, _SEGMENT_FIELDS, name)
        self._check_id(segment["sid"], f"sid of {name}")
        name = f"segment {segment['sid']} of audio {audio['aid']}"
        own_part = self._part(segment["subsets"], name)
        if own_part not in (None, part):
            raise self._error(f"{name} belongs to {own_part}, but its audio to {part or 'no subset'}")
        begin_s, end_s, duration_s = segment["begin_time"], segment["end_time"], audio["duration"]
        if not (0 <= begin_s < min(end_s, duration_s) and end_s <= duration_s + _SLACK_S):
            raise self._error(
                f"{name} lasts from {begin_s} to {end_s} s in a recording of {duration_s} s",
                "correct or remove the segment",
            )
        if end_s - begin_s > _MOST_SEGMENT_S:
            raise self._error(f"{name} lasts {end_s - begin_s:g} s, expected at most {_MOST_SEGMENT_S} s")
        self._segment_hashes.append(hash(segment["sid"]))

    def _check_fields(self, entry: Any, types: dict[str, Any], name: str) -> None:
        for key, kind in types.items():
            if not isinstance(entry, dict) or key not in entry:
                raise self._error(f"{name} has no field {key}")
            value = entry[key]
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = "a number" if kind == _NUMBER else kind.__name__
                raise self._error(f"field {key} of {name} is {reprlib.repr(value):.40}, expected {wanted}")

    def _check_id(self, value: str, name: str) -> None:
        if not (0 < len(value) <= _MOST_NAME and value.isprintable() and not {"/", "\\"} & set(value)):
            raise self._error(
                f"the {name} is {reprlib.repr(value):.60}, expected a name of at most {_MOST_NAME} printable characters "
                "without / and \\"
            )

    def _check_path(self, path: str, name: str) -> None:
        """Raise a ValueError if the path leads outside the root, directly or through links."""
        pure = PurePosixPath(path)
        is_plain = 0 < len(path) <= _MOST_PATH and path.isprintable() and "\\" not in path
        inside = is_plain and not pure.is_absolute() and ".." not in pure.parts
        if not (inside and Path(os.path.realpath(self.root / path)).is_relative_to(os.path.realpath(self.root))):
            raise self._error(f"field path of {name} is {reprlib.repr(path):.80}, expected a file inside {self.root}")

    def _part(self, tags: list[Any], name: str) -> str | None:
        """Return the part that these subsets belong to ("training", "DEV" or "TEST"); None if there are no subsets."""
        for tag in tags:
            if tag not in _TAGS:
                raise self._error(
                    f"{name} is in the unknown subset {reprlib.repr(tag)}, expected one of {', '.join(_TAGS)}"
                )
        parts = sorted({_PARTS.get(tag.strip("{}").lower(), "training") for tag in tags})
        if len(parts) > 1:
            raise self._error(f"{name} belongs to {' and '.join(parts)}, expected only one of them")
        return parts[0] if parts else None

    def _refuse_duplicate_segment_ids(self) -> None:
        """Raise a ValueError if two segments have the same id; equal hashes are checked by reading the file again."""
        hashes_U = np.sort(np.array(self._segment_hashes, dtype=np.int64))
        several = set(hashes_U[1:][hashes_U[1:] == hashes_U[:-1]].tolist())
        if not several:
            return
        seen: set[str] = set()
        with self.path.open("rb") as file:
            for audio in import_ijson().items(file, "audios.item", use_float=True):
                for sid in (segment["sid"] for segment in audio["segments"] if hash(segment["sid"]) in several):
                    if sid in seen:
                        raise self._error(
                            f"segment {sid} of audio {audio['aid']} repeats the sid of an earlier segment"
                        )
                    seen.add(sid)

    def _error(self, what: str, remedy: str = "replace the file") -> ValueError:
        return ValueError(f"{self.path}: {what}: {remedy}, or {HOW_TO_GET_IT}")


_TAGS = tuple(f"{{{subset.upper()}}}" for subset in SUBSETS)


def import_ijson() -> Any:
    try:
        import ijson
    except ImportError:
        raise ValueError(
            "dataset=gigaspeech needs ijson, which is not installed: pip install 'speech_exp[gigaspeech]'"
        ) from None
    return ijson
