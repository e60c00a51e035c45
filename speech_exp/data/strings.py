"""The data set of connected digits: strings made from the recordings of another data set, with the same split."""

from __future__ import annotations

from dataclasses import dataclass

from speech_exp.data.digits import Digits
from speech_exp.data.prepared import DataRequest, PreparedData
from speech_exp.data.string_batches import PreparedStrings
from speech_exp.data.string_rules import StringRules
from speech_exp.features.front_end import FrontEnd


@dataclass(eq=False)
class DigitStrings(Digits):
    """Strings of the recordings that the data set `recordings_of` has; each part uses only recordings of its split."""

    recordings_of: str
    strings: StringRules

    targets = "text"
    class_names = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.synthetic_voices:
            raise ValueError(
                f"dataset.synthetic_voices={self.synthetic_voices} cannot be used with dataset={self.name}, whose strings use "
                f"only recorded voices: leave it out"
            )

    @property
    def source(self) -> str:
        return self.recordings_of

    @property
    def utterances_per_epoch(self) -> int:
        speakers = [recording.speaker for recording in self.recorded.parts["train"]]
        return sum(self.strings.count(speakers.count(speaker)) for speaker in sorted(set(speakers)))

    def check(self, front_end: FrontEnd, request: DataRequest) -> None:
        if front_end.extractor.batch_transform is None:
            raise ValueError(
                f"connected digits need features that can be computed per batch, which those of "
                f"{type(front_end.extractor).__name__} cannot: set features=logmel40"
            )
        if front_end.variants:
            raise ValueError(
                "connected digits are drawn anew in each epoch and cannot use variants: set augment=light or none"
            )

    def prepare(self, front_end: FrontEnd, request: DataRequest) -> PreparedData:
        self.check(front_end, request)
        return PreparedStrings(self.recorded, self.strings, front_end, request)
