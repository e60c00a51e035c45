"""Codings of weights that are sums of powers of two: a table of levels, then code words of a fixed number of bits.

Words are stored bit by bit, starting from the lowest bit of each word and of each byte; a part ends on a whole byte. The
word of a weight is 0 for 0, 2i + 1 for the i-th level of the table (i from 0, ascending) and 2i + 2 for its negative.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from speech_exp.tasks.grids import LARGEST_EXPONENT, SMALLEST_EXPONENT, two_terms
from speech_exp.tasks.packed import Source

_POWERS = struct.Struct("<bB")  # lowest exponent, number of exponents


class LevelCode(ABC):
    """A table of levels, then a word for each weight of all tensors in turn."""

    @abstractmethod
    def table(self, magnitudes: np.ndarray) -> tuple[np.ndarray, bytes]:
        """Return the levels (float32, ascending) that cover all `magnitudes`, and the bytes that encode them."""

    @abstractmethod
    def read_table(self, source: Source) -> np.ndarray:
        """Read the levels."""

    def pack(self, tensors: Sequence[torch.Tensor]) -> bytes:
        values = _joined(tensors)
        levels, head = self.table(np.unique(np.abs(values[values != 0])))
        return head + pack_words((_words(values, levels), word_bits(2 * len(levels) + 1)))

    def unpack(self, source: Source, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        levels = self.read_table(source)
        count = sum(one.numel() for one in like)
        (words,) = unpack_words(source, (count, word_bits(2 * len(levels) + 1)))
        return _split(_values(words, levels), like)


class PowerCode(LevelCode):
    """A table of 2^k for `low` <= k < `low` + `count`, stored as `low` (int8) and `count` (uint8)."""

    def table(self, magnitudes: np.ndarray) -> tuple[np.ndarray, bytes]:
        exponents = np.frexp(magnitudes)[1] - 1
        low, count = (int(exponents[0]), int(exponents[-1] - exponents[0]) + 1) if len(exponents) else (0, 0)
        return _powers(low, count), _POWERS.pack(low, count)

    def read_table(self, source: Source) -> np.ndarray:
        low, count = _POWERS.unpack(source.take(_POWERS.size))
        if count and not SMALLEST_EXPONENT <= low <= low + count - 1 <= LARGEST_EXPONENT:
            raise ValueError("its exponents are outside float32's range")
        return _powers(low, count)


class Apot2Code(LevelCode):
    """A table of the levels in use: their number (uint16), then k and d (int8) for each.

    The level is 2^k + 2^(k-|d|) if d > 0, 2^k - 2^(k-|d|) if d < 0, and 2^k if d = 0.
    """

    def table(self, magnitudes: np.ndarray) -> tuple[np.ndarray, bytes]:
        first, second = two_terms(torch.from_numpy(magnitudes))
        k, distance = _exponents(first), _exponents(first) - _exponents(second)
        d = np.where(second == 0, 0, np.sign(second) * distance)
        head = np.array([len(magnitudes)], "<u2").tobytes() + np.stack([k, d], 1).astype("<i1").tobytes()
        return magnitudes, head

    def read_table(self, source: Source) -> np.ndarray:
        count = int(np.frombuffer(source.take(2), "<u2")[0])
        k, d = np.frombuffer(source.take(2 * count), "<i1").reshape(count, 2).astype(np.int64).T
        second = np.sign(d) * np.ldexp(np.ones(count), -np.abs(d))
        levels = np.ldexp(1 + second, k).astype(np.float32)
        if not (np.isfinite(levels).all() and (np.diff(levels, prepend=0) > 0).all()):
            raise ValueError("its levels are not in ascending order")
        return levels


class RowCode(PowerCode):
    """Matrices with one power of two per row.

    Stored in this order: the table of `PowerCode`; the level of each row of every matrix, counted from 0; two bits per weight
    of every matrix (0 for 0, 1 for plus, 2 for minus); the weights of every vector as in `PowerCode`.
    """

    def pack(self, tensors: Sequence[torch.Tensor]) -> bytes:
        values = _joined(tensors)
        levels, head = self.table(np.unique(np.abs(values[values != 0])))
        matrices, vectors = _by_kind(tensors)
        largest = _joined([matrix.flatten(1).abs().amax(1) for matrix in matrices])  # 0 in a row of zeros
        weights = _joined(matrices)
        return head + pack_words(
            (np.searchsorted(levels, largest), word_bits(len(levels))),
            (np.where(weights < 0, 2, weights > 0), 2),
            (_words(_joined(vectors), levels), word_bits(2 * len(levels) + 1)),
        )

    def unpack(self, source: Source, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        levels = self.read_table(source)
        matrices, vectors = _by_kind(like)
        rows, signs, words = unpack_words(
            source,
            (sum(map(len, matrices)), word_bits(len(levels))),
            (sum(matrix.numel() for matrix in matrices), 2),
            (sum(vector.numel() for vector in vectors), word_bits(2 * len(levels) + 1)),
        )
        if (signs > 2).any():
            raise ValueError("it contains code words with no sign")
        level = np.repeat(rows, [matrix[0].numel() for matrix in matrices for _ in matrix])
        as_words = np.where(signs == 0, 0, 2 * level + signs)  # the words of LevelCode
        found_matrices = iter(_split(_values(as_words, levels), matrices))
        found_vectors = iter(_split(_values(words, levels), vectors))
        return [next(found_matrices if one.ndim > 1 else found_vectors) for one in like]


def word_bits(words: int) -> int:
    """Return the number of bits that distinguishes `words` code words."""
    return max(0, words - 1).bit_length()  # log2, rounded up, in integer arithmetic


def pack_words(*fields: tuple[np.ndarray, int]) -> bytes:
    """Pack fields of words (N) with a number of bits per word, one field after the other."""
    columns = []
    for words, width in fields:
        bits = np.empty((len(words), width), np.uint8)
        for bit in range(width):
            bits[:, bit] = words >> bit & 1
        columns.append(bits.ravel())
    return np.packbits(np.concatenate(columns), bitorder="little").tobytes()


def unpack_words(source: Source, *fields: tuple[int, int]) -> list[np.ndarray]:
    """Unpack fields given as (number of words, bits per word) into int64 words."""
    total = sum(count * width for count, width in fields)
    bits = np.unpackbits(np.frombuffer(source.take(-(-total // 8)), np.uint8), bitorder="little")
    found, start = [], 0
    for count, width in fields:
        words = np.zeros(count, np.int64)
        for bit in range(width):
            words |= bits[start + bit : start + count * width : width].astype(np.int64) << bit
        found.append(words)
        start += count * width
    return found


def _words(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    index = np.searchsorted(levels, np.abs(values))
    if not np.isin(np.abs(values[values != 0]), levels).all():
        raise ValueError("weights that are not on their grid cannot be packed")
    return np.where(values == 0, 0, 2 * index + 1 + (values < 0))


def _values(words: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the weights (float32) of code words."""
    if (words > 2 * len(levels)).any():
        raise ValueError("it contains code words with no level")
    table = np.zeros(2 * len(levels) + 1, np.float32)
    table[1::2], table[2::2] = levels, -levels
    return table[words]


def _powers(low: int, count: int) -> np.ndarray:
    return np.ldexp(np.ones(count), np.arange(low, low + count)).astype(np.float32)


def _exponents(powers: torch.Tensor) -> np.ndarray:
    return (torch.frexp(powers).exponent - 1).numpy()


def _joined(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(tensor.numpy().ravel() for tensor in tensors)])


def _split(values: np.ndarray, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    found = torch.from_numpy(values).split([one.numel() for one in like])
    return [flat.view(one.shape) for flat, one in zip(found, like, strict=True)]


def _by_kind(tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Split tensors into matrices and vectors."""
    return [one for one in tensors if one.ndim > 1], [one for one in tensors if one.ndim < 2]
