"""Only a finished float run on the same data, with the same topology, may be a starting point or a teacher."""

import pytest
import torch

from speech_exp.models.encoder import CompactEncoder
from speech_exp.models.recurrent import GRU
from speech_exp.objectives.classification import Classification
from speech_exp.training.checkpoint import load_deployable, save_deployable
from speech_exp.training.float_runs import load_float_run

CONFIG = {
    "dataset": {"split": "official", "split_seed": 0, "root": None, "index_ranges": {"test": [0, 4]}},
    "features": {"extractor": {"hop_s": 0.016}, "normalization": "global"},
    "encoder": {"num_layers": 1},
    "model": {"hidden_size": None, "bidirectional": False},
    "objective": {"pooling": "mean", "dropout": 0.2},
}


DATA = "f" * 64  # fingerprint


def network(hidden=6, seed=0):
    torch.manual_seed(seed)
    return Classification("mean", 0.0, 0.0).network(
        CompactEncoder(4, lambda width: GRU(width, hidden), False, 1, 0.0), 3
    )


def save(folder, task="B1", hidden=6, epoch=3, data=DATA, **changes):
    trained = network(hidden, seed=1)
    config = {name: node | changes.get(name, {}) for name, node in CONFIG.items()}
    content = {"config": config, "choices": {"task": task}, "network": trained.state_dict(), "data_fingerprint": data}
    content |= {"front_end": {}, "class_names": []}
    save_deployable(content, folder / "checkpoints" / f"checkpoint_epoch_{epoch}_best.pt")
    return trained


@pytest.mark.parametrize("task", ["A", "B1"])
@pytest.mark.parametrize("as_file", [False, True])
def test_the_weights_of_the_run_are_loaded(tmp_path, task, as_file):
    # Keys that affect neither data nor topology may differ.
    free = {
        "dataset": {"root": "/elsewhere", "split_seed": 1},
        "model": {"hidden_size": 6},
        "objective": {"dropout": 0.5},
    }
    trained, own = save(tmp_path, task, **free), network()
    place = tmp_path / "checkpoints" / "checkpoint_epoch_3_best.pt" if as_file else tmp_path
    load_float_run("kd.run", str(place), CONFIG, DATA, own)
    for one, other in zip(own.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "C"}, "is a run of task C: expected one of A, B1, change kd.run"),
        ({"dataset": {"split": "random"}}, "trained with dataset.split=random, this run has official"),
        ({"dataset": {"index_ranges": {"test": [5, 9]}}}, r"trained with dataset.index_ranges.test=\[5, 9\]"),
        ({"features": {"normalization": "utterance"}}, "features.normalization=utterance"),
        ({"model": {"bidirectional": True}}, "model.bidirectional=True, this run has False"),
        ({"objective": {"pooling": "last"}}, "objective.pooling=last"),
        (
            {"data": "0" * 64},
            "trained on different recordings .fingerprint 000000000000, this run's are ffffffffffff.: change kd",
        ),
        ({"hidden": 7}, r"contains encoder.layers.0.cell.weight_ih_l0 of shape \(21, 4\), this run's is \(18, 4\)"),
    ],
)
def test_another_run_is_refused_and_nothing_is_loaded(tmp_path, changes, message):
    save(tmp_path, **changes)
    own = network()
    before = [parameter.clone() for parameter in own.parameters()]
    with pytest.raises(ValueError, match=message):
        load_float_run("kd.run", str(tmp_path), CONFIG, DATA, own)
    assert all(torch.equal(one, other) for one, other in zip(own.parameters(), before, strict=True))


def test_the_seed_of_a_random_split_decides_which_recordings_are_test(tmp_path):
    drawn = {name: node | ({"split": "random"} if name == "dataset" else {}) for name, node in CONFIG.items()}
    save(tmp_path, dataset={"split": "random", "split_seed": 1})
    with pytest.raises(ValueError, match=r"dataset.split_seed=1, this run has 0"):
        load_float_run("kd.run", str(tmp_path), drawn, DATA, network())


def test_a_folder_without_one_best_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task.float_checkpoint=.* has 0 files .* is the run finished"):
        load_float_run("task.float_checkpoint", str(tmp_path), CONFIG, DATA, network())
    save(tmp_path, epoch=1)
    save(tmp_path, epoch=2)
    with pytest.raises(ValueError, match="has 2 files"):
        load_float_run("kd.run", str(tmp_path), CONFIG, DATA, network())
    with pytest.raises(ValueError, match=r"kd.run=/nowhere is not a file"):
        load_float_run("kd.run", "/nowhere", CONFIG, DATA, network())


def test_one_weight_too_many_and_a_missing_choice_are_named(tmp_path):
    path = tmp_path / "forged_best.pt"
    save(tmp_path)
    content = load_deployable(str(tmp_path / "checkpoints" / "checkpoint_epoch_3_best.pt"))
    save_deployable({**content, "network": content["network"] | {"extra": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"contains extra of shape \(1,\), this run's is None"):
        load_float_run("kd.run", str(path), CONFIG, DATA, network())
    save_deployable({**content, "choices": {}}, path)
    with pytest.raises(ValueError, match="is a run of task None"):
        load_float_run("kd.run", str(path), CONFIG, DATA, network())
