"""Writes and opens lhotse Shar shards of a table's audio: FLAC at the data set's rate, a tar file per 1000 utterances.

Shape letters: U utterances.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speech_exp.data.audio import AudioError
from speech_exp.data.corpus.cuts import CutTable
from speech_exp.data.corpus.readers import RecordingReader, ShardReader, shard_name
from speech_exp.files import (
    atomic_folder,
    folder_mismatch,
    remove_unfinished,
    replace_synced,
    write_array,
    write_json,
    write_text,
)
from speech_exp.parallel import in_processes

SHARD_UTTERANCES = 1000
SHARDS = "shards"  # contains nothing else, so CutSet.from_shar(in_dir=...) can read it
_MEMBERS = "members"
_COLUMNS = "columns"


@dataclass(frozen=True)
class _ShardJob:
    reader: RecordingReader
    folder: Path
    number: int
    utterances: range

    @property
    def members(self) -> Path:
        """File with the place of each utterance's audio and a list of bad ones; written last, so it marks a finished shard."""
        return self.folder / _MEMBERS / f"{self.number:06d}.json"


def write_shards(
    reader: RecordingReader, folder: Path, workers: int, title: str, shard_utterances: int = SHARD_UTTERANCES
) -> None:
    """Write the shards of a table that are missing in `folder`, then the columns that locate each utterance.

    Utterances of a recording that cannot be read get no audio and are listed in `folder/bad.jsonl`.
    """
    for name in (SHARDS, _MEMBERS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder / _COLUMNS)
    for aside in folder.glob("aside-*"):
        shutil.rmtree(aside)
    total = len(reader.table)
    firsts = range(0, total, shard_utterances)
    jobs = [
        _ShardJob(reader, folder, number, range(first, min(first + shard_utterances, total)))
        for number, first in enumerate(firsts)
    ]
    for _ in in_processes(_write_shard, [job for job in jobs if not job.members.exists()], workers, title):
        pass
    members = [json.loads(job.members.read_text(encoding="utf-8")) for job in jobs]
    bad = [json.dumps(each) + "\n" for shard in members for each in shard["bad"]]
    write_text(folder / "bad.jsonl", "".join(bad))
    if bad:
        print(f"{len(bad):,} of {total:,} utterances have no audio, named in {folder / 'bad.jsonl'}", file=sys.stderr)
    shard_U = np.repeat(np.arange(len(jobs), dtype=np.int32), [len(job.utterances) for job in jobs])
    with atomic_folder(folder / _COLUMNS) as columns:
        arrays = {"shard_U": shard_U}
        for name, dtype in (("starts_U", np.int64), ("sizes_U", np.int64), ("checks_U", np.uint32)):
            arrays[name] = np.concatenate([np.array(shard[name], dtype=dtype) for shard in members])
        for name, array_U in arrays.items():
            with (columns / f"{name}.npy").open("wb") as file:
                write_array(file, array_U)


def shards_are_written(folder: Path) -> bool:
    return (folder / _COLUMNS).exists()  # written last


def open_shards(table: CutTable, folder: Path, sample_rate_hz: int) -> ShardReader:
    """Open shards written by `write_shards`; the reader's table has the shard of each utterance in `shard_U`."""
    if fault := folder_mismatch(folder / _COLUMNS):
        raise ValueError(f"{folder / _COLUMNS} does not match what was prepared ({fault}): remove it and run again")
    names = ("shard_U", "starts_U", "sizes_U", "checks_U")
    shard_U, *columns = (np.load(folder / _COLUMNS / f"{name}.npy", mmap_mode="r") for name in names)
    return ShardReader(replace(table, shard_U=shard_U), sample_rate_hz, folder / SHARDS, *columns)


def _write_shard(job: _ShardJob) -> None:
    from lhotse.shar.writers import JsonlShardWriter, TarWriter

    aside = Path(tempfile.mkdtemp(dir=job.folder, prefix="aside-"))
    try:
        names = [shard_name(job.number), f"cuts.{job.number:06d}.jsonl.gz"]
        with TarWriter(aside / names[0], None) as tar, JsonlShardWriter(str(aside / names[1]), None) as cuts:
            bad = [reason for number in job.utterances if (reason := _write_utterance(job.reader, number, tar, cuts))]
        with tarfile.open(aside / names[0]) as archive:
            audio = archive.getmembers()[::2]  # each is followed by its manifest
            checks = [zlib.crc32(archive.extractfile(each).read()) for each in audio]  # type: ignore[union-attr]
        facts = {
            "starts_U": [each.offset_data for each in audio],
            "sizes_U": [each.size for each in audio],
            "checks_U": checks,
            "bad": bad,
        }
        for name in names:
            replace_synced(aside / name, job.folder / SHARDS / name)
        write_json(job.members, facts)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_utterance(reader: RecordingReader, number: int, tar: Any, cuts: Any) -> dict[str, str] | None:
    """Append one utterance to lhotse's audio and cut writers; return its id and the reason if it has no usable audio."""
    from lhotse.audio import AudioSource, Recording
    from lhotse.utils import fastcopy

    cut = reader.table.cut(number)
    try:
        waveform_N = reader(number)
    except AudioError as error:
        tar.write(f"{cut.id}.nodata", io.BytesIO())
        tar.write(f"{cut.id}.nometa", io.BytesIO(), count=False)
        cuts.write(fastcopy(cut, start=0.0, recording=None))
        return {"id": cut.id, "reason": str(error)}
    # lhotse's AudioTarWriter would encode with any backend that it finds; this writes 16-bit FLAC on every machine.
    audio = io.BytesIO()
    soundfile.write(audio, waveform_N, reader.sample_rate_hz, format="FLAC", subtype="PCM_16")
    duration_s = len(waveform_N) / reader.sample_rate_hz
    source = AudioSource("shar", [0], "")  # lhotse's placeholder for data in the tar file
    recording = Recording(cut.id, [source], reader.sample_rate_hz, len(waveform_N), duration_s)
    tar.write(f"{cut.id}.flac", audio)
    tar.write(f"{cut.id}.json", io.BytesIO(json.dumps(recording.to_dict()).encode()), count=False)
    cuts.write(fastcopy(cut, start=0.0, recording=recording))
    return None
