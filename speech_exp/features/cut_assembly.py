"""From the tables of a corpus to its parts, read batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from speech_exp.data.gigaspeech import LoadedCuts
from speech_exp.data.selection import Limits, named, speech
from speech_exp.features import logmel
from speech_exp.features.assembly import Features
from speech_exp.features.cache import code_version
from speech_exp.features.cut_batches import CutUtterances, Reader
from speech_exp.features.logmel import LogMel
from speech_exp.features.mfcc import FeatureExtractor
from speech_exp.features.normalization import Normalizer
from speech_exp.features.speed import samples_after
from speech_exp.features.stored import StoredFeatures, open_features, store_features
from speech_exp.progress import progress

_STATISTICS_BATCH = 32


def assemble_cuts(
    loaded: LoadedCuts,
    limits: Limits,
    extractor: FeatureExtractor,
    description: dict[str, Any],
    normalizer: Normalizer,
    encode: Callable[[str], list[int]],
    frames_per_state: int,
    speeds: list[float],
    workers: int,
    device: torch.device,
) -> Features:
    """Each part of a corpus, normalised by statistics of a sample of the training part (taken here unless they were loaded).

    Args:
        description: of the extractor, which stored features are found by.
        encode: text to character ids.
        frames_per_state: frames that the encoder makes one of.
        speeds: of the training batches.
        workers: processes that read, of each part.
    """
    if not isinstance(extractor, LogMel):
        raise ValueError(
            f"speech read batch by batch has log-mel features, which are computed on the device, got {type(extractor).__name__}: "
            "set features=logmel80"
        )
    stored = loaded.storage == "features"
    if stored and speeds != [1.0]:
        raise ValueError(
            f"augment.speeds={speeds} change waveforms, but dataset.storage=features reads features: set dataset.storage=audio or "
            "shar, or augment.speeds=null"
        )
    parts: dict[str, CutUtterances] = {}
    dropped, transform, cpu = [], extractor.transform, torch.device("cpu")
    for name, table in loaded.tables.items():
        frames_U = _frames(table.samples_U, transform, 1.0)
        if name == "train":
            fewest_U, most_U = (_frames(table.samples_U, transform, speed) for speed in (max(speeds), min(speeds)))
            chosen_U, refused = limits.choose(table, loaded.sample_rate_hz, fewest_U, most_U, frames_per_state)
        else:
            chosen_U, refused = speech(table, name)
        left_out = named(table, refused)
        read: Reader = loaded.reader[name]
        if stored:
            read = features = _stored(loaded, name, extractor, description, workers)
            chosen_U = chosen_U[features.frames_U[chosen_U] > 0]
            left_out += features.dropped
        dropped += left_out
        if not len(chosen_U):
            raise ValueError(
                f"no {name} utterance of {len(table):,} can be used, the first because {left_out[0].reason}: change "
                "dataset.limits or dataset.subset"
            )
        parts[name] = CutUtterances(
            name,
            table,
            chosen_U,
            frames_U[chosen_U],
            read,
            None if stored else transform,
            normalizer,
            encode,
            speeds,
            workers,
            cpu,
            refused,
        )
    train, test = parts["train"], parts["test"]
    train.bad.extend(dropped)
    if normalizer.mode == "global" and normalizer.mean_F is None:
        normalizer.fit(_sampled_frames(train.to(device)))
    on_device = {name: part.to(device) for name, part in parts.items()}  # the extractor itself stays on the CPU
    return Features(
        on_device, train.bad, lambda number: loaded.reader["test"](int(test.chosen_U[number])), loaded.folder
    )


def _frames(samples_U: np.ndarray, transform: logmel.LogMelTransform, speed: float) -> np.ndarray:
    return 1 + samples_after(np.asarray(samples_U), speed) // transform.hop


def _stored(
    loaded: LoadedCuts, part: str, extractor: FeatureExtractor, description: dict[str, Any], workers: int
) -> StoredFeatures:
    """Computed first where they are missing."""
    key = json.dumps({**description, "code": code_version(logmel)}, sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = loaded.tables[part].manifest.parent / f"features-{digest}"
    store_features(loaded.tables[part], loaded.reader[part], extractor, folder, workers)
    features = open_features(folder)
    if features.dropped and part != "train":
        raise ValueError(f"the {part} utterance {features.dropped[0].id} cannot be used: {features.dropped[0].reason}")
    return features


def _sampled_frames(train: CutUtterances) -> torch.Tensor:
    """Features (N, F) of a sample of the training part on the CPU, before normalisation."""
    frames = []
    with progress("statistics of the features", len(train.sampled())) as bar:
        for features_BTF, lengths_B in train.unnormalized(_STATISTICS_BATCH):
            frame_T = torch.arange(features_BTF.shape[1], device=features_BTF.device)
            frames.append(features_BTF[frame_T < lengths_B.unsqueeze(1)].cpu())
            bar.advance(len(lengths_B))
    return torch.cat(frames)
