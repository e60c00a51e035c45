"""Batches of connected digits, gathered from one tensor on the device with the waveforms of all recordings.

Shape letters: B batch, N samples, T frames, F features, R recordings, S segments (recordings and pauses) of a batch,
U strings, W variants.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import torch

from speech_exp.data.batches import ALL, BatchSize, Share, first_with_audio, shapes_of
from speech_exp.data.digit_recordings import DigitRecordings
from speech_exp.data.prepared import DataRequest, PreparedData, Survey
from speech_exp.data.recordings import Dropped, Origin
from speech_exp.data.splits import SPLITS
from speech_exp.data.string_rules import DigitString, StringRules
from speech_exp.features.batch import Batch
from speech_exp.features.extractor import BatchTransform
from speech_exp.features.front_end import FrontEnd
from speech_exp.features.normalization import Normalizer
from speech_exp.features.speed import change_speed

_POOL_BATCHES = 8  # batches sorted by length together, as in speech_exp.data.batches
_STATISTICS_BATCH = 32
_LEVEL_S = 0.01  # frame length for measuring the level of the background
_LEVEL_PERCENTILE = 5  # the background level is this percentile of the levels of all frames
_NOISE_SEED = 0


@dataclass(frozen=True)
class Waveforms:
    """The samples of all recordings concatenated, followed by white noise of deviation 1.

    Args:
        starts_R, lengths_R: first sample and number of samples of each recording; length 0 if it cannot be used.
        levels_R: deviation of the noise that matches the background of each recording.
        noise_start: first sample of the noise.
    """

    samples_N: torch.Tensor
    starts_R: list[int]
    lengths_R: list[int]
    levels_R: list[float]
    noise_start: int

    def samples(self, string: DigitString) -> int:
        return sum(string.pauses) + sum(self.lengths_R[position] for position in string.recordings)

    def gather(self, strings: list[DigitString]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the waveforms (B, N) of strings, zero in the padding, and their numbers of samples (B,)."""
        device = self.samples_N.device
        starts_S, lengths_S, gains_S, rows_S = (
            torch.tensor(column) for column in zip(*self._segments(strings), strict=True)
        )
        lengths_B = torch.zeros(len(strings), dtype=torch.int64).index_add_(0, rows_S, lengths_S)
        longest, total = int(lengths_B.max()), int(lengths_B.sum())
        before_S, before_B = lengths_S.cumsum(0) - lengths_S, lengths_B.cumsum(0) - lengths_B
        # Number the samples of all segments consecutively: adding an offset for the segment gives the position in the store
        # and, with another offset, the position in the batch.
        to_source_S = starts_S - before_S
        to_place_S = rows_S * longest - before_B[rows_S]
        moves_2S = torch.stack([to_source_S, to_place_S]).to(device)
        lengths_S, gains_S = lengths_S.to(device), gains_S.to(device)
        moves_2N = torch.repeat_interleave(moves_2S, lengths_S, dim=1, output_size=total)
        gains_N = torch.repeat_interleave(gains_S, lengths_S, output_size=total)
        source_N, place_N = moves_2N + torch.arange(total, device=device)
        waveform_BN = torch.zeros(len(strings) * longest, device=device)
        waveform_BN[place_N] = self.samples_N[source_N] * gains_N
        return waveform_BN.view(len(strings), longest), lengths_B.to(device)

    def _segments(self, strings: list[DigitString]) -> Iterator[tuple[int, int, float, int]]:
        """Yield start, samples, gain and row of each pause and recording, in order."""
        for row, string in enumerate(strings):
            level = median(self.levels_R[position] for position in string.recordings)
            noise = self.noise_start + string.noise_start
            for pause, position in zip(string.pauses, (*string.recordings, None), strict=True):
                yield noise, pause, level, row
                noise += pause
                if position is not None:
                    yield self.starts_R[position], self.lengths_R[position], 1.0, row


