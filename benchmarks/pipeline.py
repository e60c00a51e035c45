"""Measure what it takes to read a corpus: audio seconds per second per core, and the batch plan of a million utterances.

    python benchmarks/pipeline.py [--rounds 5] [--gpu-audio-s-per-s 13440] [--cuts 1000000]

First, the training part of gigaspeech_mini (subset xl, 32 minutes of speech in Opus) is read in training batches, without a
model, in one process with one thread, from each kind of storage. Its files are in the system's file cache: this measures the
work of a core, not the speed of a disk. Features are timed separately, because they are the work of the device, or were
stored before. Rounds alternate and the fastest counts, because other work on the machine can only add time. The table also
shows the cores that keep one GPU busy at the given audio seconds per second, and the storage per second of audio.

Then, for a manifest of made-up cuts of 1 to 20 s: the time to write, open and plan it, and the resident memory of a new
process that walks through one epoch of the plan.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import nn
from training import experiment

from speech_exp.data.batches import BatchSize
from speech_exp.data.corpus.batches import CutUtterances
from speech_exp.data.corpus.bucketing import BucketPlan
from speech_exp.data.corpus.cuts import TableWriter, open_table
from speech_exp.data.corpus.readers import RecordingReader
from speech_exp.features.logmel import LogMelTransform
from speech_exp.features.normalization import Normalizer

STORAGES = ("audio", "features", "shar")
BATCH = 48
RATE_HZ, HOP = 16000, 160
# A GPU that trains 35 steps per second with 96 utterances of 4 s each.
GPU_AUDIO_S_PER_S = 35 * 96 * 4
RECORDING_CUTS, SHARD_CUTS, WINDOW_SHARDS = 100, 1000, 10
BATCH_S = 1200  # seconds in a batch that is sized by frames, including padding
MARKS = (25, 50, 75, 100)  # percent of an epoch


class Kept(nn.Module):
    """Replaces the feature transform: keeps the waveforms of each batch and returns one empty frame per utterance."""

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, waveform_BN: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append((waveform_BN, lengths_B))
        return torch.zeros(len(lengths_B), 1, 1), torch.ones_like(lengths_B)


class Unnormalized(Normalizer):
    """Skips normalisation, because that too is work of the device."""

    def batch(self, features_BTF: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return features_BTF


def training_part(folder: Path, storage: str) -> CutUtterances:
    overrides = ["dataset=gigaspeech_mini", "dataset.subset=xl", f"dataset.storage={storage}", "dataset.workers=0"]
    overrides += [f"dataset.prepared={folder}", "augment=none", "trainer.device=cpu"]
    return experiment(folder, overrides).data.parts["train"]


def read_s(part: CutUtterances, seed: int) -> tuple[float, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the seconds to read, decode and pad an epoch, and the waveforms of its batches."""
    kept = None if part.transform is None else Kept(part.transform.hop)
    part = replace(part, transform=kept, normalizer=Unnormalized("utterance"))
    utterances, started = 0, time.perf_counter()
    for batch in part.shuffled(BatchSize(BATCH), torch.Generator().manual_seed(seed)):
        utterances += len(batch.ids)
    spent_s = time.perf_counter() - started
    assert utterances == len(part), "each utterance once an epoch"
    return spent_s, kept.batches if kept else []


