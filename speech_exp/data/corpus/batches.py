"""Batches of utterances stored on disk: worker processes read waveforms or features, the device does the rest.

Shape letters: B batch, N samples, T frames, F features, U utterances, P positions of utterances.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from speech_exp.data.audio import AudioError
from speech_exp.data.batches import ALL, BatchSize, Share, first_with_audio
from speech_exp.data.corpus.bucketing import BucketPlan, PlannedBatch
from speech_exp.data.corpus.cuts import CutTable
from speech_exp.data.recordings import Dropped, refuse_too_many
from speech_exp.data.storage import StorageError
from speech_exp.features.batch import Batch
from speech_exp.features.extractor import BatchTransform
from speech_exp.features.normalization import Normalizer
from speech_exp.features.speed import change_speed

Reader = Callable[[int], np.ndarray]  # maps the number of an utterance to its waveform (N,) or features (T, F)

_PREFETCH = 4  # batches that each worker reads ahead
_SHARDS_A_WINDOW = 10  # shards read together, in random order
_SAMPLE = 512  # utterances from which statistics are computed
_SAMPLE_SEED = 0
_STATISTICS_BATCH = 32


class _Read(NamedTuple):
    """A worker's result: utterances padded with zeros, and those that could not be read.

    It is a tuple because the DataLoader pins the memory of tuples.
    """

    signals: torch.Tensor  # (B, N) waveforms, or (B, T, F) features
    lengths_B: torch.Tensor
    targets: torch.Tensor
    target_lengths_B: torch.Tensor
    ids: list[str]
    bad: list[Dropped]
    failure: str | None = None  # storage error as text; an exception in a worker would print its whole stack trace


@dataclass(frozen=True)
class _Reading(Dataset[_Read]):
    """A dataset that reads a whole batch; its index is a `PlannedBatch`."""

    table: CutTable
    read: Reader
    encode: Callable[[str], list[int]]
    hop: int | None  # samples per frame; None if features are read

    def __getitem__(self, batch: PlannedBatch) -> _Read:
        try:
            return self._read_batch(batch)
        except StorageError as error:
            nothing = torch.zeros(0, dtype=torch.int64)
            return _Read(torch.zeros(0), nothing, nothing, nothing, [], [], str(error))

    def _read_batch(self, batch: PlannedBatch) -> _Read:
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
    """One part of a corpus, with the interface `Utterances`.

    Args:
        part: name of the part.
        chosen_U: numbers of its utterances in the table.
        frames_U: their frames at speed 1.
        transform: computes features from waveforms on the device; None if `read` returns features.
        speeds: each training batch draws one of them.
        workers: processes that read; 0: this process reads.
        left_out: {reason: numbers in the table} of utterances that are in no batch.
        bad: training utterances that could not be read, added when they are encountered.
        max_dropped_share: largest share of the part that may be bad audio.
    """

    part: str
    table: CutTable
    chosen_U: np.ndarray
    frames_U: np.ndarray
    read: Reader
    transform: BatchTransform | None
    normalizer: Normalizer
    encode: Callable[[str], list[int]]
    speeds: Sequence[float]
    workers: int
    device: torch.device
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    bad: list[Dropped] = field(default_factory=list)
    max_dropped_share: float = 0.0
    _plans: dict[BatchSize, BucketPlan] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chosen_U)

    @property
    def ids(self) -> list[str]:
        return [self.table.id(int(number)) for number in self.chosen_U]

    @property
    def lengths_WU(self) -> torch.Tensor:
        """Number of frames at speed 1, with one variant only."""
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
        """Yield batches of utterances of similar length, all at one random speed; each utterance appears once."""
        seed = int(torch.randint(2**62, (), generator=generator))
        plan = self.plan(size)
        speeds = np.random.default_rng((seed, 1)).choice(self.speeds, plan.batches)[start:].tolist()
        planned = (self._numbered(share.of(batch.positions_N), batch.frames) for batch in plan.epoch(seed, start))
        for read, speed in zip(self._load(planned), speeds, strict=True):
            self._note(read)
            yield self._batch(read, speed) if read.ids else Batch.empty(self.device)

    def plan(self, size: BatchSize) -> BucketPlan:
        """Return the plan of the training batches."""
        if size not in self._plans:
            window_U = self.table.shard_U[self.chosen_U] // _SHARDS_A_WINDOW
            self._plans[size] = BucketPlan(self.frames_U, size, window_U)
        return self._plans[size]

    def batch_shapes(self, size: BatchSize, generator: torch.Generator) -> np.ndarray:
        planned = self.plan(size).epoch(int(torch.randint(2**62, (), generator=generator)))
        rows = [(len(batch.positions_N), batch.frames, self.frames_U[batch.positions_N].sum()) for batch in planned]
        return np.array(rows, dtype=np.int64)

    def first_batch(self, size: BatchSize, generator: torch.Generator) -> Batch:
        # This process reads, without a limit on bad audio: the batch helps to find what is bad.
        here = replace(self, workers=0, max_dropped_share=1.0)
        return first_with_audio(here.shuffled(size, generator))

    def unnormalized(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the features (B, T, F) before normalisation and the frames (B,) of the utterances of `sample`."""
        for read in self._load(self._cut(self.sampled(), _STATISTICS_BATCH)):
            self._note(read)
            if read.ids:
                yield self._features(read, 1.0)

    def sampled(self) -> np.ndarray:
        """Return the positions of the utterances of `sample`, always the same ones."""
        order_U = np.random.default_rng(_SAMPLE_SEED).permutation(len(self))[:_SAMPLE]
        return order_U[np.argsort(self.frames_U[order_U], kind="stable")]

    def _cut(self, order_P: np.ndarray, batch_size: int, share: Share = ALL) -> Iterator[PlannedBatch]:
        for start in share.of(list(range(0, len(order_P), batch_size))):
            positions_P = order_P[start : start + batch_size]
            yield self._numbered(positions_P, int(self.frames_U[positions_P].max()))

    def _numbered(self, positions_P: np.ndarray, frames: int) -> PlannedBatch:
        """Return a planned batch with numbers of the table instead of positions in this part."""
        return PlannedBatch(self.chosen_U[positions_P], frames)

    def _batches(self, planned: Iterable[PlannedBatch]) -> Iterator[Batch]:
        for read in self._load(planned):
            self._note(read)
            if read.ids:
                yield self._batch(read, 1.0)

    def _note(self, read: _Read) -> None:
        """Record bad audio and raise errors: training tolerates a little of it, validation and test none.

        A metric over fewer utterances would not be comparable.
        """
        if read.failure:
            raise StorageError(read.failure)
        if read.bad and self.part != "train":
            raise ValueError(f"the {self.part} utterance {read.bad[0].id} cannot be used: {read.bad[0].reason}")
        if met := [item for item in read.bad if item not in self.bad]:
            self.bad.extend(met)
            self.refuse_too_many(self.bad)

    def refuse_too_many(self, dropped: Sequence[Dropped]) -> None:
        """Raise a ValueError if more than `max_dropped_share` of the part is bad audio; ignores utterances in `left_out`."""
        bad = [item for item in dropped if item.reason not in self.left_out]
        refuse_too_many(bad, len(self), self.max_dropped_share, f"{self.part} utterances")

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
                generator=torch.Generator(),  # otherwise each pass would draw from the global generator, as dropout does
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
    """Ignore Ctrl-C in a worker: it reaches all processes of a terminal, and the parent stops its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
