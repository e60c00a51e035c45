"""Predictions for one utterance, with times in seconds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace


class Prediction(ABC):
    """What a model recognises in one utterance; `note` says why this means nothing, and is empty otherwise."""

    note: str

    @abstractmethod
    def with_note(self, note: str) -> Prediction: ...

    @abstractmethod
    def cells(self) -> list[str]:
        """Return the prediction as cells of a table, without the note; `Objective.columns` is their header."""


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The most probable class, and the probability of each class."""

    label: str
    probabilities: dict[str, float]
    note: str = ""

    def with_note(self, note: str) -> ClassPrediction:
        return replace(self, note=note)

    def cells(self) -> list[str]:
        return [self.label, *(f"{probability:.4f}" for probability in self.probabilities.values())]


@dataclass(frozen=True)
class Word:
    """A recognised word with its start and end."""

    text: str
    start_s: float
    end_s: float

    def __str__(self) -> str:
        return f"{self.text} {self.start_s:.2f}-{self.end_s:.2f}"


@dataclass(frozen=True)
class TextPrediction(Prediction):
    """The recognised words in order."""

    words: tuple[Word, ...]
    note: str = ""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    def with_note(self, note: str) -> TextPrediction:
        return replace(self, note=note)

    def cells(self) -> list[str]:
        return [self.text, ", ".join(map(str, self.words))]
