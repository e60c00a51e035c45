"""A table's audio as Shar shards of lhotse: FLAC at the data set's rate, a tar file for every thousand utterances.

Shape letters: U utterances.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speech_exp.data.audio import AudioError
from speech_exp.data.cuts import CutTable
from speech_exp.data.readers import RecordingReader, ShardReader, shard_name
from speech_exp.parallel import in_processes

SHARD_UTTERANCES = 1000
SHARDS = "shards"  # holds nothing else, so that CutSet.from_shar(in_dir=...) reads it
_MEMBERS = "members"


@dataclass(frozen=True)
class _ShardJob:
    reader: RecordingReader
    folder: Path
    number: int
    utterances: range

    @property
    def members(self) -> Path:
        """Where the audio of each utterance lies, and what could not be read; written last, so it says "finished"."""
        return self.folder / _MEMBERS / f"{self.number:06d}.json"


def write_shards(
    reader: RecordingReader, folder: Path, workers: int, title: str, shard_utterances: int = SHARD_UTTERANCES
) -> None:
    """Make the shards of a table that `folder` does not hold yet, then columns of where each utterance lies.

    A recording that cannot be read leaves its utterances without audio, named in `folder/bad.jsonl`.
    """
    for name in (SHARDS, _MEMBERS):
        (folder / name).mkdir(parents=True, exist_ok=True)
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
    (folder / "bad.jsonl").write_text("".join(bad), encoding="utf-8")
    shard_U = np.repeat(np.arange(len(jobs), dtype=np.int32), [len(job.utterances) for job in jobs])
    np.save(folder / "shard_U.npy", shard_U)
    np.save(folder / "sizes_U.npy", np.concatenate([np.array(shard["sizes"], dtype=np.int64) for shard in members]))
    starts_U = np.concatenate([np.array(shard["starts"], dtype=np.int64) for shard in members])
    np.save(folder / "aside.npy", starts_U)
    os.replace(folder / "aside.npy", folder / "starts_U.npy")


def shards_are_written(folder: Path) -> bool:
    return (folder / "starts_U.npy").exists()  # written last


def open_shards(table: CutTable, folder: Path, sample_rate_hz: int) -> ShardReader:
    """Reader of the shards that `write_shards` left; the `shard_U` of its table tells the shard of each utterance."""
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("shard_U", "starts_U", "sizes_U")}
    table = replace(table, shard_U=columns["shard_U"])
    return ShardReader(table, sample_rate_hz, folder / SHARDS, columns["starts_U"], columns["sizes_U"])


def _write_shard(job: _ShardJob) -> None:
    from lhotse.shar.writers import JsonlShardWriter, TarWriter

    aside = Path(tempfile.mkdtemp(dir=job.folder, prefix="aside-"))
    try:
        names = [shard_name(job.number), f"cuts.{job.number:06d}.jsonl.gz"]
        with TarWriter(aside / names[0], None) as tar, JsonlShardWriter(str(aside / names[1]), None) as cuts:
            bad = [reason for number in job.utterances if (reason := _write_utterance(job.reader, number, tar, cuts))]
        with tarfile.open(aside / names[0]) as archive:
            audio = archive.getmembers()[::2]  # behind each stands its manifest
        facts = {"starts": [each.offset_data for each in audio], "sizes": [each.size for each in audio], "bad": bad}
        for name in names:
            os.replace(aside / name, job.folder / SHARDS / name)
        (aside / job.members.name).write_text(json.dumps(facts), encoding="utf-8")
        os.replace(aside / job.members.name, job.members)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_utterance(reader: RecordingReader, number: int, tar: Any, cuts: Any) -> dict[str, str] | None:
    """Append one utterance to lhotse's writers of the audio and of the cuts; id and reason where it has no audio."""
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
    # Not by lhotse's AudioTarWriter, which encodes with whatever backend it finds: FLAC of 16 bit on every machine.
    audio = io.BytesIO()
    soundfile.write(audio, waveform_N, reader.sample_rate_hz, format="FLAC", subtype="PCM_16")
    duration_s = len(waveform_N) / reader.sample_rate_hz
    source = AudioSource("shar", [0], "")  # lhotse's placeholder for data that lies in the tar file
    recording = Recording(cut.id, [source], reader.sample_rate_hz, len(waveform_N), duration_s)
    tar.write(f"{cut.id}.flac", audio)
    tar.write(f"{cut.id}.json", io.BytesIO(json.dumps(recording.to_dict()).encode()), count=False)
    cuts.write(fastcopy(cut, start=0.0, recording=recording))
    return None