@dataclass(frozen=True)
class StringUtterances:
    """One part of a data set as strings of digits, with the interface `Utterances`.

    Args:
        strings: the fixed strings.
        redraw: draws the strings of an epoch; None if `shuffled` uses the fixed strings too.
        speeds: each training batch draws one of them.
        normalizer: has its statistics on the device.
        encode: converts text to character ids.
    """

    strings: list[DigitString]
    redraw: Callable[[random.Random], list[DigitString]] | None
    waveforms: Waveforms
    transform: BatchTransform
    normalizer: Normalizer
    encode: Callable[[str], list[int]]
    speeds: Sequence[float]

    def __len__(self) -> int:
        """Return the number of strings in an epoch."""
        return len(self.strings)

    @property
    def ids(self) -> list[str]:
        """Ids of the fixed strings."""
        return [string.id for string in self.strings]

    @property
    def lengths_WU(self) -> torch.Tensor:
        """Number of frames of the fixed strings, with one variant only."""
        return self._frames(self.strings).unsqueeze(0)

    def to(self, device: torch.device) -> StringUtterances:
        return replace(
            self,
            waveforms=replace(self.waveforms, samples_N=self.waveforms.samples_N.to(device)),
            transform=copy.deepcopy(self.transform).to(device),
            normalizer=self.normalizer.to(device),
        )

    def waveform(self, number: int) -> np.ndarray:
        """Return the waveform (N,) of a fixed string."""
        return self.waveforms.gather([self.strings[number]])[0][0].cpu().numpy()

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield the fixed strings in order."""
        for chosen_B in torch.arange(len(self)).split(batch_size):
            yield self._batch([self.strings[number] for number in chosen_B.tolist()])

    def by_length(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """Yield the fixed strings from the shortest to the longest."""
        for chosen_B in share.of(list(self.lengths_WU[0].argsort(stable=True).split(batch_size))):
            yield self._batch([self.strings[number] for number in chosen_B.tolist()])

    sample = by_length

    def batches(self, size: BatchSize) -> int:
        return math.ceil(len(self) / size.of_utterances())

    def shuffled(
        self, size: BatchSize, generator: torch.Generator, start: int = 0, share: Share = ALL
    ) -> Iterator[Batch]:
        """Yield an epoch of batches of strings with similar length, newly drawn if the part has `redraw`."""
        strings, batch_size = self.strings, size.of_utterances()
        if self.redraw is not None:
            strings = self.redraw(random.Random(int(torch.randint(2**62, (), generator=generator))))
        order_U = torch.randperm(len(strings), generator=generator)
        lengths_U = self._frames(strings)[order_U]
        batches: list[torch.Tensor] = []
        for pool in torch.arange(len(strings)).split(_POOL_BATCHES * batch_size):
            batches += pool[lengths_U[pool].argsort(stable=True)].split(batch_size)
        numbers = torch.randperm(len(batches), generator=generator).tolist()
        speeds = [*self.speeds] * len(numbers)
        if len(self.speeds) > 1:
            drawn = torch.randint(len(self.speeds), (len(numbers),), generator=generator).tolist()
            speeds = [self.speeds[number] for number in drawn]
        for number, speed in list(zip(numbers, speeds, strict=False))[start:]:
            yield self._batch([strings[chosen] for chosen in order_U[share.of(batches[number])].tolist()], speed)

    def batch_shapes(self, size: BatchSize, generator: torch.Generator) -> np.ndarray:
        return shapes_of(self.shuffled(size, generator))

    def first_batch(self, size: BatchSize, generator: torch.Generator) -> Batch:
        return first_with_audio(self.shuffled(size, generator))

    def unnormalized(self) -> Iterator[torch.Tensor]:
        """Yield the frames (N, F) of the fixed strings before normalisation, on the CPU."""
        for first in range(0, len(self), _STATISTICS_BATCH):
            features_BTF, lengths_B = self.features(self.strings[first : first + _STATISTICS_BATCH])
            frame_T = torch.arange(features_BTF.shape[1], device=features_BTF.device)
            yield features_BTF[frame_T < lengths_B.unsqueeze(1)].cpu()

    def features(self, strings: list[DigitString], speed: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features (B, T, F) of strings before normalisation, and their numbers of frames (B,)."""
        return self.transform(*change_speed(*self.waveforms.gather(strings), speed))

    def _frames(self, strings: list[DigitString]) -> torch.Tensor:
        return torch.tensor([self.transform.num_frames(self.waveforms.samples(string)) for string in strings])

    def _batch(self, strings: list[DigitString], speed: float = 1.0) -> Batch:
        if not strings:
            return Batch.empty(self.waveforms.samples_N.device)
        features_BTF, lengths_B = self.features(strings, speed)
        features_BTF, device = self.normalizer.batch(features_BTF, lengths_B), features_BTF.device
        codes = [self.encode(string.text) for string in strings]
        targets = torch.tensor([code for one in codes for code in one], dtype=torch.int64)
        target_lengths_B = torch.tensor([len(one) for one in codes], dtype=torch.int64)
        ids = [string.id for string in strings]
        return Batch(features_BTF, lengths_B, targets.to(device), target_lengths_B.to(device), ids)


