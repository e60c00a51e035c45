"""Checkpoints: written aside, synced and renamed, so that a file under its final name is always whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = "speech_exp deployable 2"


def save(content: dict[str, Any], path: Path) -> None:
    """Write `content` (tensors and plain Python values only) atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ValueError(
            f"checkpoint {path} could not be written ({error.strerror}): free space or change hydra.run.dir"
        ) from None


def save_deployable(content: dict[str, Any], path: Path) -> None:
    """Write a deployable model with a digest of all it consists of."""
    save({"format": FORMAT, **content, "digest": _digest(content)}, path)


def load_deployable(path: str | None, key: str = "checkpoint") -> dict[str, Any]:
    """Content of a `checkpoint_epoch_{epoch}_best.pt`, on the CPU; nothing in the file is executed.

    `key` is the config key that named it. A file whose parts are not those that were saved together is refused.
    """
    if path is None:
        raise ValueError(f"no checkpoint was given: set {key}=RUN_FOLDER/checkpoints/checkpoint_epoch_N_best.pt")
    if not Path(path).is_file():
        raise ValueError(f"{key}={path} is not a file: expected a checkpoint_epoch_N_best.pt, change {key}")
    try:
        content = load(Path(path), FORMAT)
    except ValueError as error:
        raise ValueError(f"{key}={error}: give a file that ends in _best.pt, change {key}") from None
    if content.pop("digest", None) != _digest(content):
        raise ValueError(f"{key}={path} was changed after it was saved (its digest does not fit): change {key}")
    return content


def load(path: Path, expected: str) -> dict[str, Any]:
    """Content of a file of the format `expected`, on the CPU; nothing in the file is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make torch raise anything from EOFError to IndexError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a readable checkpoint ({reason})") from None
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != expected:
        raise ValueError(f"{path} holds {found or 'something else'}, expected {expected}")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bits of everything in it."""
    sha = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                add(f"{name}/{key}", value[key])
        elif isinstance(value, torch.Tensor):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(f"{name} {json.dumps(value)}\n".encode())

    add("", content)
    return sha.hexdigest()
