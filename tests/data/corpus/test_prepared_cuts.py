"""Parts of a corpus: each has its transform and statistics on the device; the extractor stays on the CPU."""

from itertools import combinations
from pathlib import Path

import pytest
import torch

from speech_exp.data.corpus.prepared import PreparedCuts
from speech_exp.data.corpus.selection import Limits
from speech_exp.data.prepared import DataRequest
from speech_exp.features.front_end import FrontEnd
from speech_exp.features.logmel import LogMel
from speech_exp.features.normalization import Normalizer
from speech_exp.objectives.text import to_ids

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # meta stands for a GPU: tensors there hold no values


def prepared(loaded_cuts, normalizer, device):
    extractor = LogMel(loaded_cuts.sample_rate_hz, 0.025, 0.01, 512, 20, 20.0, None, 1e-6)
    request = DataRequest(to_ids, 2, True, Path("unused"), device)
    data = PreparedCuts(loaded_cuts, Limits(0.5, 20.0, None), 0, FrontEnd(extractor, normalizer), request)
    return extractor, data.parts


def devices(part):
    tensors = [*part.transform.buffers(), *part.normalizer.statistics().values()]
    return {tensor.device for tensor in tensors}


def test_the_extractor_and_the_statistics_stay_on_the_cpu(loaded_cuts):
    """Both are saved in checkpoints and used for single files, so they must not move with the parts."""
    normalizer = Normalizer("global")
    normalizer.load({"mean_F": torch.zeros(20), "std_F": torch.ones(20)}, 20)
    extractor, parts = prepared(loaded_cuts, normalizer, ELSEWHERE)
    assert all(devices(part) == {ELSEWHERE} for part in parts.values())
    assert {buffer.device for buffer in extractor.batch_transform.buffers()} == {CPU}
    assert {value.device for value in normalizer.statistics().values()} == {CPU}


@pytest.fixture(scope="module")
def fitted(loaded_cuts):
    normalizer = Normalizer("global")
    return normalizer, *prepared(loaded_cuts, normalizer, CPU)


def test_each_part_has_a_separate_transform(fitted):
    _, extractor, parts = fitted
    transforms = [extractor.batch_transform, *(part.transform for part in parts.values())]
    assert len(transforms) == 4
    assert all(one is not other for one, other in combinations(transforms, 2))


def test_statistics_of_the_training_part_normalise_all_parts(fitted):
    normalizer, _, parts = fitted
    statistics = normalizer.statistics()
    assert statistics
    for part in parts.values():
        for name, value in part.normalizer.statistics().items():
            assert torch.equal(value, statistics[name])
    frames_NF = torch.cat([
        features_TF[:frames]
        for batch in parts["train"].sample(8)
        for features_TF, frames in zip(batch.features_BTF, batch.lengths_B.tolist(), strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(frames_NF.mean(0), torch.zeros(20), rtol=0, atol=1e-3)
    torch.testing.assert_close(frames_NF.std(0), torch.ones(20), rtol=0, atol=1e-3)


def test_a_recording_counts_as_a_speaker_if_the_release_names_none(loaded_cuts):
    normalizer = Normalizer("global")
    normalizer.load({"mean_F": torch.zeros(20), "std_F": torch.ones(20)}, 20)
    extractor = LogMel(loaded_cuts.sample_rate_hz, 0.025, 0.01, 512, 20, 20.0, None, 1e-6)
    request = DataRequest(to_ids, 2, True, Path("unused"), CPU)
    features = PreparedCuts(loaded_cuts, Limits(0.5, 20.0, None), 0, FrontEnd(extractor, normalizer), request)
    rows = features.with_origins([{"id": name} for name in features.parts["test"].ids], "test")
    table = loaded_cuts.tables["test"]
    recordings = {table.id(at): table.entry(at)["recording"]["id"] for at in range(len(table))}
    assert rows and all(row["speaker"] == recordings[row["id"]] for row in rows)
