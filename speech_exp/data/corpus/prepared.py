"""The parts of a corpus on disk, read batch by batch.

Shape letters: N frames, F features, U utterances.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from speech_exp import ranks
from speech_exp.data.corpus.batches import CutUtterances, Reader
from speech_exp.data.corpus.cuts import CutTable
from speech_exp.data.corpus.readers import WaveformReader
from speech_exp.data.corpus.selection import Limits, list_dropped, scored_utterances
from speech_exp.data.corpus.stored_features import LAYOUT, StoredFeatures, open_features, store_features
from speech_exp.data.prepared import DataRequest, PreparedData, Survey
from speech_exp.data.recordings import Dropped, Origin
from speech_exp.features import extractor, logmel
from speech_exp.features.cache import code_version
from speech_exp.features.extractor import BatchTransform
from speech_exp.features.front_end import FrontEnd
from speech_exp.features.speed import samples_after
from speech_exp.progress import progress

Storage = Literal["audio", "features", "shar"]


@dataclass(frozen=True)
class CorpusTables:
    """The tables of the parts train, validation and test, and what reads their waveforms.

    Args:
        fingerprint: SHA-256 over the ids, times and texts of all utterances and the checksums of their audio. It does not
            depend on the storage or on the folder of the release.
        folder: contains the prepared parts; features may be stored there too.
    """

    tables: Mapping[str, CutTable]
    readers: Mapping[str, WaveformReader]
    fingerprint: str
    sample_rate_hz: int
    folder: Path
    storage: Storage
    max_dropped_share: float


class PreparedCuts(PreparedData):
    """The parts of a corpus, normalised with statistics of a sample of the training part.

    Args:
        limits: limits on training utterances.
        workers: processes on each machine that read each part.
    """

    parts: dict[str, CutUtterances]

    def __init__(
        self, corpus: CorpusTables, limits: Limits, workers: int, front_end: FrontEnd, request: DataRequest
    ) -> None:
        transform = front_end.extractor.batch_transform
        assert transform is not None
        self._corpus, self.folder = corpus, corpus.folder
        workers = -(-workers // ranks.local_rank_and_size()[1])
        parts, dropped = {}, []
        for name, table in corpus.tables.items():
            frames_U = _frames(table, transform, 1.0)
            if name == "train":
                fewest_U, most_U = (_frames(table, transform, pick(front_end.speeds)) for pick in (max, min))
                chosen_U, refused = limits.choose(
                    table, corpus.sample_rate_hz, fewest_U, most_U, request.frames_per_state
                )
            else:
                chosen_U, refused = scored_utterances(table, name)
            left_out, read = list_dropped(table, refused), corpus.readers[name]
            reader: Reader = read
            if corpus.storage == "features":
                reader = features = _stored(corpus, name, front_end, workers)
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
                reader,
                None if corpus.storage == "features" else transform,
                front_end.normalizer,
                request.encode,
                front_end.speeds,
                workers,
                torch.device("cpu"),
                refused,
                max_dropped_share=corpus.max_dropped_share,
            )
        train = parts["train"]
        train.bad.extend(dropped)
        train.refuse_too_many(dropped)
        front_end.fit(_sampled_frames(train.to(request.device)))
        self.dropped = train.bad  # grows when training meets bad audio
        self.parts = {name: part.to(request.device) for name, part in parts.items()}

    def waveform(self, part: str, number: int) -> np.ndarray:
        return self._corpus.readers[part](int(self.parts[part].chosen_U[number]))

    def origin(self, part: str, number: int) -> Origin:
        utterances = self.parts[part]
        return utterances.table.origin(int(utterances.chosen_U[number]))

    def survey(self, part: str) -> Survey:
        utterances, reader = self.parts[part], self._corpus.readers[part]
        table, chosen_U = utterances.table, utterances.chosen_U
        return Survey(
            table.samples_U[chosen_U],
            lambda number: table.id(int(chosen_U[number])),
            lambda number: table.text(int(chosen_U[number])),
            lambda number: reader(int(chosen_U[number])),
            utterances.speeds,
        )

    def refuse_too_many(self, dropped: Sequence[Dropped]) -> None:
        self.parts["train"].refuse_too_many(dropped)

    def every_dropped(self) -> Iterator[Dropped]:
        reasons = {reason for part in self.parts.values() for reason in part.left_out}
        others = {item.id: item for item in self.dropped if item.reason not in reasons}
        for part in self.parts.values():
            for reason, numbers_U in part.left_out.items():
                for number in numbers_U.tolist():
                    item = Dropped(part.table.id(number), reason)
                    others.pop(item.id, None)
                    yield item
        yield from others.values()

    def dropped_by_reason(self, dropped: Iterable[Dropped]) -> Counter[str]:
        counts = Counter(
            {reason: len(numbers_U) for part in self.parts.values() for reason, numbers_U in part.left_out.items()}
        )
        return counts + Counter(item.reason for item in dropped if item.reason not in counts)


def _frames(table: CutTable, transform: BatchTransform, speed: float) -> np.ndarray:
    return 1 + samples_after(np.asarray(table.samples_U), speed) // transform.hop


def _stored(corpus: CorpusTables, part: str, front_end: FrontEnd, workers: int) -> StoredFeatures:
    """Open the stored features of a part, after computing them if they are missing."""
    key = {**front_end.description["extractor"], "code": code_version(extractor, logmel), "layout": LAYOUT}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    table = corpus.tables[part]
    folder = table.manifest.parent / f"features-{digest}"
    store_features(table, corpus.readers[part], front_end.extractor, folder, workers)
    features = open_features(folder)
    if features.dropped and part != "train":
        raise ValueError(f"the {part} utterance {features.dropped[0].id} cannot be used: {features.dropped[0].reason}")
    return features


def _sampled_frames(train: CutUtterances) -> Iterator[torch.Tensor]:
    """Yield the frames (N, F) of a sample of the training part before normalisation, on the CPU."""
    with progress("statistics of the features", len(train.sampled())) as bar:
        for features_BTF, lengths_B in train.unnormalized():
            frame_T = torch.arange(features_BTF.shape[1], device=features_BTF.device)
            yield features_BTF[frame_T < lengths_B.unsqueeze(1)].cpu()
            bar.advance(len(lengths_B))
