"""What every data set offers, whether its recordings fit in memory or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Loaded(Protocol):
    """A data set as found on this machine."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what training and evaluation hear and read of it, wherever it lies."""

    @property
    def summary(self) -> str:
        """How much it holds, in a few words."""


class DataSet(Protocol):
    """Where recordings come from and how they are split; features are made in `speech_exp.features`."""

    name: str
    targets: str  # what it gives an objective: "classes" or "text"
    class_names: tuple[str, ...]
    sample_rate_hz: int
    split: str
    test_speaker: str | None

    def load(self) -> Any:
        """Its `Loaded`."""

    def prepare(self) -> Path:
        """Get what is missing and verify it; return the root."""

    def utterances_per_epoch(self, loaded: Any) -> int:
        """Training utterances, while none is dropped."""
