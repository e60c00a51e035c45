"""Batches of connected digits: the waveforms of all recordings lie on the device as one tensor, a batch is gathered from it.

Shape letters: B batch, N samples, T frames, F features, R recordings, S segments (recordings and pauses) of a batch,
U strings, W variants.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import torch

from speech_exp.data.batches import ALL, Batch, BatchSize, Share
from speech_exp.data.digits import LoadedDigits
from speech_exp.data.recordings import Dropped
from speech_exp.data.splits import SPLITS
from speech_exp.data.strings import DigitString, StringRules
from speech_exp.features.assembly import Features, refuse_bad_evaluation_audio
from speech_exp.features.distortion import Variants
from speech_exp.features.logmel import LogMel, LogMelTransform
from speech_exp.features.mfcc import FeatureExtractor
from speech_exp.features.normalization import Normalizer
from speech_exp.features.speed import change_speed

_POOL_BATCHES = 8  # sorted by length together, as in speech_exp.data.batches
_STATISTICS_BATCH = 32
_LEVEL_S = 0.01  # frames over which the level of a background is taken,
_LEVEL_PERCENTILE = 5  # as that of the quietest of them
_MAX_LEVEL = 1e9  # far above it the power in float32 is infinite
_NOISE_SEED = 0


@dataclass(frozen=True)
class Waveforms:
    """All recordings one after the other, then white noise of deviation 1.

    Args:
        starts_R, lengths_R: first sample of each recording and its samples; length 0 where it cannot be used.
        levels_R: deviation of the noise that fits the background of each recording.
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
        """Waveforms (B, N) of strings, zero behind their samples (B,)."""
        device = self.samples_N.device
        starts_S, lengths_S, gains_S, rows_S = (
            torch.tensor(column) for column in zip(*self._segments(strings), strict=True)
        )
        lengths_B = torch.zeros(len(strings), dtype=torch.int64).index_add_(0, rows_S, lengths_S)
        longest, total = int(lengths_B.max()), int(lengths_B.sum())
        before_S, before_B = lengths_S.cumsum(0) - lengths_S, lengths_B.cumsum(0) - lengths_B
        # A sample's places in the store and in the batch are its number among all samples, moved by its segment's and row's.
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
        """Start, samples, gain and row of each pause and recording in its order."""
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
    """One part as strings, with the interface of `InMemoryUtterances`.

    Args:
        strings: the fixed strings.
        redraw: draws the strings of an epoch; None where `shuffled` gives the fixed ones too.
        speeds: of which each training batch draws one.
        normalizer: its statistics lie on the device.
        encode: text to character ids.
    """

    strings: list[DigitString]
    redraw: Callable[[random.Random], list[DigitString]] | None
    waveforms: Waveforms
    transform: LogMelTransform
    normalizer: Normalizer
    encode: Callable[[str], list[int]]
    speeds: list[float]

    def __len__(self) -> int:
        """Strings of an epoch."""
        return len(self.strings)

    @property
    def ids(self) -> list[str]:
        """Of the fixed strings."""
        return [string.id for string in self.strings]

    @property
    def lengths_WU(self) -> torch.Tensor:
        """Frames of the fixed strings, in the only variant."""
        return self._frames(self.strings).unsqueeze(0)

    def to(self, device: torch.device) -> StringUtterances:
        return replace(
            self,
            waveforms=replace(self.waveforms, samples_N=self.waveforms.samples_N.to(device)),
            transform=copy.deepcopy(self.transform).to(device),
            normalizer=self.normalizer.to(device),
        )

    def waveform(self, number: int) -> np.ndarray:
        """Waveform (N,) of a fixed string."""
        return self.waveforms.gather([self.strings[number]])[0][0].cpu().numpy()

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """The fixed strings in their order."""
        for chosen_B in torch.arange(len(self)).split(batch_size):
            yield self._batch([self.strings[number] for number in chosen_B.tolist()])

    def by_length(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """The fixed strings from the shortest to the longest."""
        for chosen_B in share.of(list(self.lengths_WU[0].argsort(stable=True).split(batch_size))):
            yield self._batch([self.strings[number] for number in chosen_B.tolist()])

    sample = by_length

    def batches(self, size: BatchSize) -> int:
        return math.ceil(len(self) / size.of_utterances())

    def shuffled(
        self, size: BatchSize, generator: torch.Generator, start: int = 0, share: Share = ALL
    ) -> Iterator[Batch]:
        """An epoch: newly drawn strings where the part has them, batched with others of about their length."""
        strings, batch_size = self.strings, size.of_utterances()
        if self.redraw is not None:
            strings = self.redraw(random.Random(int(torch.randint(2**62, (), generator=generator))))
        order_U = torch.randperm(len(strings), generator=generator)
        lengths_U = self._frames(strings)[order_U]
        batches: list[torch.Tensor] = []
        for pool in torch.arange(len(strings)).split(_POOL_BATCHES * batch_size):
            batches += pool[lengths_U[pool].argsort(stable=True)].split(batch_size)
        numbers = torch.randperm(len(batches), generator=generator).tolist()
        speeds = self.speeds * len(numbers)
        if len(self.speeds) > 1:
            drawn = torch.randint(len(self.speeds), (len(numbers),), generator=generator).tolist()
            speeds = [self.speeds[number] for number in drawn]
        for number, speed in list(zip(numbers, speeds, strict=False))[start:]:
            yield self._batch([strings[chosen] for chosen in order_U[share.of(batches[number])].tolist()], speed)

    def features(self, strings: list[DigitString], speed: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, T, F) before normalisation and frames (B,) of strings."""
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


def assemble_strings(
    loaded: LoadedDigits,
    rules: StringRules,
    extractor: FeatureExtractor,
    normalizer: Normalizer,
    encode: Callable[[str], list[int]],
    speeds: list[float],
    device: torch.device,
    variants: Variants | None = None,
) -> Features:
    """Strings of each part, normalised by statistics of the fixed training strings (taken here unless they were loaded).

    These use each training recording once. A training recording with bad audio is dropped; one of validation or test is
    an error, as in `speech_exp.features.assembly`.
    """
    if not isinstance(extractor, LogMel):
        raise ValueError(
            f"strings of digits have log-mel features, which are computed in the batch, got {type(extractor).__name__}: set "
            "features=logmel40"
        )
    if variants:
        raise ValueError("strings of digits are new in each epoch and take no variants: set augment=light or none")
    waveforms, dropped = read_waveforms(loaded, rules)
    refuse_bad_evaluation_audio(loaded, dropped)
    position = {r.id: number for number, r in enumerate(loaded.recordings) if waveforms.lengths_R[number]}
    parts = {}
    for name in SPLITS:
        members = {position[r.id]: r for r in loaded.parts[name] if r.id in position}
        if not members:
            raise ValueError(f"no training recording can be used, the first because {dropped[0].reason}")
        redraw = partial(rules.draw, members, loaded.sample_rate_hz) if name == "train" else None
        strings = rules.fixed(name, members, loaded.sample_rate_hz)
        parts[name] = StringUtterances(strings, redraw, waveforms, extractor.transform, normalizer, encode, speeds)
    on_device = {name: part.to(device) for name, part in parts.items()}
    if normalizer.mode == "global" and normalizer.mean_F is None:
        normalizer.fit(_frames_of(on_device["train"]))
    normalizer = normalizer.to(device)
    shared = on_device["train"]  # one store on the device for all parts
    return Features(
        {
            name: replace(shared, strings=part.strings, redraw=part.redraw, normalizer=normalizer)
            for name, part in parts.items()
        },
        [*loaded.dropped, *dropped],
        on_device["test"].waveform,
        None,
    )


def read_waveforms(loaded: LoadedDigits, rules: StringRules) -> tuple[Waveforms, list[Dropped]]:
    """All recordings on the CPU, and those that cannot be used."""
    waveforms, dropped = [], []
    with ThreadPoolExecutor() as pool:
        for recording, found in zip(
            loaded.recordings, pool.map(partial(_read, loaded), range(len(loaded.recordings))), strict=True
        ):
            if isinstance(found, ValueError):
                dropped.append(Dropped(recording.id, str(found)))
                found = np.zeros(0, dtype=np.float32)
            waveforms.append(found)
    noise = np.random.default_rng(_NOISE_SEED).standard_normal(
        rules.noise_samples(loaded.sample_rate_hz), dtype=np.float32
    )
    lengths_R = [len(waveform_N) for waveform_N in waveforms]
    ends_R = np.cumsum(lengths_R).tolist()
    starts_R = [end - length for end, length in zip(ends_R, lengths_R, strict=True)]
    gain = 10 ** (rules.noise_db / 20)
    levels_R = [gain * _background(waveform_N, loaded.sample_rate_hz) for waveform_N in waveforms]
    samples_N = torch.from_numpy(np.concatenate([*waveforms, noise]))
    return Waveforms(samples_N, starts_R, lengths_R, levels_R, ends_R[-1]), dropped


def _read(loaded: LoadedDigits, position: int) -> np.ndarray | ValueError:
    try:
        waveform_N = loaded.waveform(position)
    except ValueError as error:
        return error
    if (loudest := np.abs(waveform_N).max()) > _MAX_LEVEL:
        return ValueError(
            f"the waveform reaches {loudest:g}, which no microphone gives: expected at most {_MAX_LEVEL:g}, "
            f"where 1 is full scale, replace or remove the recording"
        )
    return waveform_N


def _background(waveform_N: np.ndarray, sample_rate_hz: int) -> float:
    """Level of a recording where it is quietest; it ends sooner than a frame: of all of it."""
    width = min(round(_LEVEL_S * sample_rate_hz), len(waveform_N))
    if not width:
        return 0.0
    frames = waveform_N[: len(waveform_N) // width * width].astype(np.float64).reshape(-1, width)
    return float(np.percentile(np.sqrt(np.square(frames).mean(1)), _LEVEL_PERCENTILE))


def _frames_of(part: StringUtterances) -> torch.Tensor:
    """Features of the fixed strings (N, F) on the CPU, before normalisation."""
    frames = []
    for first in range(0, len(part), _STATISTICS_BATCH):
        features_BTF, lengths_B = part.features(part.strings[first : first + _STATISTICS_BATCH])
        frame_T = torch.arange(features_BTF.shape[1], device=features_BTF.device)
        frames.append(features_BTF[frame_T < lengths_B.unsqueeze(1)].cpu())
    return torch.cat(frames)
