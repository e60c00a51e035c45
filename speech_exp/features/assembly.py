"""From the recordings of a data set to normalised features of its parts on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speech_exp.data.batches import InMemoryUtterances
from speech_exp.data.digits import LoadedDigits
from speech_exp.data.recordings import Dropped
from speech_exp.data.splits import SPLITS
from speech_exp.features import mfcc
from speech_exp.features.cache import cached_features, code_version
from speech_exp.features.mfcc import FeatureExtractor
from speech_exp.features.normalization import Normalizer


@dataclass(frozen=True)
class Features:
    """Parts by name, and every recording of the data set that is not in them, with the reason."""

    parts: dict[str, InMemoryUtterances]
    dropped: list[Dropped]


def assemble(
    loaded: LoadedDigits,
    extractor: FeatureExtractor,
    description: dict[str, Any],
    normalizer: Normalizer,
    cache_folder: Path,
    device: torch.device,
) -> Features:
    """Features from the cache, normalised by statistics of the training part (taken here unless they were loaded).

    A training recording with bad audio is dropped; one of validation or test is an error, for a metric over fewer
    recordings would not be the metric that was asked for.
    """
    cached = cached_features(
        cache_folder,
        {**description, "data": loaded.fingerprint, "code": code_version(mfcc)},
        [recording.id for recording in loaded.recordings],
        lambda position: extractor(loaded.waveform(position)),
    )
    _refuse_bad_evaluation_audio(loaded, cached.dropped)
    position = {recording_id: number for number, recording_id in enumerate(cached.ids)}
    chosen = {
        name: torch.tensor([position[r.id] for r in loaded.parts[name] if r.id in position], dtype=torch.int64)
        for name in SPLITS
    }
    # A copy in memory: the file is mapped read-only, and is read once from front to back.
    frames_NF, lengths_U = torch.tensor(cached.frames_NF), torch.from_numpy(cached.lengths_U)
    starts_U = lengths_U.cumsum(0) - lengths_U
    if normalizer.mean_F is None:
        in_train_U = torch.zeros(len(lengths_U), dtype=torch.bool)
        in_train_U[chosen["train"]] = True
        normalizer.fit(frames_NF[torch.repeat_interleave(in_train_U, lengths_U)])
    frames_NF = normalizer(frames_NF, lengths_U).to(device)
    labels = {recording.id: recording.label for recording in loaded.recordings}
    parts = {}
    for name, chosen_U in chosen.items():
        ids = [cached.ids[number] for number in chosen_U.tolist()]
        targets_U = torch.tensor([labels[recording_id] for recording_id in ids], device=device)
        parts[name] = InMemoryUtterances(
            frames_NF, starts_U[chosen_U].unsqueeze(0), lengths_U[chosen_U].unsqueeze(0), targets_U, ids
        )
    return Features(parts, [*loaded.dropped, *cached.dropped])


def _refuse_bad_evaluation_audio(loaded: LoadedDigits, dropped: list[Dropped]) -> None:
    reasons = {item.id: item.reason for item in dropped}
    for name in ("validation", "test"):
        for recording in loaded.parts[name]:
            if recording.id in reasons:
                raise ValueError(f"a {name} recording cannot be used: {reasons[recording.id]}")
