"""From a data set of any kind to the parts that training and evaluation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speech_exp import ranks
from speech_exp.data.dataset import DataSet
from speech_exp.data.digits import Digits
from speech_exp.data.gigaspeech import GigaSpeech
from speech_exp.data.strings import DigitStrings
from speech_exp.features.assembly import Features, assemble
from speech_exp.features.cut_assembly import assemble_cuts
from speech_exp.features.distortion import Variants
from speech_exp.features.mfcc import FeatureExtractor
from speech_exp.features.normalization import Normalizer
from speech_exp.features.string_batches import assemble_strings


@dataclass(frozen=True)
class FeaturePlan:
    """How features are made.

    Args:
        descriptions: configs of the extractor and of the variants, which stored features are found by.
        variants: what training hears beside the recordings themselves.
        speeds: of training batches of waveforms.
        trains: whether the parts are trained on; else what only training hears is of no account.
        encode: text to character ids.
        frames_per_state: frames that the encoder makes one of.
    """

    extractor: FeatureExtractor
    descriptions: dict[str, dict[str, Any]]
    normalizer: Normalizer
    variants: Variants | None
    speeds: list[float]
    trains: bool
    encode: Callable[[str], list[int]]
    frames_per_state: int
    cache_folder: Path
    device: torch.device


def features_of(dataset: DataSet, loaded: Any, plan: FeaturePlan) -> Features:
    """Normalised features of all parts on the device; recordings dropped for bad audio are named."""
    if isinstance(dataset, DigitStrings):
        return assemble_strings(
            loaded,
            dataset.strings,
            plan.extractor,
            plan.normalizer,
            plan.encode,
            plan.speeds,
            plan.device,
            plan.variants,
        )
    if isinstance(dataset, GigaSpeech):
        return assemble_cuts(
            loaded,
            dataset.limits,
            plan.extractor,
            plan.descriptions["extractor"],
            plan.normalizer,
            plan.encode,
            plan.frames_per_state,
            plan.speeds,
            -(-dataset.workers // ranks.on_this_node()[1]),
            plan.device,
        )
    assert isinstance(dataset, Digits)
    _check_digits(dataset, plan)
    return assemble(
        loaded, plan.extractor, plan.descriptions, plan.normalizer, plan.cache_folder, plan.device, plan.variants
    )


def _check_digits(dataset: Digits, plan: FeaturePlan) -> None:
    if plan.trains and dataset.synthetic_voices and not plan.variants:
        raise ValueError(
            f"dataset.synthetic_voices={dataset.synthetic_voices} join training only where the augmentation makes variants, and "
            f"it makes none: set augment=strong or dataset.synthetic_voices=0"
        )
    if plan.speeds != [1.0]:
        raise ValueError(
            f"augment.speeds={plan.speeds} change waveforms in the batch, dataset={dataset.name} keeps features: set "
            f"augment=strong, whose variants have other tempos, or augment.speeds=null"
        )
