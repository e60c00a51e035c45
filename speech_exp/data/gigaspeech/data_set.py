"""GigaSpeech (Chen et al. 2021, https://arxiv.org/abs/2106.06909): 10,000 h of English speech in the layout of its release.

Everything that training needs is prepared once, in a separate folder; the release itself is never changed.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from speech_exp.bounds import NonNegativeInt, PositiveInt, Proportion
from speech_exp.data.corpus.cuts import CutTable, TableWriter, import_lhotse, open_table
from speech_exp.data.corpus.prepared import CorpusTables, PreparedCuts, Storage
from speech_exp.data.corpus.readers import RecordingReader, WaveformReader
from speech_exp.data.corpus.selection import Limits
from speech_exp.data.corpus.shards import SHARD_UTTERANCES, open_shards, shards_are_written, write_shards
from speech_exp.data.data_set import DataSet
from speech_exp.data.gigaspeech.release import HOW_TO_GET_IT, METADATA, Release
from speech_exp.data.prepared import DataRequest, PreparedData
from speech_exp.data.root import candidate_roots, find_root, user_cache
from speech_exp.features.front_end import FrontEnd
from speech_exp.files import build_once, reason, remove_unfinished
from speech_exp.progress import progress

_LAYOUT = 2  # version of the prepared folder's layout; part of the folder's name
_FINGERPRINT = "fingerprint"


@dataclass(eq=False)
class GigaSpeech(DataSet):
    """GigaSpeech with one training subset, its DEV set for validation and its TEST set.

    Args:
        name: name of the data set and of its folder below the data root.
        root: folder of the release, or None to search for it (`candidate_roots`).
        prepared: folder for manifests and shards, or None for the user's cache folder.
        subset: training segments; each subset contains the smaller ones.
        storage: where waveforms are read from: the release's recordings (`audio`, `features`) or shards (`shar`).
        password: password of the release, with which `action=prepare` downloads it, or None.
        host: server of the release: a name that speechcolab knows, or a URL.
        workers: processes on each machine that prepare the data and that read each part; 0: the training process reads.
        limits: limits on training utterances.
        max_dropped_share: largest share of the training utterances within the limits that may have bad audio.
    """

    name: str
    root: str | None
    prepared: str | None
    subset: Literal["xs", "s", "m", "l", "xl"]
    storage: Storage
    password: str | None
    host: str
    sample_rate_hz: PositiveInt
    workers: NonNegativeInt
    limits: Limits
    max_dropped_share: Proportion

    targets = "text"
    batches_by_frames = True
    split = "official"
    test_speaker = None

    def __post_init__(self) -> None:
        self._parts = {"train": self.subset, "validation": "dev", "test": "test"}

    @cached_property
    def corpus(self) -> CorpusTables:
        """The prepared parts, built if any are missing."""
        import_lhotse()
        root = self._existing_root()
        folder = self._folder(root)
        try:
            build_once(folder, partial(self._is_prepared, folder), partial(self._build, root, folder))
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be prepared ({reason(error)}): set dataset.prepared to a folder that can be written and "
                f"dataset.root to one that can be read"
            ) from None
        readers = {name: self._reader(open_table(folder, part), folder, part) for name, part in self._parts.items()}
        digests = [(folder / part / _FINGERPRINT).read_text(encoding="utf-8") for part in self._parts.values()]
        return CorpusTables(
            {name: reader.table for name, reader in readers.items()},
            readers,
            hashlib.sha256("".join(digests).encode()).hexdigest(),
            self.sample_rate_hz,
            folder,
            self.storage,
            self.max_dropped_share,
        )

    @property
    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    @property
    def summary(self) -> str:
        return ", ".join(f"{len(table):,} segments for {name}" for name, table in self.corpus.tables.items())

    @property
    def utterances_per_epoch(self) -> int:
        """Number of training utterances that can be learned, before `limits` are applied."""
        return int((self.corpus.tables["train"].refusal_U == 0).sum())

    def fetch(self) -> Path:
        """Download what is missing if there is a password, prepare what training reads, and return the release's root."""
        if self.password is not None and not self._is_complete():
            from speech_exp.data.gigaspeech.download import fetch

            fetch(self._download_root(), self.password, self.host, self.subset)
        _ = self.corpus
        return self._existing_root()

    def check(self, front_end: FrontEnd, request: DataRequest) -> None:
        if front_end.extractor.batch_transform is None:
            raise ValueError(
                f"a corpus needs features that can be computed on the device, which those of "
                f"{type(front_end.extractor).__name__} cannot: set features=logmel80"
            )
        if self.storage == "features" and front_end.speeds != (1.0,):
            raise ValueError(
                f"augment.speeds={list(front_end.speeds)} change waveforms, but dataset.storage=features reads features: set "
                f"dataset.storage=audio or shar, or augment.speeds=null"
            )

    def prepare(self, front_end: FrontEnd, request: DataRequest) -> PreparedData:
        self.check(front_end, request)
        return PreparedCuts(self.corpus, self.limits, self.workers, front_end, request)

    def _existing_root(self) -> Path:
        return find_root(self.name, self.root, METADATA, HOW_TO_GET_IT)

    def _download_root(self) -> Path:
        """Return the folder of the release, or the first candidate if none contains it."""
        roots = candidate_roots(self.name, self.root)
        return next((root for root in roots if (root / METADATA).exists()), roots[0])

    def _is_complete(self) -> bool:
        root = self._download_root()
        if not (root / METADATA).exists():
            return False
        with progress("looking for audio (MB)", (root / METADATA).stat().st_size / 1e6) as bar:
            release = Release(root, tuple(self._parts.values()), bar.advance)
            for _ in release.audios():
                pass
        return not release.missing

    def _folder(self, root: Path) -> Path:
        """Return the folder for prepared data; its name changes with the release, so outdated data are never read."""
        stat = (root / METADATA).stat()
        key = f"{_LAYOUT}:{root}:{stat.st_size}:{stat.st_mtime_ns}:{self.sample_rate_hz}:{SHARD_UTTERANCES}"
        above = user_cache() / "prepared" if self.prepared is None else Path(self.prepared).expanduser().resolve()
        return above / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _is_prepared(self, folder: Path) -> bool:
        return all(
            (folder / part).exists() and (self.storage != "shar" or shards_are_written(folder / f"{part}-shar"))
            for part in self._parts.values()
        )

    def _build(self, root: Path, folder: Path) -> None:
        """Build whatever is missing."""
        if missing := [part for part in self._parts.values() if not (folder / part).exists()]:
            self._write_tables(root, folder, missing)
        for part in self._parts.values() if self.storage == "shar" else ():
            if not shards_are_written(folder / f"{part}-shar"):
                reader = RecordingReader(open_table(folder, part), self.sample_rate_hz)
                write_shards(reader, folder / f"{part}-shar", self.workers, f"shards of {part}")

    def _write_tables(self, root: Path, folder: Path, missing: list[str]) -> None:
        """Write the tables of the missing parts in one pass over the release."""
        for part in missing:
            remove_unfinished(folder / part)
        megabytes = (root / METADATA).stat().st_size / 1e6
        with progress("manifests (MB)", megabytes, for_all=True) as bar, ExitStack() as open_writers:
            writers = {
                part: open_writers.enter_context(TableWriter(folder, part, self.sample_rate_hz)) for part in missing
            }
            digests = {part: hashlib.sha256() for part in missing}
            release = Release(root, tuple(missing), bar.advance)
            for cut, subsets, md5 in release.cuts():
                text = cut.supervisions[0].text
                for part in writers.keys() & subsets:
                    writers[part].write(cut)
                    digests[part].update(f"{cut.id}\t{cut.start}\t{cut.duration}\t{text}\t{md5}\n".encode())
            release.refuse_missing()
            for part, writer in writers.items():
                if not len(writer):
                    raise ValueError(
                        f"{root / METADATA} has no segment of the subset {part}: change dataset.subset or dataset.root"
                    )
                (writer.aside / _FINGERPRINT).write_text(digests[part].hexdigest(), encoding="utf-8")

    def _reader(self, table: CutTable, folder: Path, part: str) -> WaveformReader:
        if self.storage == "shar":
            return open_shards(table, folder / f"{part}-shar", self.sample_rate_hz)
        return RecordingReader(table, self.sample_rate_hz)