def features_s(
    transform: LogMelTransform, normalizer: Normalizer, waveforms: list[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    started = time.perf_counter()
    for waveform_BN, lengths_B in waveforms:
        normalizer.batch(*transform(waveform_BN, lengths_B))
    return time.perf_counter() - started


def stored_bytes_per_s(folder: Path, audio: CutUtterances, audio_s: float) -> dict[str, float]:
    """Return the stored bytes per second of utterances; for recordings, per second including the pauses."""
    cuts = map(audio.table.cut, range(len(audio.table)))
    recordings = {cut.recording.id: cut.recording for cut in cuts}.values()
    files = {"features": "*/xl/features-*/0*.npy", "shar": "*/xl-shar/shards/*"}
    stored = {name: sum(path.stat().st_size for path in folder.glob(which)) for name, which in files.items()}
    opus = sum(Path(one.sources[0].source).stat().st_size for one in recordings)
    return {
        "audio": opus / sum(one.duration for one in recordings),
        **{name: size / audio_s for name, size in stored.items()},
    }


def reading(rounds: int, gpu_audio_s_per_s: float) -> None:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = {storage: training_part(Path(folder), storage) for storage in STORAGES}
        for number in range(rounds):
            for storage, part in parts.items():
                spent_s, waveforms = read_s(part, number)
                found.setdefault(storage, []).append(spent_s)
                if storage == "audio":
                    assert part.transform is not None
                    spent_s = features_s(part.transform, part.normalizer, waveforms)
                    found.setdefault("features of waveforms", []).append(spent_s)
        audio = parts["audio"]
        audio_s = float(audio.table.samples_U[audio.chosen_U].sum()) / RATE_HZ
        stored = stored_bytes_per_s(Path(folder), audio, audio_s)
    print(f"{len(audio)} utterances, {audio_s / 60:.1f} minutes, batches of {BATCH}, {rounds} rounds, one core\n")
    cores = f"cores for {gpu_audio_s_per_s:,.0f} audio seconds/s"
    print(f"| work | audio seconds/s a core | {cores} | kB an audio second |\n| --- | ---: | ---: | ---: |")
    for name, seconds in found.items():
        speed = audio_s / min(seconds)
        title = f"read storage={name}" if name in STORAGES else f"{name} (on this CPU)"
        size = f"{stored[name] / 1000:.1f}" if name in STORAGES else ""
        print(f"| {title} | {speed:,.0f} | {math.ceil(gpu_audio_s_per_s / speed)} | {size} |")


def write_cuts(folder: Path, cuts: int) -> None:
    """Write a table of cuts of 1 to 20 s, a hundred in each recording."""
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    seconds_U = np.random.default_rng(0).uniform(1, 20, cuts).round(2).tolist()
    text = "AND SO IT WENT ON <COMMA> FROM ONE DAY TO THE NEXT <PERIOD>"
    with TableWriter(folder, "xl", RATE_HZ) as writer:
        for number, seconds in enumerate(seconds_U):
            audio, place = divmod(number, RECORDING_CUTS)
            if not place:
                source = AudioSource("file", [0], f"/corpus/audio/podcast/P{audio // 1000:04d}/POD{audio:010d}.opus")
                duration_s = 20.0 * RECORDING_CUTS
                recording = Recording(f"POD{audio:010d}", [source], RATE_HZ, round(duration_s * RATE_HZ), duration_s)
            name = f"{recording.id}_S{place:07d}"
            supervision = SupervisionSegment(name, recording.id, 0.0, seconds, text=text)
            writer.write(MonoCut(name, 20.0 * place, seconds, 0, [supervision], recording=recording))


def memory_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def opened(folder: Path) -> float:
    """Return the seconds until the first cut is available."""
    started = time.perf_counter()
    table = open_table(folder, "xl")
    RecordingReader(table, RATE_HZ).table.cut(len(table) // 2)
    return time.perf_counter() - started


def planned(folder: Path, by_frames: bool, windows: bool) -> dict[str, str]:
    """Measure the time and memory of a plan and of a walk through one epoch of it."""
    table = open_table(folder, "xl")
    before_mb = memory_mb()
    started = time.perf_counter()
    frames_U = 1 + table.samples_U // HOP
    shard_U = np.arange(len(table)) // SHARD_CUTS if windows else table.shard_U
    size = BatchSize(BATCH, BATCH_S * RATE_HZ // HOP if by_frames else None)
    plan = BucketPlan(frames_U, size, shard_U // WINDOW_SHARDS)
    plan_s = time.perf_counter() - started
    started = time.perf_counter()
    every, met, memories_mb = max(1, plan.batches // 100), 0, []
    for number, batch in enumerate(plan.epoch(0), start=1):
        met += len(batch.positions_N)
        if number % every == 0 or number == plan.batches:
            memories_mb.append(memory_mb())
    epoch_s = time.perf_counter() - started
    assert met == len(table), "each utterance once an epoch"
    started = time.perf_counter()
    next(plan.epoch(0, plan.batches // 2))
    go_on_s = time.perf_counter() - started
    settled_mb = memories_mb[len(memories_mb) // 20 :]
    return {
        "batches of an epoch": f"{plan.batches:,}",
        "plan (s)": f"{plan_s:.2f}",
        "walk through an epoch (s)": f"{epoch_s:.2f}",
        "go on from its middle (s)": f"{go_on_s:.2f}",
        "memory before the plan (MB)": f"{before_mb:.0f}",
        **{f"memory at {mark} % (MB)": f"{memories_mb[len(memories_mb) * mark // 100 - 1]:.0f}" for mark in MARKS},
        "largest growth after 5 % (MB)": f"{max(settled_mb) - settled_mb[0]:+.1f}",
    }


def large_plan(cuts: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        write_cuts(folder, cuts)
        written_s = time.perf_counter() - started
        size_mb = sum(path.stat().st_size for path in (folder / "xl").iterdir()) / 1e6
        print(f"\n{cuts:,} cuts: written in {written_s:.0f} s, {size_mb:,.0f} MB\n")
        ways = {"by utterances": (False, False), "by frames": (True, False)}
        ways |= {"by utterances, windows": (False, True), "by frames, windows": (True, True)}
        columns = []
        for way in ways.values():
            # Use a separate process for each: earlier plans must not hide the memory of this one.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                open_s = process.submit(opened, folder).result()
                columns.append({"open (s)": f"{open_s:.2f}"} | process.submit(planned, folder, *way).result())
    print("| batches | " + " | ".join(ways) + " |\n| --- |" + " ---: |" * len(ways))
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpu-audio-s-per-s", type=float, default=GPU_AUDIO_S_PER_S)
    parser.add_argument("--cuts", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reading(arguments.rounds, arguments.gpu_audio_s_per_s)
    large_plan(arguments.cuts)


if __name__ == "__main__":
    main()
