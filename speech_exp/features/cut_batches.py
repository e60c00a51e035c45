"""Batches of utterances that stay on disk: worker processes read waveforms or features, the device does the rest.

Shape letters: B batch, N samples, T frames, F features, U utterances, P positions of utterances.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speech_exp.data.audio import AudioError
from speech_exp.data.batches import ALL, Batch, BatchSize, Share
from speech_exp.data.bucketing import BucketPlan, PlannedBatch
from speech_exp.data.cuts import CutTable
from speech_exp.data.recordings import Dropped
from speech_exp.features.logmel import LogMelTransform
from speech_exp.features.normalization import Normalizer
from speech_exp.features.speed import change_speed

Reader = Callable[[int], np.ndarray]  # number of an utterance to its waveform (N,) or its features (T, F)

_PREFETCH = 4  # batches that each worker reads ahead
_SHARDS_A_WINDOW = 10  # read in random order together
_SAMPLE = 512  # utterances for statistics
_SAMPLE_SEED = 0


class _Read(NamedTuple):
    """What a worker sends: utterances padded with zeros, and those that could not be read. A tuple, so that it is pinned."""

    signals: torch.Tensor  # (B, N) waveforms, or (B, T, F) features
    lengths_B: torch.Tensor
    targets: torch.Tensor
    target_lengths_B: torch.Tensor
    ids: list[str]
    bad: list[Dropped]


@dataclass(frozen=True)
class _Reading(Dataset[_Read]):
    """Reads the planned batch that is given for an index."""

    table: CutTable
    read: Reader
    encode: Callable[[str], list[int]]
    hop: int | None  # samples a frame; None where features are read

    def __getitem__(self, batch: PlannedBatch) -> _Read:
        signals, codes, ids, bad = [], [], [], []
        for number in batch.positions_N.tolist():
            identifier = self.table.id(number)
            try:
                signal_ = self.read(number)
            except AudioError as error:
                bad.append(Dropped(identifier, str(error)))
                continue
            signals.append(signal_)
            codes.append(self.encode(self.table.text(number)))
            ids.append(identifier)
        longest = batch.frames if self.hop is None else batch.frames * self.hop - 1
        padded = np.zeros((len(signals), longest, *(signals[0].shape[1:] if signals else ())), dtype=np.float32)
        for row, signal_ in enumerate(signals):
            padded[row, : len(signal_)] = signal_
        return _Read(
            torch.from_numpy(padded),
            torch.tensor([len(signal_) for signal_ in signals], dtype=torch.int64),
            torch.tensor([number for code in codes for number in code], dtype=torch.int64),
            torch.tensor([len(code) for code in codes], dtype=torch.int64),
            ids,
            bad,
        )


@dataclass(frozen=True, eq=False)
class CutUtterances:
    """One part of a corpus, with the interface of `InMemoryUtterances`.

    Args:
        part: its name.
        chosen_U: numbers of its utterances in the table, and frames_U their frames at speed 1.
        transform: makes features of waveforms on the device; None where `read` gives features.
        speeds: of which each training batch draws one.
        workers: processes that read; 0 reads in this process.
        left_out: numbers of the table that are in no batch, by their reason.
        bad: training utterances that could not be read, named when they are met.
    """

    part: str
    table: CutTable
    chosen_U: np.ndarray
    frames_U: np.ndarray
    read: Reader
    transform: LogMelTransform | None
    normalizer: Normalizer
    encode: Callable[[str], list[int]]
    speeds: list[float]
    workers: int
    device: torch.device
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    bad: list[Dropped] = field(default_factory=list)
    _plans: dict[BatchSize, BucketPlan] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chosen_U)

    @property
    def ids(self) -> list[str]:
        return [self.table.id(int(number)) for number in self.chosen_U]

    @property
    def lengths_WU(self) -> torch.Tensor:
        """Frames at speed 1, the only variant."""
        return torch.from_numpy(self.frames_U).unsqueeze(0)

    def to(self, device: torch.device) -> CutUtterances:
        transform = None if self.transform is None else copy.deepcopy(self.transform).to(device)
        return replace(self, device=device, transform=transform, normalizer=self.normalizer.to(device))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        return self._batches(self._cut(np.arange(len(self)), batch_size))

    def by_length(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        return self._batches(self._cut(np.argsort(self.frames_U, kind="stable"), batch_size, share))

    def sample(self, batch_size: int) -> Iterator[Batch]:
        return self._batches(self._cut(self.sampled(), batch_size))

    def batches(self, size: BatchSize) -> int:
        return self.plan(size).batches

    def shuffled(
        self, size: BatchSize, generator: torch.Generator, start: int = 0, share: Share = ALL
    ) -> Iterator[Batch]:
        """Each utterance once, in buckets of about one length and all of a batch at one speed."""
        seed = int(torch.randint(2**62, (), generator=generator))
        plan = self.plan(size)
        speeds = np.random.default_rng((seed, 1)).choice(self.speeds, plan.batches)[start:].tolist()
        planned = (self._numbered(share.of(batch.positions_N), batch.frames) for batch in plan.epoch(seed, start))
        for read, speed in zip(self._load(planned), speeds, strict=True):
            self._note(read)
            yield self._batch(read, speed) if read.ids else Batch.empty(self.device)

    def plan(self, size: BatchSize) -> BucketPlan:
        """Batches of training."""
        if size not in self._plans:
            window_U = self.table.shard_U[self.chosen_U] // _SHARDS_A_WINDOW
            self._plans[size] = BucketPlan(self.frames_U, size, window_U)
        return self._plans[size]

    def unnormalized(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Features (B, T, F) and frames (B,) of the utterances of `sample`."""
        for read in self._load(self._cut(self.sampled(), batch_size)):
            self._note(read)
            if read.ids:
                yield self._features(read, 1.0)

    def sampled(self) -> np.ndarray:
        """Positions of the utterances of `sample`, the same ones each time."""
        order_U = np.random.default_rng(_SAMPLE_SEED).permutation(len(self))[:_SAMPLE]
        return order_U[np.argsort(self.frames_U[order_U], kind="stable")]

    def _cut(self, order_P: np.ndarray, batch_size: int, share: Share = ALL) -> Iterator[PlannedBatch]:
        for start in share.of(list(range(0, len(order_P), batch_size))):
            positions_P = order_P[start : start + batch_size]
            yield self._numbered(positions_P, int(self.frames_U[positions_P].max()))

    def _numbered(self, positions_P: np.ndarray, frames: int) -> PlannedBatch:
        """With the numbers of the table in place of positions in this part."""
        return PlannedBatch(self.chosen_U[positions_P], frames)

    def _batches(self, planned: Iterable[PlannedBatch]) -> Iterator[Batch]:
        for read in self._load(planned):
            self._note(read)
            if read.ids:
                yield self._batch(read, 1.0)

    def _note(self, read: _Read) -> None:
        """Training goes on without bad audio; a metric over fewer utterances would not be the one that was asked for."""
        if read.bad and self.part != "train":
            raise ValueError(f"the {self.part} utterance {read.bad[0].id} cannot be used: {read.bad[0].reason}")
        self.bad.extend(item for item in read.bad if item not in self.bad)

    def _load(self, planned: Iterable[PlannedBatch]) -> Iterator[_Read]:
        reading = _Reading(self.table, self.read, self.encode, self.transform.hop if self.transform else None)
        return iter(
            DataLoader(
                reading,
                batch_size=None,  # an index is a whole batch
                sampler=planned,
                num_workers=self.workers,
                prefetch_factor=_PREFETCH if self.workers else None,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_leave_interrupts_to_the_parent,
                generator=torch.Generator(),  # otherwise each pass would draw from the generator of dropout
            )
        )

    def _batch(self, read: _Read, speed: float) -> Batch:
        features_BTF, lengths_B = self._features(read, speed)
        features_BTF = self.normalizer.batch(features_BTF, lengths_B)
        targets, target_lengths_B = (ids.to(self.device) for ids in (read.targets, read.target_lengths_B))
        return Batch(features_BTF, lengths_B, targets, target_lengths_B, read.ids)

    def _features(self, read: _Read, speed: float) -> tuple[torch.Tensor, torch.Tensor]:
        signals = read.signals.to(self.device, non_blocking=True)
        lengths_B = read.lengths_B.to(self.device, non_blocking=True)
        if self.transform is None:
            return signals, lengths_B
        return self.transform(*change_speed(signals, lengths_B, speed))


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the parent ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
