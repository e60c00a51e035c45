"""Plans batches of utterances of similar length (bucketing) from an array of lengths alone.

Shape letters: U utterances, N positions of utterances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from speech_exp.data.batches import BatchSize

_BUCKETS = 30  # at most: few padded shapes for a compiler, yet little padding in each bucket
_BATCHES_A_BUCKET = 4  # at least, on average: with fewer, the same utterances would be together in every epoch


@dataclass(frozen=True)
class PlannedBatch:
    positions_N: np.ndarray
    frames: int  # all utterances are padded to this: the longest of the bucket


class BucketPlan:
    """A plan of each epoch's batches over any number of utterances; it needs only a few arrays of memory.

    Each utterance is in exactly one batch of an epoch. The batches of a bucket differ in size by at most one utterance,
    and their number is the same in every epoch. The order depends only on a seed, so an epoch can resume at any batch
    without reading the batches before it.

    Args:
        lengths_U: frames of each utterance.
        size: size of a batch, over all ranks.
        window_U: number of the group of files that contains each utterance. Groups are visited in random order and each
            batch is drawn from one group, which limits reads to a few files at a time; all 0 if the order does not matter.
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
        self._groups: list[list[tuple[np.ndarray, int, int]]] = []  # by window, then bucket: (members, batches, frames)
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
        """Yield the batches of an epoch, starting with batch number `start` (from 0)."""
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
    """Return the number of utterances in a batch that is padded to `frames` frames."""
    return size.utterances if size.frames is None else size.frames // frames


def _edges(lengths_U: np.ndarray, size: BatchSize) -> np.ndarray:
    """Return the longest utterance of each bucket in ascending order; all buckets have about the same number of frames."""
    sorted_U = np.sort(lengths_U)
    batches = len(sorted_U) / size.utterances if size.frames is None else sorted_U.sum() / size.frames
    buckets = int(np.clip(batches / _BATCHES_A_BUCKET, 1, _BUCKETS))
    total_U = np.cumsum(sorted_U, dtype=np.int64)
    ends = np.searchsorted(total_U, total_U[-1] * np.arange(1, buckets) / buckets)
    return np.unique(np.append(sorted_U[ends], sorted_U[-1]))
