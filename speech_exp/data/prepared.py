"""A data set as features: the interface through which training, evaluation and reports read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_exp.data.batches import Utterances
from speech_exp.data.recordings import Dropped, Origin
from speech_exp.features.speed import change_speed


@dataclass(frozen=True)
class DataRequest:
    """The settings of a run that its data set needs, besides the front end.

    Args:
        encode: converts text to character ids.
        frames_per_state: the encoder's downsampling factor.
        trains: whether the parts are used for training; if not, settings that only affect training are not checked.
        device: device of the batches.
    """

    encode: Callable[[str], list[int]]
    frames_per_state: int
    trains: bool
    cache_folder: Path
    device: torch.device


@dataclass(frozen=True)
class Survey:
    """The utterances of one part before feature extraction; for digits its recordings, without synthetic voices.

    Args:
        samples_U: samples of each utterance at speed 1.
        id, text, waveform: functions from the number of an utterance; the text of a class is its name.
        speeds: each training batch draws one of them.
    """

    samples_U: np.ndarray
    id: Callable[[int], str]
    text: Callable[[int], str]
    waveform: Callable[[int], np.ndarray]
    speeds: Sequence[float]

    def __len__(self) -> int:
        return len(self.samples_U)

    def waveform_at_speed(self, number: int, speed: float) -> np.ndarray:
        """Return the waveform (N,) of an utterance at a given speed, as training uses it."""
        waveform_N = torch.from_numpy(self.waveform(number))
        return change_speed(waveform_N.unsqueeze(0), torch.tensor([len(waveform_N)]), speed)[0][0].numpy()


class PreparedData(ABC):
    """The normalised features of all parts on the device, and what reports need besides.

    `dropped` lists utterances that are in no part, and `folder` holds the cached features (None: they are only in memory).
    """

    parts: Mapping[str, Utterances]
    dropped: list[Dropped]
    folder: Path | None = None

    @abstractmethod
    def waveform(self, part: str, number: int) -> np.ndarray:
        """Return the waveform (N,) of an utterance."""

    @abstractmethod
    def origin(self, part: str, number: int) -> Origin:
        """Return the speaker and recordings of an utterance."""

    @abstractmethod
    def survey(self, part: str) -> Survey:
        """Summarise a part without computing features."""

    def refuse_too_many(self, dropped: Sequence[Dropped]) -> None:  # noqa: B027  (only a corpus drops while it trains)
        """Raise a ValueError if the utterances `dropped` so far, on all ranks, are too many to continue training."""

    def every_dropped(self) -> Iterable[Dropped]:
        """Return every dropped utterance once; `dropped` may list only the first ones for each reason."""
        return iter(self.dropped)

    def dropped_by_reason(self, dropped: Iterable[Dropped]) -> Counter[str]:
        """Count the dropped utterances for each reason; `dropped` lists those of this object, collected from all ranks."""
        return Counter(item.reason for item in dropped)

    def with_origins(self, predictions: Sequence[Mapping[str, Any]], part: str) -> list[dict[str, Any]]:
        """Return the rows of predictions.csv: a part's predictions, with `speaker` and `recordings` where known."""
        origins = {name: self.origin(part, number) for number, name in enumerate(self.parts[part].ids)}
        rows = []
        for prediction in predictions:
            found = origins[prediction["id"]]
            known = {"speaker": found.speaker, "recordings": " ".join(found.recordings)}
            rows.append({**prediction, **{key: value for key, value in known.items() if value}})
        return rows
