"""Checkpoints: written aside, synced and renamed, so that a file under its final name is always whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = "speech_exp deployable 1"


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


def load_deployable(path: str | None) -> dict[str, Any]:
    """Content of a `checkpoint_epoch_{epoch}_best.pt`, on the CPU; nothing in the file is executed."""
    if path is None:
        raise ValueError("no checkpoint was given: set checkpoint=RUN_FOLDER/checkpoints/checkpoint_epoch_N_best.pt")
    if not Path(path).is_file():
        raise ValueError(f"checkpoint={path} is not a file: expected a checkpoint_epoch_N_best.pt, change checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make torch raise anything from EOFError to IndexError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"checkpoint={path} is not a readable checkpoint ({reason}): change checkpoint") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint={path} holds no deployable model: give the file that ends in _best.pt, not a training state"
        )
    return content
