"""Checkpoints are complete or absent, and nothing in them is executed."""

import os
import pickle

import pytest
import torch

from speech_exp.training import checkpoint


def deployable(**changes):
    """Return all parts of a deployable model, with a network of three numbers."""
    content = {"choices": {"model": "gru"}, "config": {"seed": 0}, "front_end": {}, "network": {"w": torch.randn(3)}}
    return content | {"class_names": ["a"], "data_fingerprint": "0"} | changes


def test_a_saved_checkpoint_loads_unchanged(tmp_path):
    path = tmp_path / "new" / "best.pt"
    content = deployable(config={"a": [1, "b", None], "b": {}})
    checkpoint.save_deployable(content, path)
    loaded = checkpoint.load_deployable(str(path))
    assert torch.equal(loaded["network"]["w"], content["network"]["w"])
    assert loaded["config"] == content["config"]
    assert loaded.keys() == content.keys()
    assert [entry.name for entry in path.parent.iterdir()] == ["best.pt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    checkpoint.save_deployable(deployable(data_fingerprint="old"), path)

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*best\.pt"):
        checkpoint.save_deployable(deployable(), path)
    assert checkpoint.load_deployable(str(path))["data_fingerprint"] == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.pt"]


class Harm:
    def __reduce__(self):
        return (os.system, ("touch harmed",))


def test_code_in_a_checkpoint_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Harm()))
    torch.save({"format": checkpoint.FORMAT, "x": Harm()}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            checkpoint.load_deployable(name)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file: expected a checkpoint_epoch_N_best.pt, change checkpoint"),
        (b"", "not a readable checkpoint"),
        (b"RIFF....WAVE", "not a readable checkpoint"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    path = tmp_path / "x.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        checkpoint.load_deployable(str(path))


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save_deployable({"w": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load_deployable(str(path))


def test_a_training_state_is_not_a_deployable_model(tmp_path):
    path = tmp_path / "checkpoint_epoch_3.pt"
    checkpoint.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"use a file whose name ends in _best\.pt"):
        checkpoint.load_deployable(str(path))
    with pytest.raises(ValueError, match="set checkpoint="):
        checkpoint.load_deployable(None)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["network"]["w"].view(torch.int32)[0].bitwise_xor_(1),
        lambda content: content["network"].update(v=torch.zeros(0)),
        lambda content: content["config"].update(seed=1),
        lambda content: content.update(network={"w": content["network"]["w"].double()}),
        lambda content: content.update(network={"w": content["network"]["w"].view(3, 1)}),
        lambda content: content.pop("config"),
    ],
)
def test_a_changed_checkpoint_is_refused(tmp_path, change):
    path = tmp_path / "best.pt"
    checkpoint.save_deployable(deployable(), path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match="was changed after it was saved"):
        checkpoint.load_deployable(str(path))
