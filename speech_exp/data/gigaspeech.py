"""GigaSpeech (Chen et al. 2021, https://arxiv.org/abs/2106.06909): 10,000 h of English speech in the release's own layout.

What training needs is prepared once in a folder of its own; the release is only read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from speech_exp.data.cuts import CutTable, TableWriter, import_lhotse, open_table
from speech_exp.data.gigaspeech_release import HOW_TO_GET_IT, METADATA, Release
from speech_exp.data.readers import RecordingReader, WaveformReader
from speech_exp.data.root import candidate_roots, find_root, user_cache
from speech_exp.data.selection import Limits
from speech_exp.data.shards import SHARD_UTTERANCES, open_shards, shards_are_written, write_shards
from speech_exp.progress import progress

_LAYOUT = 1  # of a prepared folder; another number is another folder
_FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class LoadedCuts:
    """The prepared parts train, validation and test.

    Args:
        fingerprint: SHA-256 over ids, times and texts of all utterances and the release's MD5 of their audio, the same
            for every storage and wherever the release lies.
        folder: holds what was prepared; features may be stored beside it.
    """

    tables: Mapping[str, CutTable]
    reader: Mapping[str, WaveformReader]
    fingerprint: str
    sample_rate_hz: int
    folder: Path
    storage: str

    @property
    def summary(self) -> str:
        return ", ".join(f"{len(table):,} segments for {name}" for name, table in self.tables.items())


class GigaSpeech:
    """One training subset with DEV for validation and TEST.

    Args:
        name: data set name, also the folder searched for below the data root.
        root: folder of the release, or None to search (`candidate_roots`).
        prepared: folder below which manifests and shards are kept, or None for the user's cache folder.
        subset: training segments; each subset holds those before it.
        storage: where waveforms are read: `audio` and `features` in the release's recordings, `shar` in shards.
        password: of the release, for `action=prepare` to download it, or None.
        host: server of the release, a name that speechcolab knows or a URL.
        workers: processes that prepare, and that read each part, on each machine; 0 reads in the process that trains.
        limits: of training utterances.
    """

    targets = "text"
    class_names = ()
    split = "official"
    test_speaker = None
    synthetic_voices = 0

    def __init__(
        self,
        name: str,
        root: str | None,
        prepared: str | None,
        subset: Literal["xs", "s", "m", "l", "xl"],
        storage: Literal["audio", "features", "shar"],
        password: str | None,
        host: str,
        sample_rate_hz: int,
        workers: int,
        limits: Limits,
    ) -> None:
        for key, value, choices in (
            ("subset", subset, ("xs", "s", "m", "l", "xl")),
            ("storage", storage, ("audio", "features", "shar")),
        ):
            if value not in choices:
                raise ValueError(f"dataset.{key}={value}: expected one of {', '.join(choices)}, change dataset.{key}")
        for key, number, least in (("sample_rate_hz", sample_rate_hz, 1), ("workers", workers, 0)):
            if number < least:
                raise ValueError(f"dataset.{key}={number}: expected at least {least}, change dataset.{key}")
        self.name, self.root, self.prepared, self.subset, self.storage = name, root, prepared, subset, storage
        self.password, self.host, self.sample_rate_hz, self.workers = password, host, sample_rate_hz, workers
        self.limits = limits
        self._parts = {"train": subset, "validation": "dev", "test": "test"}

    def prepare(self) -> Path:
        """Download what is missing, where a password is given, and build what training reads; return the release's root."""
        if self.password is not None and not self._is_complete():
            from speech_exp.data.gigaspeech_download import fetch

            fetch(self._download_root(), self.password, self.host, self.subset)
        self.load()
        return self._found_root()

    def load(self) -> LoadedCuts:
        """Open the prepared parts, built first where they are missing; jobs that start together build them once."""
        import_lhotse()
        root = self._found_root()
        folder = self._folder(root)
        if not self._is_prepared(folder):
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(str(folder) + ".lock"):
                    self._build(root, folder)
            except OSError as error:
                raise ValueError(
                    f"{folder} cannot be prepared ({error}): set dataset.prepared to a folder that can be written and "
                    f"dataset.root to one that can be read"
                ) from None
        tables = {name: open_table(folder, part) for name, part in self._parts.items()}
        readers = {name: self._reader(table, folder, self._parts[name]) for name, table in tables.items()}
        digests = [(folder / part / _FINGERPRINT).read_text(encoding="utf-8") for part in self._parts.values()]
        return LoadedCuts(
            {name: reader.table for name, reader in readers.items()},
            readers,
            hashlib.sha256("".join(digests).encode()).hexdigest(),
            self.sample_rate_hz,
            folder,
            self.storage,
        )

    def utterances_per_epoch(self, loaded: LoadedCuts) -> int:
        """Training utterances that training can learn."""
        return int((loaded.tables["train"].refusal_U == 0).sum())

    def _found_root(self) -> Path:
        return find_root(self.name, self.root, METADATA, HOW_TO_GET_IT)

    def _download_root(self) -> Path:
        """Where the release lies, or the first place to look for it."""
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
        """A release that has changed gets another folder, so that what was prepared of it before is never read."""
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
        """What is missing; another job may have built it while this one waited for the lock."""
        if missing := [part for part in self._parts.values() if not (folder / part).exists()]:
            self._write_tables(root, folder, missing)
        for part in self._parts.values() if self.storage == "shar" else ():
            if not shards_are_written(folder / f"{part}-shar"):
                reader = RecordingReader(open_table(folder, part), self.sample_rate_hz)
                write_shards(reader, folder / f"{part}-shar", self.workers, f"shards of {part}")

    def _write_tables(self, root: Path, folder: Path, missing: list[str]) -> None:
        """Tables of the parts in one pass over the release."""
        for aside in folder.glob("*.aside-*"):  # of a process that was killed
            shutil.rmtree(aside)
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
