"""The corpus from the release to a recogniser through the composition root, on two real recordings at toy size."""

import json
import math

import pytest
import torch
from composition import experiment
from run_files import best, results, table

from speech_exp.training.state import StateFiles, newest

TINY = (
    "encoder=asr_small",
    "encoder.width=16",
    "encoder.num_layers=1",
    "encoder.attention_heads=2",
    "model.hidden_size=8",
    "trainer.epochs=2",
    "trainer.batch_size=3",
    "trainer.epoch_batches=2",
    "dataset.workers=0",
)


@pytest.fixture(scope="module")
def act(compose, small_release, tmp_path_factory):
    prepared = tmp_path_factory.mktemp("prepared")
    where = ("dataset=gigaspeech", f"dataset.root={small_release}", f"dataset.prepared={prepared}")

    def run(folder, *overrides):
        built = experiment(compose(*where, *overrides, "trainer.device=cpu"), folder)
        own = ("action", "checkpoint", "audio", "decoder", "part", "dataset", "dataset.root", "dataset.prepared")
        built.overrides = tuple(one for one in (*where, *overrides) if one.partition("=")[0] in own)
        built.build("action")(built)
        return built

    return run


@pytest.fixture(scope="module")
def run(act, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    act(folder, *TINY, "model=lmu", "seed=3")
    return folder


def test_a_run_leaves_every_file_and_names_what_it_dropped(run):
    found = results(run)
    assert (found["dataset"], found["objective"], found["features"]) == ("gigaspeech", "ctc", "logmel80")
    record = json.loads((run / "run.json").read_text())
    assert {item["reason"] for item in record["dropped"]} >= {"a garbage tag: no speech to learn"}
    rows = table(run / "predictions.csv")
    assert rows
    assert not any("<" in row["reference"] for row in rows)
    history = table(run / "history.csv")
    assert all(float(row["memory_gb"]) > 0.1 for row in history)
    assert {path.stem for path in (run / "figures").iterdir()} >= {"training_curves", "posterior", "features"}


def test_a_run_broken_off_within_an_epoch_ends_as_one_that_was_not(run, act, tmp_path, monkeypatch):
    """With dropout, whose generator is the process's: a pass over the corpus must not draw from it."""
    same = (*TINY, "model=lmu", "seed=3", "trainer.checkpoint_every_s=1e-9")
    save = StateFiles.save

    def save_and_break_off(files, content, epoch, batches):
        save(files, content, epoch, batches)
        if (epoch, batches) == (0, 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StateFiles, "save", save_and_break_off)
        act(tmp_path, *same)
    assert newest(tmp_path / "checkpoints").name == "checkpoint_epoch_0_batch_1.pt"
    act(tmp_path, *same)
    assert json.loads((tmp_path / "run.json").read_text())["goes_on"]
    last = [folder / "checkpoints" / "checkpoint_epoch_2.pt" for folder in (run, tmp_path)]
    expected, found = (torch.load(path, weights_only=True)["network"] for path in last)
    assert expected.keys() == found.keys()
    for name, weights in expected.items():
        assert torch.equal(weights, found[name]), name
    assert results(tmp_path)["metrics"] == results(run)["metrics"]


@pytest.mark.parametrize("part", ["validation", "test", "train"])
def test_evaluate_gives_the_metrics_of_any_part(run, act, tmp_path, part):
    act(tmp_path, "action=evaluate", f"checkpoint={best(run)}", f"part={part}")
    found = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    assert found.keys() == {part}
    if part != "train":
        expected = results(run)["metrics"]["val" if part == "validation" else part]
        assert found[part] == expected
    assert math.isfinite(found[part]["loss"])


@pytest.mark.parametrize("storage", ["features", "shar"])
def test_each_storage_gives_about_the_same_run(run, act, tmp_path, storage):
    """Features are rounded to float16 and shards to 16 bit, so losses differ in the last digits alone."""
    same = [*TINY, "model=lmu", "seed=3", "augment=none"]
    act(tmp_path / "audio", *same)
    act(tmp_path / storage, *same, f"dataset.storage={storage}")
    losses = [results(tmp_path / one)["metrics"]["test"]["loss"] for one in ("audio", storage)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] != pytest.approx(results(run)["metrics"]["test"]["loss"], rel=1e-6)  # which heard other speeds


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=B1", "model=gru"],
        ["task=B2", "model=lstm", "task.qat_epochs=1"],
        ["task=C", "c_approach=inq", "model=lmu", "task.start_epoch=1", "trainer.epochs=4"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_constraints_hold_on_it(act, tmp_path, overrides):
    act(tmp_path, *TINY, "trainer.accumulate=2", "trainer.schedule=onecycle", *overrides)
    assert results(tmp_path)["certificate"]["passed"]


def test_batches_by_seconds_train_consistently_in_half_precision(act, tmp_path):
    act(
        tmp_path,
        *TINY,
        "model=gru",
        "trainer.batch_seconds=60",
        "objective.consistency=0.2",
        "trainer.precision=bf16",
        "encoder.checkpoint_activations=true",
        "trainer.epochs=1",
    )
    assert math.isfinite(results(tmp_path)["metrics"]["val"]["loss"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["dataset.storage=features"],
            r"augment\.speeds=.*set dataset\.storage=audio or shar, or augment\.speeds=null",
        ),
        (["trainer.batch_seconds=1"], r"raise trainer\.batch_seconds or lower dataset\.limits\.max_s"),
        (["dataset.limits.max_s=0.1", "dataset.limits.min_s=0"], "no train utterance of .* can be used"),
        (["features=mfcc20", "features.extractor.n_fft=512"], "set features=logmel80"),
    ],
)
def test_what_it_cannot_take_is_one_sentence(act, tmp_path, overrides, expected):
    with pytest.raises(ValueError, match=expected):
        act(tmp_path, *TINY, *overrides)


def test_a_password_is_in_no_record(compose, tmp_path):
    built = experiment(compose("dataset=gigaspeech", "dataset.password=secret"), tmp_path)
    assert built.dataset.password == "secret"
    assert "secret" not in json.dumps(built.plain_config())


@pytest.mark.slow
def test_a_few_utterances_can_be_learned_by_heart(act, tmp_path):
    """From the opus file to the text every part must work for this; an error in one of them leaves some CER."""
    given = ["encoder=asr_small", "augment=none", "encoder.dropout=0", "objective.dropout=0", "dataset.workers=0"]
    trainer = ["trainer.epochs=60", "trainer.batch_size=2", "trainer.lr=2e-3"]
    act(tmp_path / "run", *given, *trainer, "model=lmu", "seed=0")
    losses = [float(row["train_loss"]) for row in table(tmp_path / "run" / "history.csv")]
    assert losses[0] > 2.5
    assert losses[-1] < 0.1  # a character; the best epoch is another one, by what was never heard
