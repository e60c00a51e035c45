"""Features of spoken digits: extracted once into the cache, normalised, and kept on the device as one tensor.

Shape letters: N frames of all utterances concatenated, U utterances, W variants, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speech_exp.data import audio
from speech_exp.data.batches import InMemoryUtterances, concatenate
from speech_exp.data.digit_recordings import DigitRecordings
from speech_exp.data.prepared import DataRequest, PreparedData, Survey
from speech_exp.data.recordings import Dropped, Origin
from speech_exp.data.splits import SPLITS
from speech_exp.data.synthetic import espeak, synthesize
from speech_exp.data.synthetic import voices as voices_module
from speech_exp.data.synthetic.speakers import SyntheticVoices
from speech_exp.features import distortion, mfcc
from speech_exp.features import extractor as extractor_module
from speech_exp.features.cache import CachedFeatures, cached_features, code_version
from speech_exp.features.front_end import FrontEnd

_CODE = (extractor_module, mfcc, distortion)


@dataclass(frozen=True)
class _Source:
    """A set of recordings cached together; `waveform(variant, position)` returns the samples of one."""

    description: dict[str, object]
    ids: list[str]
    labels: list[int]
    waveform: Callable[[int, int], np.ndarray]

    def cached(self, front_end: FrontEnd, folder: Path) -> list[CachedFeatures]:
        """Return the features of each variant."""
        count = front_end.variants.count if front_end.variants else 1
        return [self._variant(front_end, folder, variant, count) for variant in range(count)]

    def _variant(self, front_end: FrontEnd, folder: Path, variant: int, count: int) -> CachedFeatures:
        description = {**front_end.description, **self.description, "variant": variant}
        if variant == 0:  # the same cache entry with and without other variants
            description.pop("variants", None)

        def extract(position: int) -> np.ndarray:
            return front_end.extract(self.waveform(variant, position), self.ids[position], variant)

        title = "features" if count == 1 else f"features, variant {variant + 1} of {count}"
        return cached_features(folder, description, self.ids, extract, title)


class PreparedDigits(PreparedData):
    """The parts of a data set of digits, normalised with statistics of the training part.

    With variants, each training utterance has that many, and the data set's synthetic voices are added: each variant of
    such an utterance has another voice. A training recording with bad audio is dropped.
    """

    def __init__(
        self, recorded: DigitRecordings, synthetic_voices: int, front_end: FrontEnd, request: DataRequest
    ) -> None:
        self._recorded, self.folder = recorded, request.cache_folder
        recordings = recorded.recordings
        source = _Source(
            {"data": recorded.fingerprint, "code": code_version(*_CODE, audio)},
            [recording.id for recording in recordings],
            [recording.label for recording in recordings],
            lambda _variant, position: recorded.waveform(position),
        )
        cached = source.cached(front_end, request.cache_folder)
        self.dropped = recorded.refuse_bad_audio([Dropped(*item) for item in cached[0].dropped.items()])
        self._position = {recording.id: position for position, recording in enumerate(recordings)}
        row = {recording_id: number for number, recording_id in enumerate(cached[0].ids)}
        chosen = {
            part: torch.tensor([row[one.id] for one in recorded.parts[part] if one.id in row], dtype=torch.int64)
            for part in SPLITS
        }
        front_end.fit(_frames_of(cached[0], chosen["train"]))
        everyone = _utterances(cached, source, front_end, request.device)
        parts = {part: everyone.chosen(chosen_U) for part, chosen_U in chosen.items()}
        if front_end.variants and synthetic_voices:
            voices = _synthetic(synthetic_voices, front_end.variants.count, recorded.sample_rate_hz)
            spoken = _utterances(voices.cached(front_end, request.cache_folder), voices, front_end, request.device)
            parts["train"] = concatenate(parts["train"], spoken)
        self.parts = parts

    def waveform(self, part: str, number: int) -> np.ndarray:
        return self._recorded.waveform(self._position[self.parts[part].ids[number]])

    def origin(self, part: str, number: int) -> Origin:
        position = self._position.get(self.parts[part].ids[number])
        return Origin() if position is None else Origin(self._recorded.recordings[position].speaker)

    def survey(self, part: str) -> Survey:
        positions = [self._position[name] for name in self.parts[part].ids if name in self._position]
        recordings = [self._recorded.recordings[position] for position in positions]
        return Survey(
            np.array([len(self._recorded.waveform(position)) for position in positions]),
            lambda number: recordings[number].id,
            lambda number: str(recordings[number].label),
            lambda number: self._recorded.waveform(positions[number]),
            [1.0],
        )


def _synthetic(voice_count: int, variants: int, sample_rate_hz: int) -> _Source:
    """Return the synthetic recordings: the voices are divided among the variants, and each voice speaks each digit once."""
    speakers = voice_count // variants
    if not speakers:
        raise ValueError(
            f"dataset.synthetic_voices={voice_count} is less than augment.variants.count={variants}, "
            f"but each variant needs different voices: raise dataset.synthetic_voices or set it to 0"
        )
    voices = SyntheticVoices(speakers * variants)
    digits = [(speaker, digit) for speaker in range(speakers) for digit in range(10)]

    def waveform(variant: int, position: int) -> np.ndarray:
        speaker, digit = digits[position]
        return voices.waveform(variant * speakers + speaker, digit, sample_rate_hz)

    return _Source(
        {"synthetic": speakers, "code": code_version(*_CODE, espeak, synthesize, voices_module)},
        [f"{digit}_synthetic_{speaker}" for speaker, digit in digits],
        [digit for _, digit in digits],
        waveform,
    )


def _frames_of(cached: CachedFeatures, chosen_U: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the frames (N, F) of the chosen utterances before normalisation, in the order of the cache."""
    lengths_U = torch.from_numpy(cached.lengths_U)
    is_chosen_U = torch.zeros(len(lengths_U), dtype=torch.bool)
    is_chosen_U[chosen_U] = True
    yield torch.tensor(cached.frames_NF)[torch.repeat_interleave(is_chosen_U, lengths_U)]


def _utterances(
    variants: list[CachedFeatures], source: _Source, front_end: FrontEnd, device: torch.device
) -> InMemoryUtterances:
    """Return all variants of all usable recordings of a source, normalised and concatenated on the device."""
    label = dict(zip(source.ids, source.labels, strict=True))
    frames, starts, first = [], [], 0
    for cached in variants:
        # Copy the read-only mapped file into memory, which reads it once from start to end.
        lengths_U = torch.from_numpy(cached.lengths_U)
        frames.append(front_end.normalizer(torch.tensor(cached.frames_NF), lengths_U))
        starts.append(first + lengths_U.cumsum(0) - lengths_U)
        first += len(frames[-1])
    return InMemoryUtterances(
        torch.cat(frames).to(device),
        torch.stack(starts),
        torch.stack([torch.from_numpy(cached.lengths_U) for cached in variants]),
        torch.tensor([label[name] for name in variants[0].ids], device=device),
        variants[0].ids,
    )
