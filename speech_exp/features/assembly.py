"""From the recordings of a data set to normalised features of its parts on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speech_exp.data import audio, espeak, synthesize
from speech_exp.data import voices as voices_module
from speech_exp.data.batches import InMemoryUtterances, Utterances, joined
from speech_exp.data.digits import LoadedDigits
from speech_exp.data.recordings import Dropped
from speech_exp.data.splits import SPLITS
from speech_exp.data.synthetic import SyntheticVoices
from speech_exp.features import distortion, mfcc
from speech_exp.features.cache import CachedFeatures, cached_features, code_version
from speech_exp.features.distortion import Variants
from speech_exp.features.mfcc import FeatureExtractor
from speech_exp.features.normalization import Normalizer


@dataclass(frozen=True)
class Features:
    """Parts by name, every recording of the data set that is not in them, with the reason, and waveforms (N,) of the test part.

    `folder` is where what was computed for them is kept, None where nothing is.
    """

    parts: Mapping[str, Utterances]
    dropped: list[Dropped]
    test_waveform: Callable[[int], np.ndarray]
    folder: Path | None


@dataclass(frozen=True)
class _Source:
    """Recordings that come from one place; `extract(variant, position)` gives the features of one."""

    description: dict[str, Any]
    ids: list[str]
    labels: dict[str, int]
    extract: Callable[[int, int], np.ndarray]


def assemble(
    loaded: LoadedDigits,
    extractor: FeatureExtractor,
    description: dict[str, Any],
    normalizer: Normalizer,
    cache_folder: Path,
    device: torch.device,
    variants: Variants | None = None,
) -> Features:
    """Features from the cache, normalised by statistics of the training part (taken here unless they were loaded).

    With `variants`, training utterances hold as many, and the data set's synthetic voices join them: each of their
    utterances is spoken by another voice in each variant. A training recording with bad audio is dropped; one of
    validation or test is an error, for a metric over fewer recordings would not be the metric that was asked for.
    """
    count = variants.count if variants else 1
    recorded = [
        _cached(_recordings(loaded, extractor, description, variants), number, count, cache_folder)
        for number in range(count)
    ]
    refuse_bad_evaluation_audio(loaded, recorded[0].dropped)
    position = {recording_id: number for number, recording_id in enumerate(recorded[0].ids)}
    chosen = {
        name: torch.tensor([position[r.id] for r in loaded.parts[name] if r.id in position], dtype=torch.int64)
        for name in SPLITS
    }
    if not len(chosen["train"]):
        raise ValueError(f"no training recording can be used, the first because {recorded[0].dropped[0].reason}")
    if normalizer.mean_F is None:
        lengths_U = torch.from_numpy(recorded[0].lengths_U)
        in_train_U = torch.zeros(len(lengths_U), dtype=torch.bool)
        in_train_U[chosen["train"]] = True
        normalizer.fit(torch.tensor(recorded[0].frames_NF)[torch.repeat_interleave(in_train_U, lengths_U)])
    packed = _pack(recorded, normalizer, device)
    labels = {recording.id: recording.label for recording in loaded.recordings}
    parts = {name: _part(packed, chosen[name], labels, recorded[0].ids) for name in SPLITS}
    if variants and loaded.synthetic_voices:
        source = _synthetic(loaded, extractor, description, variants)
        spoken = [_cached(source, number, count, cache_folder) for number in range(count)]
        everyone = torch.arange(len(source.ids))
        parts["train"] = joined(
            parts["train"], _part(_pack(spoken, normalizer, device), everyone, source.labels, source.ids)
        )
    place = {recording.id: number for number, recording in enumerate(loaded.recordings)}
    test_ids = parts["test"].ids
    return Features(
        parts,
        [*loaded.dropped, *recorded[0].dropped],
        lambda number: loaded.waveform(place[test_ids[number]]),
        cache_folder,
    )


def _recordings(
    loaded: LoadedDigits, extractor: FeatureExtractor, description: dict[str, Any], variants: Variants | None
) -> _Source:
    ids = [recording.id for recording in loaded.recordings]

    def extract(number: int, position: int) -> np.ndarray:
        waveform_N = loaded.waveform(position)
        if variants is None:
            return extractor(waveform_N)
        return variants.features(extractor, waveform_N, number, _generator(ids[position], number))

    return _Source(
        {**description, "data": loaded.fingerprint, "code": code_version(mfcc, distortion, audio)},
        ids,
        {recording.id: recording.label for recording in loaded.recordings},
        extract,
    )


def _synthetic(
    loaded: LoadedDigits, extractor: FeatureExtractor, description: dict[str, Any], variants: Variants
) -> _Source:
    """As many utterances of each digit as there are voices for one variant; each variant has voices of its own."""
    speakers = loaded.synthetic_voices // variants.count
    if not speakers:
        raise ValueError(
            f"dataset.synthetic_voices={loaded.synthetic_voices} are fewer than augment.variants.count={variants.count}, "
            f"and each variant takes other voices: raise dataset.synthetic_voices or set it to 0"
        )
    voices = SyntheticVoices(speakers * variants.count)
    digits = [(speaker, digit) for speaker in range(speakers) for digit in range(10)]
    ids = [f"{digit}_synthetic_{speaker}" for speaker, digit in digits]

    def extract(number: int, position: int) -> np.ndarray:
        speaker, digit = digits[position]
        waveform_N = voices.waveform(number * speakers + speaker, digit, loaded.sample_rate_hz)
        return variants.features(extractor, waveform_N, number, _generator(ids[position], number))

    code = code_version(mfcc, distortion, espeak, synthesize, voices_module)
    labels = {recording_id: digit for recording_id, (_, digit) in zip(ids, digits, strict=True)}
    return _Source({**description, "synthetic": speakers, "code": code}, ids, labels, extract)


def _cached(source: _Source, number: int, count: int, cache_folder: Path) -> CachedFeatures:
    """Variant `number` of a source; variant 0 is the same entry with and without others beside it."""
    description = source.description | {"variant": number}
    if number == 0:
        description = {key: value for key, value in description.items() if key != "variants"}
    title = "features" if count == 1 else f"features, variant {number + 1} of {count}"
    return cached_features(cache_folder, description, source.ids, partial(source.extract, number), title)


def _generator(recording_id: str, number: int) -> np.random.Generator:
    """Of one variant of one recording, whichever others are computed beside it."""
    digest = hashlib.sha256(f"{recording_id}:{number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True)
class _Packed:
    frames_NF: torch.Tensor
    starts_WU: torch.Tensor
    lengths_WU: torch.Tensor


def _pack(variants: Sequence[CachedFeatures], normalizer: Normalizer, device: torch.device) -> _Packed:
    """All variants normalised, one after the other on the device."""
    frames, starts, first = [], [], 0
    for cached in variants:
        # A copy in memory: the file is mapped read-only, and is read once from front to back.
        lengths_U = torch.from_numpy(cached.lengths_U)
        frames.append(normalizer(torch.tensor(cached.frames_NF), lengths_U))
        starts.append(first + lengths_U.cumsum(0) - lengths_U)
        first += len(frames[-1])
    lengths_WU = torch.stack([torch.from_numpy(cached.lengths_U) for cached in variants])
    return _Packed(torch.cat(frames).to(device), torch.stack(starts), lengths_WU)


def _part(packed: _Packed, chosen_U: torch.Tensor, labels: dict[str, int], ids: list[str]) -> InMemoryUtterances:
    names = [ids[number] for number in chosen_U.tolist()]
    targets_U = torch.tensor([labels[name] for name in names], device=packed.frames_NF.device)
    return InMemoryUtterances(
        packed.frames_NF, packed.starts_WU[:, chosen_U], packed.lengths_WU[:, chosen_U], targets_U, names
    )


def refuse_bad_evaluation_audio(loaded: LoadedDigits, dropped: list[Dropped]) -> None:
    reasons = {item.id: item.reason for item in dropped}
    for name in ("validation", "test"):
        for recording in loaded.parts[name]:
            if recording.id in reasons:
                raise ValueError(f"the {name} recording {recording.id} cannot be used: {reasons[recording.id]}")
