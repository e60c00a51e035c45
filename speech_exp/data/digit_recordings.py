"""The recordings of spoken digits, read into memory and split into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech_exp.data.audio import decode_recording
from speech_exp.data.recordings import Dropped, Recording, refuse_too_many
from speech_exp.data.splits import Parts


@dataclass(frozen=True)
class DigitRecordings:
    """All recordings of a data set, their file contents, and the split into parts."""

    recordings: list[Recording]
    contents: list[bytes]
    parts: Parts
    dropped: list[Dropped]  # files that are not recordings of this data set
    fingerprint: str
    sample_rate_hz: int
    max_dropped_share: float

    def waveform(self, position: int) -> np.ndarray:
        """Return the waveform (N,) float32 of recording `position`; `AudioError` if its file is bad."""
        return decode_recording(self.contents[position], self.recordings[position].path.name, self.sample_rate_hz)

    def refuse_bad_audio(self, bad: Sequence[Dropped]) -> list[Dropped]:
        """Return everything dropped, including recordings with `bad` audio; ValueError if the data set cannot do without.

        A validation or test recording is never dropped: a metric over fewer recordings would not be comparable.
        """
        reasons = {item.id: item.reason for item in bad}
        for part in ("validation", "test"):
            for recording in self.parts[part]:
                if recording.id in reasons:
                    raise ValueError(f"the {part} recording {recording.id} cannot be used: {reasons[recording.id]}")
        dropped = [*self.dropped, *bad]
        refuse_too_many(dropped, len(self.recordings) + len(self.dropped), self.max_dropped_share)
        if all(recording.id in reasons for recording in self.parts["train"]):
            raise ValueError(f"no training recording can be used, the first because {bad[0].reason}")
        return dropped
