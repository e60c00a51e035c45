"""What parts of any kind hold, told without making features of them where that is possible.

Shape letters: N samples, U utterances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from speech_exp.data.batches import Batch, BatchSize, Utterances
from speech_exp.data.digits import LoadedDigits
from speech_exp.data.gigaspeech import LoadedCuts
from speech_exp.data.recordings import Dropped
from speech_exp.features.assembly import Features
from speech_exp.features.cut_batches import CutUtterances
from speech_exp.features.speed import change_speed
from speech_exp.features.string_batches import StringUtterances


@dataclass(frozen=True)
class Survey:
    """Utterances of one part before features are made; of digits its recordings, without synthetic voices.

    Args:
        samples_U: of each utterance at speed 1.
        id, text, waveform: of an utterance by its number; the text of a class is its name.
        speeds: of which each training batch draws one.
    """

    samples_U: np.ndarray
    id: Callable[[int], str]
    text: Callable[[int], str]
    waveform: Callable[[int], np.ndarray]
    speeds: list[float]

    def __len__(self) -> int:
        return len(self.samples_U)

    def heard(self, number: int, speed: float) -> np.ndarray:
        """Waveform (N,) at a speed, as features are made of it in training."""
        waveform_N = torch.from_numpy(self.waveform(number))
        return change_speed(waveform_N.unsqueeze(0), torch.tensor([len(waveform_N)]), speed)[0][0].numpy()


def survey(part: Utterances, name: str, loaded: Any) -> Survey:
    """Of the part `name` of a data set of any kind."""
    if isinstance(part, CutUtterances):
        return _of_cuts(part, name, loaded)
    if isinstance(part, StringUtterances):
        return _of_strings(part)
    return _of_recordings(part, loaded)


def _of_cuts(part: CutUtterances, name: str, loaded: LoadedCuts) -> Survey:
    table, reader, chosen_U = part.table, loaded.reader[name], part.chosen_U
    return Survey(
        table.samples_U[chosen_U],
        lambda number: table.id(int(chosen_U[number])),
        lambda number: table.text(int(chosen_U[number])),
        lambda number: reader(int(chosen_U[number])),
        part.speeds,
    )


def _of_strings(part: StringUtterances) -> Survey:
    """The fixed strings; each epoch of training draws others by the same rules."""
    strings = part.strings
    return Survey(
        np.array([part.waveforms.samples(string) for string in strings]),
        lambda number: strings[number].id,
        lambda number: strings[number].text,
        part.waveform,
        part.speeds,
    )


def _of_recordings(part: Utterances, loaded: LoadedDigits) -> Survey:
    place = {recording.id: number for number, recording in enumerate(loaded.recordings)}
    places = [place[name] for name in part.ids if name in place]
    recordings = [loaded.recordings[number] for number in places]
    return Survey(
        np.array([len(loaded.waveform(number)) for number in places]),
        lambda number: recordings[number].id,
        lambda number: str(recordings[number].label),
        lambda number: loaded.waveform(places[number]),
        [1.0],
    )


def every_dropped(features: Features) -> Iterator[Dropped]:
    """Each utterance that is in no part, once; the lists of `Features` name only the first of each reason."""
    cuts = [part for part in features.parts.values() if isinstance(part, CutUtterances)]
    reasons = {reason for part in cuts for reason in part.left_out}
    others = {item.id: item for item in features.dropped if item.reason not in reasons}
    for part in cuts:
        for reason, numbers_N in part.left_out.items():
            for number in numbers_N.tolist():
                item = Dropped(part.table.id(number), reason)
                others.pop(item.id, None)
                yield item
    yield from others.values()


def batch_shapes(part: Utterances, size: BatchSize, generator: torch.Generator) -> np.ndarray:
    """Of each batch of an epoch its utterances, the frames that each is padded to, and the frames of all without padding.

    Utterances that stay on disk are not read for it: their frames are those at speed 1.
    """
    if isinstance(part, CutUtterances):
        planned = part.plan(size).epoch(int(torch.randint(2**62, (), generator=generator)))
        rows = [(len(batch.positions_N), batch.frames, part.frames_U[batch.positions_N].sum()) for batch in planned]
    else:
        batches = part.shuffled(size, generator)
        rows = [(len(batch.ids), batch.features_BTF.shape[1], int(batch.lengths_B.sum())) for batch in batches]
    return np.array(rows, dtype=np.int64)


def first_batch(part: Utterances, size: BatchSize, generator: torch.Generator) -> Batch:
    """The first batch of an epoch of training that is not all bad audio, read by this process alone."""
    if isinstance(part, CutUtterances):
        part = replace(part, workers=0)
    for batch in part.shuffled(size, generator):
        if batch.ids:
            return batch
    raise ValueError("no audio of the training part could be read: restore it, or change dataset.root")