class PreparedStrings(PreparedData):
    """The strings of each part, normalised with statistics of the fixed training strings.

    The fixed training strings use each training recording once. A training recording with bad audio is dropped.
    """

    def __init__(
        self, recorded: DigitRecordings, rules: StringRules, front_end: FrontEnd, request: DataRequest
    ) -> None:
        transform = front_end.extractor.batch_transform
        assert transform is not None
        waveforms, bad = read_waveforms(recorded, rules)
        self.dropped = recorded.refuse_bad_audio(bad)
        self._recordings = recorded.recordings
        position = {one.id: number for number, one in enumerate(recorded.recordings) if waveforms.lengths_R[number]}
        members = {
            part: {position[one.id]: one for one in recorded.parts[part] if one.id in position} for part in SPLITS
        }
        rate_hz, train = recorded.sample_rate_hz, members["train"]
        normalizer, device = front_end.normalizer, request.device
        unfitted = StringUtterances(
            rules.fixed("train", train, rate_hz),
            partial(rules.draw, train, rate_hz),
            waveforms,
            transform,
            normalizer,
            request.encode,
            front_end.speeds,
        ).to(device)
        front_end.fit(unfitted.unnormalized())
        fitted = replace(unfitted, normalizer=normalizer.to(device))
        self.parts: dict[str, StringUtterances] = {"train": fitted}
        for part in ("validation", "test"):  # all parts share the waveforms on the device
            self.parts[part] = replace(fitted, strings=rules.fixed(part, members[part], rate_hz), redraw=None)

    def waveform(self, part: str, number: int) -> np.ndarray:
        return self.parts[part].waveform(number)

    def origin(self, part: str, number: int) -> Origin:
        return self.parts[part].strings[number].origin(self._recordings)

    def survey(self, part: str) -> Survey:
        """Survey the fixed strings; each training epoch draws new ones by the same rules."""
        utterances = self.parts[part]
        strings = utterances.strings
        return Survey(
            np.array([utterances.waveforms.samples(string) for string in strings]),
            lambda number: strings[number].id,
            lambda number: strings[number].text,
            utterances.waveform,
            utterances.speeds,
        )


def read_waveforms(recorded: DigitRecordings, rules: StringRules) -> tuple[Waveforms, list[Dropped]]:
    """Read all recordings into memory, and list those that cannot be used."""
    waveforms, dropped = [], []
    with ThreadPoolExecutor() as pool:
        for recording, found in zip(
            recorded.recordings, pool.map(partial(_read, recorded), range(len(recorded.recordings))), strict=True
        ):
            if isinstance(found, ValueError):
                dropped.append(Dropped(recording.id, str(found)))
                found = np.zeros(0, dtype=np.float32)
            waveforms.append(found)
    noise = np.random.default_rng(_NOISE_SEED).standard_normal(
        rules.noise_samples(recorded.sample_rate_hz), dtype=np.float32
    )
    lengths_R = [len(waveform_N) for waveform_N in waveforms]
    ends_R = np.cumsum(lengths_R).tolist()
    starts_R = [end - length for end, length in zip(ends_R, lengths_R, strict=True)]
    gain = 10 ** (rules.noise_db / 20)
    levels_R = [gain * _background(waveform_N, recorded.sample_rate_hz) for waveform_N in waveforms]
    samples_N = torch.from_numpy(np.concatenate([*waveforms, noise]))
    return Waveforms(samples_N, starts_R, lengths_R, levels_R, ends_R[-1]), dropped


def _read(recorded: DigitRecordings, position: int) -> np.ndarray | ValueError:
    try:
        return recorded.waveform(position)
    except ValueError as error:
        return error


def _background(waveform_N: np.ndarray, sample_rate_hz: int) -> float:
    """Return the level of a recording's quietest frames; a recording shorter than a frame counts as one frame."""
    width = min(round(_LEVEL_S * sample_rate_hz), len(waveform_N))
    if not width:
        return 0.0
    frames = waveform_N[: len(waveform_N) // width * width].astype(np.float64).reshape(-1, width)
    return float(np.percentile(np.sqrt(np.square(frames).mean(1)), _LEVEL_PERCENTILE))
