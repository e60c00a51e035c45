"""Packed models: one file with everything that a deployed model stores, in as few bytes as its task allows.

All numbers are little-endian. The 12-byte header has `SXP1`, the number of bytes that follow (uint32) and their CRC-32
(uint32). The parts follow without gaps: first for each recurrent layer and then for the rest, the tensors of each coding.
Which tensors those are, their order and their shapes follow from the config and are not repeated in the file. The
docstring of each coding describes its bytes. Reading a file yields numbers and never executes code.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

MAGIC = b"SXP1"
HEADER = struct.Struct("<4sII")
_LARGEST_TABLE = 2**18  # bytes that a part may use in addition to those of its tensors
_TYPES = {torch.float32: "<f4", torch.int8: "<i1", torch.int16: "<i2", torch.int32: "<i4"}


class Source:
    """The bytes of a file, read from the front; reading past the end is a ValueError, before anything is allocated."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._rest = memoryview(content)

    def take(self, count: int) -> memoryview:
        if count > len(self._rest):
            raise ValueError(f"it is {count - len(self._rest)} bytes too short")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def end(self) -> None:
        if self._rest:
            raise ValueError(f"it is {len(self._rest)} bytes too long")


class Coding(Protocol):
    """How the tensors of a part are converted to bytes."""

    def pack(self, tensors: Sequence[torch.Tensor]) -> bytes: ...

    def unpack(self, source: Source, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return tensors with the shapes and dtypes of `like`, whose values are not read."""


class Plain:
    """Unchanged numbers: float32, int8, int16 or int32."""

    def pack(self, tensors: Sequence[torch.Tensor]) -> bytes:
        return b"".join(tensor.numpy().astype(_TYPES[tensor.dtype]).tobytes() for tensor in tensors)

    def unpack(self, source: Source, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [numbers(source, _TYPES[one.dtype], one.shape) for one in like]


@dataclass(frozen=True)
class Tables:
    """int16 tables that a device needs besides the model's own numbers; the same in every file."""

    tables: tuple[torch.Tensor, ...]

    def pack(self, tensors: Sequence[torch.Tensor]) -> bytes:
        return Plain().pack(self.tables)

    def unpack(self, source: Source, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not all(map(torch.equal, Plain().unpack(source, self.tables), self.tables)):
            raise ValueError("its tables are not those of the integer rules")
        return []


@dataclass(frozen=True)
class Part:
    """Entries of a deployed model's state that are stored together."""

    names: tuple[str, ...]
    coding: Coding
    layer: int | None = None  # number of their recurrent layer; None: the rest of the model


def parts_of(
    model: nn.Module, layers: Sequence[nn.Module], coded: Sequence[tuple[Collection[str], Coding]] = ()
) -> list[Part]:
    """Split each recurrent layer and the rest into parts by coding; entries not named in `coded` are plain.

    64-bit integers are left out: they only count the batches that a normalisation layer has seen in training.
    """
    names = {id(module): f"{name}." for name, module in model.named_modules()}
    prefixes = [names[id(layer)] for layer in layers]
    state = model.state_dict()
    left = [name for name, value in state.items() if value.dtype != torch.int64]
    parts = []
    for layer, prefix in [*enumerate(prefixes), (None, "")]:
        for chosen, coding in (*coded, (left, Plain())):
            found = tuple(name for name in left if name.startswith(prefix) and name in chosen)
            left = [name for name in left if name not in found]
            if found:
                parts.append(Part(found, coding, layer))
    return parts


def chunks(state: Mapping[str, torch.Tensor], parts: Sequence[Part]) -> list[bytes]:
    """Return the bytes of each part."""
    return [part.coding.pack([state[name].detach().cpu() for name in part.names]) for part in parts]


def pack(state: Mapping[str, torch.Tensor], parts: Sequence[Part]) -> bytes:
    """Return the bytes of the whole file."""
    body = b"".join(chunks(state, parts))
    return HEADER.pack(MAGIC, len(body), zlib.crc32(body)) + body


def differing(state: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], parts: Sequence[Part]) -> list[str]:
    """Return the names of the entries in `parts` that are not bit-identical in both states."""

    def bits(tensor: torch.Tensor) -> bytes:
        return Plain().pack([tensor.detach().cpu()])

    return [name for part in parts for name in part.names if bits(state[name]) != bits(other[name])]


def read(path: Path, model: nn.Module, parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    """Read the state of a `model` with these `parts`; only its shapes and dtypes are used, and counters are 0."""
    state = model.state_dict()
    largest = HEADER.size + sum(value.numel() * value.element_size() for value in state.values())
    try:
        if not path.is_file():
            raise ValueError("it is not a file")
        if path.stat().st_size > largest + _LARGEST_TABLE * len(parts):
            raise ValueError(f"it has {path.stat().st_size} bytes, more than this model can have")
        found = _unpacked(path.read_bytes(), state, parts)
    except OSError as error:
        raise ValueError(f"{path} could not be read ({error.strerror}): give a packed model of this run") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a complete packed model of this config: {error}") from None
    return {name: found.get(name, torch.zeros_like(value, device="cpu")) for name, value in state.items()}


def _unpacked(content: bytes, state: Mapping[str, torch.Tensor], parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    source = Source(content)
    magic, count, checksum = HEADER.unpack(source.take(HEADER.size))
    if magic != MAGIC:
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    body = source.take(count)
    source.end()
    if zlib.crc32(body) != checksum:
        raise ValueError("its checksum does not match")
    source = Source(body)
    found: dict[str, torch.Tensor] = {}
    for part in parts:
        tensors = part.coding.unpack(source, [state[name] for name in part.names])
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ValueError("it contains numbers that are not finite")
        found.update(zip(part.names, tensors, strict=True))
    source.end()
    return found


def numbers(source: Source, dtype: str, shape: torch.Size) -> torch.Tensor:
    """Read a tensor of unchanged numbers of a NumPy type."""
    kind = np.dtype(dtype)
    found = np.frombuffer(source.take(shape.numel() * kind.itemsize), kind)
    return torch.from_numpy(found.astype(kind.newbyteorder("="))).view(shape)
