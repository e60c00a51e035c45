"""Which utterances are batched together: buckets of about one length, planned from an array of lengths alone.

Shape letters: U utterances, N positions of utterances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from speech_exp.data.batches import BatchSize

_BUCKETS = 30  # at most: as few padded shapes for a compiler, and little padding within each
_BATCHES_A_BUCKET = 4  # at least, on average: fewer would batch the same utterances together in every epoch


@dataclass(frozen=True)
class PlannedBatch:
    positions_N: np.ndarray
    frames: int  # to which all are padded: the longest of the bucket


class BucketPlan:
    """Batches of an epoch over any number of utterances, in the memory of a few arrays.

    Each utterance is in one batch of an epoch. The batches of a bucket differ by at most one utterance, their number is the
    same in every epoch, and the order is drawn from a seed alone: so an epoch goes on from any batch without what came
    before being read.

    Args:
        lengths_U: frames of each utterance.
        size: of a batch, over all ranks.
        window_U: group of files that holds each utterance. Windows follow each other in random order and batches
            are drawn within one, so that reading stays within a few files; all 0 where any order is as good.
    """

    def __init__(self, lengths_U: np.ndarray, size: BatchSize, window_U: np.ndarray) -> None:
        longest = int(lengths_U.max())
        if size.frames is not None and longest > size.frames:
            raise ValueError(
                f"trainer.batch_seconds asks for batches of {size.frames} frames, the longest utterance has {longest}: raise "
                f"trainer.batch_seconds or lower dataset.limits.max_s"
            )
        edges = _edges(lengths_U, size)
        bucket_U = np.searchsorted(edges, lengths_U)
        self._groups: list[list[tuple[np.ndarray, int, int]]] = []  # windows: buckets: members, batches, frames
        order_U = np.lexsort((bucket_U, window_U))
        keys_U = window_U[order_U].astype(np.int64) * len(edges) + bucket_U[order_U]
        starts = np.flatnonzero(np.diff(keys_U, prepend=-1))
        window = -1
        for members_N in np.split(order_U, starts[1:]):
            frames = int(edges[bucket_U[members_N[0]]])
            batches = -(-len(members_N) // _utterances(frames, size))
            if window_U[members_N[0]] != window:
                window = int(window_U[members_N[0]])
                self._groups.append([])
            self._groups[-1].append((members_N, batches, frames))
        self.batches = sum(batches for group in self._groups for _, batches, _ in group)

    def epoch(self, seed: int, start: int = 0) -> Iterator[PlannedBatch]:
        """The batches of an epoch from the `start`-th on."""
        generator = np.random.default_rng(seed)
        for number in generator.permutation(len(self._groups)):
            group = self._groups[number]
            within = np.random.default_rng(generator.integers(2**63))
            if start >= (count := sum(batches for _, batches, _ in group)):
                start -= count
                continue
            yield from self._window(group, within)[start:]
            start = 0

    @staticmethod
    def _window(group: list[tuple[np.ndarray, int, int]], generator: np.random.Generator) -> list[PlannedBatch]:
        planned = [
            PlannedBatch(positions_N, frames)
            for members_N, batches, frames in group
            for positions_N in np.array_split(generator.permutation(members_N), batches)
        ]
        return [planned[number] for number in generator.permutation(len(planned))]


def _utterances(frames: int, size: BatchSize) -> int:
    """Of a batch that is padded to so many frames."""
    return size.utterances if size.frames is None else size.frames // frames


def _edges(lengths_U: np.ndarray, size: BatchSize) -> np.ndarray:
    """Longest utterance of each bucket, rising: each bucket holds about as many frames as any other."""
    sorted_U = np.sort(lengths_U)
    batches = len(sorted_U) / size.utterances if size.frames is None else sorted_U.sum() / size.frames
    buckets = int(np.clip(batches / _BATCHES_A_BUCKET, 1, _BUCKETS))
    total_U = np.cumsum(sorted_U, dtype=np.int64)
    ends = np.searchsorted(total_U, total_U[-1] * np.arange(1, buckets) / buckets)
    return np.unique(np.append(sorted_U[ends], sorted_U[-1]))
