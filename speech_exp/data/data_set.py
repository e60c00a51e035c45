"""The base class of every data set.

The data flow of a run starts here: a data set finds its recordings and splits them into parts, and `prepare` turns the
parts into features with the run's front end. A new kind of data set is one class with these methods, one line in
`speech_exp/registry.py` and one file in `conf/dataset/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from speech_exp.data.prepared import DataRequest, PreparedData
from speech_exp.features.front_end import FrontEnd

Targets = Literal["classes", "text"]


class DataSet(ABC):
    """A source of recordings, the rule that splits it into parts, and the way from its recordings to batches.

    Recordings are looked for when a property or method first needs them, not when the object is built.
    """

    targets: ClassVar[Targets]  # what an objective learns from it
    class_names: ClassVar[tuple[str, ...]] = ()
    batches_by_frames: ClassVar[bool] = False  # whether it can form batches of trainer.batch_seconds
    name: str
    sample_rate_hz: int
    split: str
    test_speaker: str | None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of the audio and text that training and evaluation use, independent of where they are stored."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Size of the data set in a few words."""

    @property
    @abstractmethod
    def utterances_per_epoch(self) -> int:
        """Number of training utterances in an epoch, assuming that none is dropped."""

    @abstractmethod
    def fetch(self) -> Path:
        """Download what is missing, verify it, and return the root folder."""

    @abstractmethod
    def check(self, front_end: FrontEnd, request: DataRequest) -> None:
        """Raise a ValueError if this data set does not support the front end; no recording is read for this."""

    @abstractmethod
    def prepare(self, front_end: FrontEnd, request: DataRequest) -> PreparedData:
        """Return the features of all parts; fits the front end on the training part unless it has its statistics."""
