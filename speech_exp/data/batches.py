"""Batches of a small data set that lies on the device as one tensor; no worker process, no Python per item.

Shape letters: B batch, T frames, F features, N all frames of all recordings one after the other, U utterances,
W waveform variants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

_Several = TypeVar("_Several", torch.Tensor, np.ndarray, list[Any])

# A pool of this many batches is sorted by length before it is cut into batches: long enough for batches with little
# padding, short enough that a batch still holds a mixture of classes.
_POOL_BATCHES = 8


@dataclass(frozen=True)
class Batch:
    features_BTF: torch.Tensor  # float32, zero behind each utterance's length
    lengths_B: torch.Tensor  # int64, frames
    targets: torch.Tensor  # class ids B, or concatenated character ids
    target_lengths_B: torch.Tensor | None
    ids: list[str]

    @classmethod
    def empty(cls, device: torch.device) -> Batch:
        """The share of a rank in a batch of fewer utterances than ranks, or of bad audio alone."""
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(torch.zeros(0, 0, 0, device=device), nothing, nothing, nothing, [])

    def to(self, device: torch.device) -> Batch:
        lengths = None if self.target_lengths_B is None else self.target_lengths_B.to(device)
        return Batch(
            self.features_BTF.to(device), self.lengths_B.to(device), self.targets.to(device), lengths, self.ids
        )

    def split(self, parts: int) -> list[Batch]:
        """At most `parts` batches of about as many utterances each, padded no further than they need."""
        if parts == 1:
            return [self]
        rows = [rows_B for rows_B in torch.arange(len(self.ids)).tensor_split(parts) if len(rows_B)]
        return [self._rows(int(rows_B[0]), int(rows_B[-1]) + 1) for rows_B in rows]

    def repeated(self, times: int) -> Batch:
        """All utterances, then all of them again, `times` times."""
        if times == 1:
            return self
        lengths = None if self.target_lengths_B is None else self.target_lengths_B.repeat(times)
        features_BTF = self.features_BTF.repeat(times, 1, 1)
        return Batch(features_BTF, self.lengths_B.repeat(times), self.targets.repeat(times), lengths, self.ids * times)

    def _rows(self, first: int, end: int) -> Batch:
        lengths_B = self.lengths_B[first:end]
        features_BTF = self.features_BTF[first:end, : int(lengths_B.max())]
        if self.target_lengths_B is None:
            return Batch(features_BTF, lengths_B, self.targets[first:end], None, self.ids[first:end])
        before = int(self.target_lengths_B[:first].sum())
        target_lengths_B = self.target_lengths_B[first:end]
        targets = self.targets[before : before + int(target_lengths_B.sum())]
        return Batch(features_BTF, lengths_B, targets, target_lengths_B, self.ids[first:end])


@dataclass(frozen=True)
class BatchSize:
    """Of training: so many utterances, or, where `frames` is given, so many frames with the padding."""

    utterances: int
    frames: int | None = None

    def of_utterances(self) -> int:
        """For data whose utterances are all about as long; ValueError where frames were asked for."""
        if self.frames is not None:
            raise ValueError(
                f"trainer.batch_seconds asks for batches of {self.frames} frames, which only dataset=gigaspeech forms: use "
                f"trainer.batch_size"
            )
        return self.utterances


@dataclass(frozen=True)
class Share:
    """What one of several processes that train together takes: the `rank`-th of several things and every `ranks`-th
    after it. Of training these are the utterances of each batch, of an evaluation whole batches.
    """

    rank: int = 0
    ranks: int = 1

    def of(self, several: _Several) -> _Several:
        return several[self.rank :: self.ranks]


ALL = Share()


class Utterances(Protocol):
    """One part of a data set on the device, as the trainer and the reports read it."""

    @property
    def ids(self) -> list[str]: ...

    @property
    def lengths_WU(self) -> torch.Tensor:
        """Frames of each utterance in each variant, on the CPU."""

    def __len__(self) -> int:
        """Utterances of an epoch."""

    def to(self, device: torch.device) -> Utterances: ...

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """The recordings themselves, in their order."""

    def by_length(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """The recordings themselves from the shortest to the longest, a fixed order of little padding."""

    def sample(self, batch_size: int) -> Iterator[Batch]:
        """The recordings themselves for statistics, in a fixed order; of a large part only some of them."""

    def batches(self, size: BatchSize) -> int:
        """How many `shuffled` gives, the same in every epoch."""

    def shuffled(
        self, size: BatchSize, generator: torch.Generator, start: int = 0, share: Share = ALL
    ) -> Iterator[Batch]:
        """An epoch of training from its `start`-th batch on, its order drawn from `generator` alone.

        As many batches as `batches` says, whatever the share, so that processes stay in step: some may be empty.
        """


@dataclass(frozen=True)
class InMemoryUtterances:
    """One part of a data set on the device.

    Args:
        frames_NF: the frames of all utterances and variants.
        starts_WU: first frame of each utterance in each of its variants, on the CPU; variant 0 is the recording itself.
        lengths_WU: its frames, on the CPU, where batches are planned without waiting for the device.
    """

    frames_NF: torch.Tensor
    starts_WU: torch.Tensor
    lengths_WU: torch.Tensor
    targets_U: torch.Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> InMemoryUtterances:
        return replace(self, frames_NF=self.frames_NF.to(device), targets_U=self.targets_U.to(device))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """The recordings themselves, in their order."""
        for chosen_B in torch.arange(len(self)).split(batch_size):
            yield self._batch(chosen_B, torch.zeros_like(chosen_B))

    def by_length(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """The recordings themselves from the shortest to the longest, a fixed order of little padding."""
        for chosen_B in share.of(list(self.lengths_WU[0].argsort(stable=True).split(batch_size))):
            yield self._batch(chosen_B, torch.zeros_like(chosen_B))

    sample = by_length

    def batches(self, size: BatchSize) -> int:
        return math.ceil(len(self) / size.of_utterances())

    def shuffled(
        self, size: BatchSize, generator: torch.Generator, start: int = 0, share: Share = ALL
    ) -> Iterator[Batch]:
        """Each utterance once, in one of its variants, batched with others of about its length."""
        utterances, batch_size = len(self), size.of_utterances()
        order_U = torch.randperm(utterances, generator=generator)
        variant_U = torch.randint(len(self.starts_WU), (utterances,), generator=generator)
        lengths_U = self.lengths_WU[variant_U, order_U]
        batches = []
        for pool in torch.arange(utterances).split(_POOL_BATCHES * batch_size):
            batches += pool[lengths_U[pool].argsort(stable=True)].split(batch_size)
        for number in torch.randperm(len(batches), generator=generator).tolist()[start:]:
            chosen_B = share.of(batches[number])
            yield self._batch(order_U[chosen_B], variant_U[chosen_B])

    def _batch(self, chosen_B: torch.Tensor, variant_B: torch.Tensor) -> Batch:
        device = self.frames_NF.device
        if not len(chosen_B):
            return Batch.empty(device)
        ids = [self.ids[number] for number in chosen_B.tolist()]
        lengths_B = self.lengths_WU[variant_B, chosen_B]
        frames_T = torch.arange(int(lengths_B.max()), device=device)
        starts_B, lengths_B = self.starts_WU[variant_B, chosen_B].to(device), lengths_B.to(device)
        valid_BT = frames_T < lengths_B.unsqueeze(1)
        index_BT = (starts_B.unsqueeze(1) + frames_T).where(valid_BT, 0)
        features_BTF = self.frames_NF[index_BT] * valid_BT.unsqueeze(-1)
        return Batch(features_BTF, lengths_B, self.targets_U[chosen_B.to(device)], None, ids)


def joined(one: InMemoryUtterances, other: InMemoryUtterances) -> InMemoryUtterances:
    """The utterances of both, which have as many variants and lie on the same device."""
    return InMemoryUtterances(
        torch.cat([one.frames_NF, other.frames_NF]),
        torch.cat([one.starts_WU, other.starts_WU + len(one.frames_NF)], dim=1),
        torch.cat([one.lengths_WU, other.lengths_WU], dim=1),
        torch.cat([one.targets_U, other.targets_U]),
        one.ids + other.ids,
    )
