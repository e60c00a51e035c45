"""Batches of a small data set stored on the device as one tensor, without worker processes or a Python loop over items.

Shape letters: B batch, T frames, F features, N frames of all recordings concatenated, U utterances, W waveform variants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from speech_exp.features.batch import Batch

_Several = TypeVar("_Several", torch.Tensor, np.ndarray, list[Any])

# A pool of this many batches is sorted by length and then cut into batches: large enough for little padding, small
# enough that a batch still contains a mixture of classes.
_POOL_BATCHES = 8


@dataclass(frozen=True)
class BatchSize:
    """The size of a training batch in utterances or, if `frames` is given, in frames including padding."""

    utterances: int
    frames: int | None = None

    def of_utterances(self) -> int:
        """Return the size in utterances, for data with utterances of similar length; ValueError if `frames` is given."""
        if self.frames is not None:
            raise ValueError(
                f"trainer.batch_seconds asks for batches of {self.frames} frames, which only dataset=gigaspeech forms: use "
                f"trainer.batch_size"
            )
        return self.utterances


@dataclass(frozen=True)
class Share:
    """The share of one rank: item number `rank` (from 0) and every `ranks`-th item after it.

    The items are the utterances of each batch in training, and whole batches in evaluation.
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
        """Number of frames of each utterance in each variant, on the CPU."""

    def __len__(self) -> int:
        """Return the number of utterances in an epoch."""

    def to(self, device: torch.device) -> Utterances: ...

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield the undistorted recordings in order."""

    def by_length(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """Yield the undistorted recordings from the shortest to the longest: a fixed order with little padding."""

    def sample(self, batch_size: int) -> Iterator[Batch]:
        """Yield undistorted recordings in a fixed order, for statistics; only a sample of a large part."""

    def batches(self, size: BatchSize) -> int:
        """Return the number of batches that `shuffled` yields, the same in every epoch."""

    def shuffled(
        self, size: BatchSize, generator: torch.Generator, start: int = 0, share: Share = ALL
    ) -> Iterator[Batch]:
        """Yield the batches of a training epoch from number `start` on, in an order that depends only on `generator`.

        The number of batches does not depend on `share`, so all ranks stay in step; some batches may be empty.
        """

    def batch_shapes(self, size: BatchSize, generator: torch.Generator) -> np.ndarray:
        """Return for each batch of an epoch: its utterances, the frames that each is padded to, and all frames without padding.

        Utterances on disk are not read for this; their frames are counted at speed 1.
        """

    def first_batch(self, size: BatchSize, generator: torch.Generator) -> Batch:
        """Return the first training batch that contains usable audio."""


def shapes_of(batches: Iterable[Batch]) -> np.ndarray:
    """Return the shapes of batches, as `Utterances.batch_shapes` does."""
    rows = [(len(batch.ids), batch.features_BTF.shape[1], int(batch.lengths_B.sum())) for batch in batches]
    return np.array(rows, dtype=np.int64)


def first_with_audio(batches: Iterable[Batch]) -> Batch:
    """Return the first batch that is not empty; ValueError if there is none."""
    for batch in batches:
        if batch.ids:
            return batch
    raise ValueError("no audio of the training part could be read: restore it, or change dataset.root")


@dataclass(frozen=True)
class InMemoryUtterances:
    """One part of a data set, stored on the device.

    Args:
        frames_NF: the frames of all utterances and variants.
        starts_WU: first frame of each utterance in each variant, on the CPU; variant 0 is the undistorted recording.
        lengths_WU: number of frames, on the CPU, so planning batches does not wait for the device.
    """

    frames_NF: torch.Tensor
    starts_WU: torch.Tensor
    lengths_WU: torch.Tensor
    targets_U: torch.Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def chosen(self, chosen_U: torch.Tensor) -> InMemoryUtterances:
        """Return a part with only the chosen utterances, which shares the frames."""
        return replace(
            self,
            starts_WU=self.starts_WU[:, chosen_U],
            lengths_WU=self.lengths_WU[:, chosen_U],
            targets_U=self.targets_U[chosen_U.to(self.targets_U.device)],
            ids=[self.ids[number] for number in chosen_U.tolist()],
        )

    def to(self, device: torch.device) -> InMemoryUtterances:
        return replace(self, frames_NF=self.frames_NF.to(device), targets_U=self.targets_U.to(device))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield the undistorted recordings in order."""
        for chosen_B in torch.arange(len(self)).split(batch_size):
            yield self._batch(chosen_B, torch.zeros_like(chosen_B))

    def by_length(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """Yield the undistorted recordings from the shortest to the longest: a fixed order with little padding."""
        for chosen_B in share.of(list(self.lengths_WU[0].argsort(stable=True).split(batch_size))):
            yield self._batch(chosen_B, torch.zeros_like(chosen_B))

    sample = by_length

    def batches(self, size: BatchSize) -> int:
        return math.ceil(len(self) / size.of_utterances())

    def shuffled(
        self, size: BatchSize, generator: torch.Generator, start: int = 0, share: Share = ALL
    ) -> Iterator[Batch]:
        """Yield batches of utterances of similar length; each utterance appears once, in one of its variants."""
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

    def batch_shapes(self, size: BatchSize, generator: torch.Generator) -> np.ndarray:
        return shapes_of(self.shuffled(size, generator))

    def first_batch(self, size: BatchSize, generator: torch.Generator) -> Batch:
        return first_with_audio(self.shuffled(size, generator))

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


def concatenate(one: InMemoryUtterances, other: InMemoryUtterances) -> InMemoryUtterances:
    """Concatenate two parts with the same number of variants on the same device."""
    return InMemoryUtterances(
        torch.cat([one.frames_NF, other.frames_NF]),
        torch.cat([one.starts_WU, other.starts_WU + len(one.frames_NF)], dim=1),
        torch.cat([one.lengths_WU, other.lengths_WU], dim=1),
        torch.cat([one.targets_U, other.targets_U]),
        one.ids + other.ids,
    )
