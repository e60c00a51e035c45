"""Restrict what a checkpoint file may contain: plain values and dense tensors no larger than the file itself.

`torch.load(weights_only=True)` runs no code from a file, but lets the file choose sizes: a compressed entry may unpack to a
thousand times the file, and a tensor with strides of 0 may claim terabytes. Both are refused here.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

DEEPEST = 32  # nesting of tables and lists
_NAMED = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}  # our own files name only these and storages
_WORD_BITS = 64


class ContentError(ValueError):
    """The content of a file is not allowed; the message says why in a few words."""


def check_archive(path: Path) -> None:
    """Refuse a file that could unpack to more than its own size or that names anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ContentError("its entries are compressed")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ContentError("its entries are larger than the file")
            pickled = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickled) != 1:
                raise ContentError(f"it contains {len(pickled)} entries data.pkl, expected one")
            _check_names(archive.read(pickled[0]))
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, UnicodeDecodeError):
        raise ContentError("it is not a complete file of torch.save") from None


def _check_names(pickled: bytes) -> None:
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            named = operation.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
            if named and not (argument in _NAMED or _is_storage(argument)):
                raise ContentError(f"it names {argument or 'code'}, which is neither a tensor nor a plain value")
    except ContentError:
        raise
    except ValueError:
        raise ContentError("it is not a complete file of torch.save") from None


def _is_storage(argument: Any) -> bool:
    """Whether the name is that of a tensor storage, such as `torch FloatStorage`."""
    module, _, name = str(argument).partition(" ")
    return module == "torch" and name.endswith("Storage") and name.isalpha()


def plain(value: Any, budget: int) -> Any:
    """Return `value` as plain tables, lists, texts, numbers and dense tensors of at most `budget` bytes in total.

    A shared object is counted every time it is used, because a few shared lists can expand to any number of items.
    """
    return _Copy(budget).of(value, "", 0)


class _Copy:
    def __init__(self, budget: int) -> None:
        self.left = budget

    def of(self, value: Any, name: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise ContentError(f"its values are nested more than {DEEPEST} tables deep")
        if isinstance(value, torch.Tensor):
            return self._tensor(value, name)
        self._spend(len(value) if isinstance(value, str) else 1)
        if value is None or type(value) in (bool, str):
            return value
        if type(value) is int and value.bit_length() <= _WORD_BITS:
            return value
        if type(value) is float:
            return value
        if type(value) in (list, tuple):
            return type(value)(self.of(item, f"{name}[{at}]", depth + 1) for at, item in enumerate(value))
        if isinstance(value, Mapping):
            return {
                self._key(key): self.of(item, f"{name}.{key}".lstrip("."), depth + 1) for key, item in value.items()
            }
        raise ContentError(f"{name or 'it'} is a {type(value).__name__}, neither a tensor nor a plain value")

    def _tensor(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        dense = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
        if not (dense and tensor.device.type == "cpu" and tensor.is_contiguous()):
            raise ContentError(f"{name} is not a dense contiguous tensor")
        self._spend(1 + tensor.numel() * tensor.element_size())
        return tensor.detach()

    def _key(self, key: Any) -> str | int:
        if type(key) not in (str, int):
            raise ContentError(f"it has a key of type {type(key).__name__}, expected text")
        self._spend(len(key) if isinstance(key, str) else 1)
        return key

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ContentError("its values represent more than the file's size")


def is_finite(value: Any) -> bool:
    """Whether no number in the plain `value` is NaN or infinite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
