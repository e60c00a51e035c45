"""Checkpoint files, written atomically: to a temporary file, synced, then renamed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from speech_exp.files import write_bytes
from speech_exp.training.plain_content import ContentError, check_archive, is_finite, plain

FORMAT = "speech_exp deployable 3"
STATE_FORMAT = "speech_exp training state 3"


def save(content: dict[str, Any], path: Path) -> None:
    """Write `content` (tensors and plain Python values only) atomically."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # left by a killed process
        left.unlink(missing_ok=True)
    buffer = io.BytesIO()  # torch.save to a file would not report a full disk
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def save_deployable(content: dict[str, Any], path: Path) -> None:
    """Write a deployable model with a digest of its whole content."""
    save({"format": FORMAT, **content, "digest": _digest(content)}, path)


def load_deployable(path: str | None, key: str = "checkpoint") -> dict[str, Any]:
    """Return the content of a `checkpoint_epoch_{epoch}_best.pt` on the CPU: plain values and finite tensors, never code.

    `key` is the config key that named the file. A file with parts that were not saved together is refused. The digest
    detects damage, not forgery: code that uses the config must check it (`speech_exp.checkpoint_config`).
    """
    if path is None:
        raise ValueError(f"no checkpoint was given: set {key}=RUN_FOLDER/checkpoints/checkpoint_epoch_N_best.pt")
    if not Path(path).is_file():
        raise ValueError(f"{key}={path} is not a file: expected a checkpoint_epoch_N_best.pt, change {key}")
    try:
        content = load(Path(path), FORMAT)
    except ValueError as error:
        raise ValueError(f"{key}={error}: use a file whose name ends in _best.pt, change {key}") from None
    if content.pop("digest", None) != _digest(content):
        raise ValueError(f"{key}={path} was changed after it was saved (its digest does not match): change {key}")
    for part, fits in _PARTS.items():
        if not fits(content.get(part)):
            raise ValueError(f"{key}={path} contains no usable {part}: expected a file of action=train, change {key}")
    return content


def save_state(content: dict[str, Any], path: Path) -> None:
    """Write a training state with a digest of its whole content."""
    save({"format": STATE_FORMAT, **content, "digest": _digest(content)}, path)


def load_state(path: Path) -> dict[str, Any]:
    """Return the content of a training state on the CPU; refuse it unless it is bit for bit what was saved."""
    content = load(path, STATE_FORMAT)
    if content.pop("digest", None) != _digest(content):
        raise ValueError(f"{path} is damaged (its digest does not match)")
    return content


def load(path: Path, expected: str) -> dict[str, Any]:
    """Return the content of a file of format `expected` on the CPU: plain values and tensors no larger than the file."""
    try:
        check_archive(path)
        content = plain(torch.load(path, map_location="cpu", weights_only=True), path.stat().st_size)
    except ContentError as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error})") from None
    except OSError as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error.strerror})") from None
    except Exception:  # torch can raise anything for bytes that are not a checkpoint, and advises to trust the file
        raise ValueError(f"{path} is not a readable checkpoint (it is not a complete file of torch.save)") from None
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != expected:
        raise ValueError(
            f"{path} contains {found if isinstance(found, str) else 'something else'}, expected {expected}"
        )
    return content


def _is_table(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(one, kind) for name, one in value.items()
    )


_PARTS: dict[str, Callable[[Any], bool]] = {
    "choices": lambda value: _is_table(value, str),
    "config": lambda value: _is_table(value, object),
    "front_end": lambda value: _is_table(value, torch.Tensor) and is_finite(value),
    "network": lambda value: _is_table(value, torch.Tensor) and is_finite(value),
    "class_names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "data_fingerprint": lambda value: isinstance(value, str),
}


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all names, types, shapes and bits in `content`."""
    sha = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in sorted(value, key=str):
                add(f"{name}/{key}", value[key])
        elif isinstance(value, torch.Tensor):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            sha.update(_bytes(value))
        else:
            sha.update(f"{name} {json.dumps(value, default=_text)}\n".encode())

    add("", content)
    return sha.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    """Return all bytes of a tensor as a buffer."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _text(tensor: torch.Tensor) -> str:
    """Return a text that represents a tensor inside a list."""
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(_bytes(tensor)).hexdigest()}"
