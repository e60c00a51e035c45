"""The release of GigaSpeech as it lies on disk: `GigaSpeech.json` and `audio/**/*.opus`, checked and streamed.

The real file has more than a gigabyte, so it is parsed as a stream; of its audio files only the directory is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhotse.cut import MonoCut

METADATA = "GigaSpeech.json"
SUBSETS = ("xs", "s", "m", "l", "xl", "dev", "test")  # each of the first five holds those before it
HOW_TO_GET_IT = (
    "download it with action=prepare dataset.password=PASSWORD, the password that SpeechColab sends for the signed form, "
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
_NAMED = 3  # of the missing files


@dataclass
class Release:
    """One pass over a release; `advance` gets the megabytes of GigaSpeech.json that were read meanwhile.

    Args:
        subsets: keys of `SUBSETS` whose segments are wanted.
    """

    root: Path
    subsets: tuple[str, ...]
    advance: Callable[[float], object] = lambda _: None
    missing: list[str] = field(default_factory=list, init=False)  # paths of wanted audio files that are not there

    def __post_init__(self) -> None:
        for subset in self.subsets:
            if subset not in SUBSETS:
                raise ValueError(f"dataset.subset={subset} is unknown: expected one of {', '.join(SUBSETS[:5])}")

    @property
    def path(self) -> Path:
        return self.root / METADATA

    def audios(self) -> Iterator[dict[str, Any]]:
        """Checked entries of the wanted subsets as they stand in the file; `missing` grows as files are found missing."""
        tags = {f"{{{subset.upper()}}}" for subset in self.subsets}
        for audio in self._entries():
            if tags.isdisjoint(audio["subsets"]):
                continue
            if not (self.root / audio["path"]).is_file():
                self.missing.append(audio["path"])
            yield audio

    def refuse_missing(self) -> None:
        """Error that names the missing files found by `audios`."""
        if self.missing:
            more = f" and {len(self.missing) - _NAMED} more" if len(self.missing) > _NAMED else ""
            raise ValueError(
                f"{len(self.missing)} audio files of the subsets {', '.join(self.subsets)} are missing below {self.root} "
                f"({', '.join(self.missing[:_NAMED])}{more}): check dataset.root and dataset.subset, or {HOW_TO_GET_IT}"
            )

    def cuts(self) -> Iterator[tuple[MonoCut, list[str], str]]:
        """Cut of each segment of the wanted subsets, the segment's subsets (keys of `SUBSETS`), and its audio's MD5."""
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
                # Times in a cut count from its start.
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
                f"{self.path} is missing: set dataset.root to the folder that holds it, or {HOW_TO_GET_IT}"
            )
        found, read_bytes = 0, 0
        with self.path.open("rb") as file:
            try:
                for audio in ijson.items(file, "audios.item", use_float=True):
                    self._check(audio, found)
                    yield audio
                    found += 1
                    self.advance((file.tell() - read_bytes) / 1e6)
                    read_bytes = file.tell()
            except ijson.JSONError as error:
                raise ValueError(
                    f"{self.path} is not whole JSON ({' '.join(str(error).split())[:80]}): replace it, or {HOW_TO_GET_IT}"
                ) from None
        if not found:
            raise ValueError(f"{self.path} lists no audio (field audios): replace it, or {HOW_TO_GET_IT}")

    def _check(self, audio: Any, number: int) -> None:
        name = f"audio {audio['aid']}" if isinstance(audio, dict) and "aid" in audio else f"audio number {number}"
        self._check_fields(audio, _AUDIO_FIELDS, name)
        self._check_subsets(audio, name)
        for position, segment in enumerate(audio["segments"]):
            self._check_fields(segment, _SEGMENT_FIELDS, f"segment number {position} of {name}")
            where = f"segment {segment['sid']} of {name}"
            self._check_subsets(segment, where)
            begin_s, end_s = segment["begin_time"], segment["end_time"]
            if not 0 <= begin_s < min(end_s, audio["duration"]):
                raise ValueError(
                    f"{self.path}: {where} lasts from {begin_s} to {end_s} s in a recording of {audio['duration']} s: "
                    f"correct or remove the segment, or {HOW_TO_GET_IT}"
                )

    def _check_fields(self, entry: Any, types: dict[str, Any], name: str) -> None:
        for key, kind in types.items():
            if not isinstance(entry, dict) or key not in entry:
                raise ValueError(f"{self.path}: {name} has no field {key}: replace the file, or {HOW_TO_GET_IT}")
            if not isinstance(entry[key], kind):
                raise ValueError(
                    f"{self.path}: field {key} of {name} is {entry[key]!r:.40}, expected "
                    f"{'a number' if kind == _NUMBER else kind.__name__}: replace the file, or {HOW_TO_GET_IT}"
                )

    def _check_subsets(self, entry: dict[str, Any], name: str) -> None:
        for tag in entry["subsets"]:
            if tag not in _TAGS:
                raise ValueError(
                    f"{self.path}: {name} is in the unknown subset {tag!r}, expected one of {', '.join(_TAGS)}: "
                    f"replace the file, or {HOW_TO_GET_IT}"
                )


_TAGS = tuple(f"{{{subset.upper()}}}" for subset in SUBSETS)


def import_ijson() -> Any:
    try:
        import ijson
    except ImportError:
        raise ValueError(
            "dataset=gigaspeech needs ijson, which is not installed: pip install 'speech_exp[gigaspeech]'"
        ) from None
    return ijson
