"""Synthetic voices join only the training part, a different voice in each variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from speech_exp.data.digit_features import PreparedDigits
from speech_exp.data.digits import Digits
from speech_exp.data.prepared import DataRequest
from speech_exp.data.synthetic.speakers import SyntheticVoices
from speech_exp.features.distortion import Variants
from speech_exp.features.front_end import FrontEnd
from speech_exp.features.mfcc import TorchMfcc
from speech_exp.features.normalization import Normalizer
from speech_exp.objectives.text import to_ids

VARIANTS = Variants(2, 0.1, 0.0, 0.1, 0.5, [5, 40], 2.0, 0.02)


def assembled(
    tiny_digits: Callable[..., Digits], folder: Path, voices: int, variants: Variants | None
) -> PreparedDigits:
    extractor = TorchMfcc(8000, window_s=0.032, hop_s=0.016, n_fft=256, n_mels=40, n_mfcc=20)
    description = {"variants": "test"} if variants else {}
    front_end = FrontEnd(extractor, Normalizer("global"), variants=variants, description=description)
    request = DataRequest(to_ids, 1, True, folder, torch.device("cpu"))
    return PreparedDigits(tiny_digits().recorded, voices, front_end, request)


def test_a_voice_is_the_same_however_many_there_are():
    few, many = SyntheticVoices(2), SyntheticVoices(5)
    np.testing.assert_array_equal(few.waveform(1, 7, 8000), many.waveform(1, 7, 8000))
    assert not np.array_equal(few.waveform(0, 7, 8000), few.waveform(1, 7, 8000))


def test_synthetic_voices_join_training_alone(tiny_digits, tmp_path):
    plain = assembled(tiny_digits, tmp_path, 0, VARIANTS)
    joined = assembled(tiny_digits, tmp_path, 6, VARIANTS)
    added = joined.parts["train"].ids[len(plain.parts["train"]) :]
    assert len(added) == 30  # 3 voices of each variant speak 10 digits
    assert all("synthetic" in name for name in added)
    assert [int(name[0]) for name in added] == joined.parts["train"].targets_U[-30:].tolist()
    for name in ("validation", "test"):
        assert joined.parts[name].ids == plain.parts[name].ids
    # The variants have different voices, hence different frames.
    lengths_WU = joined.parts["train"].lengths_WU[:, -30:]
    assert lengths_WU.shape == (2, 30)
    assert not torch.equal(lengths_WU[0], lengths_WU[1])


def test_the_recording_itself_is_variant_0_and_shares_its_cache_entry(tiny_digits, tmp_path):
    plain = assembled(tiny_digits, tmp_path, 0, None)
    entries = set(tmp_path.glob("*/frames.npy"))
    varied = assembled(tiny_digits, tmp_path, 0, VARIANTS)
    assert len(set(tmp_path.glob("*/frames.npy")) - entries) == 1
    for name in ("train", "validation", "test"):
        one, other = (list(features.parts[name].in_order(8)) for features in (plain, varied))
        for left, right in zip(one, other, strict=True):
            assert torch.equal(left.features_BTF, right.features_BTF)
    assert len(varied.parts["train"].starts_WU) == 2


def test_fewer_voices_than_variants_are_refused(tiny_digits, tmp_path):
    with pytest.raises(ValueError, match=r"dataset\.synthetic_voices=1 is less than augment\.variants\.count=2"):
        assembled(tiny_digits, tmp_path, 1, VARIANTS)
