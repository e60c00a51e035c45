"""The corpus from the release to a recogniser through the composition root, on two real recordings at toy size."""

import json
import math
import shutil
from contextlib import nullcontext

import pytest
import torch
from composition import experiment, without_figures
from run_files import best, evaluation, results, table

from speech_exp.data import storage
from speech_exp.training.state import StateFiles, states

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

    def run(folder, *overrides, figures=False):
        built = experiment(compose(*where, *overrides, "trainer.device=cpu"), folder)
        own = ("action", "checkpoint", "audio", "decoder", "part", "dataset", "dataset.root", "dataset.prepared")
        built.overrides = tuple(one for one in (*where, *overrides) if one.partition("=")[0] in own)
        with nullcontext() if figures else without_figures():
            built.build("action")(built)
        return built

    return run


@pytest.fixture(scope="module")
def run(act, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    act(folder, *TINY, "model=lmu", "seed=3", figures=True)
    return folder


def test_a_run_leaves_every_file_and_names_what_it_dropped(run):
    found = results(run)
    assert (found["dataset"], found["objective"], found["features"]) == ("gigaspeech", "ctc", "logmel80")
    record = json.loads((run / "run.json").read_text())
    assert {item["reason"] for item in record["dropped"]} >= {"a garbage tag, which marks a lack of speech"}
    rows = table(run / "predictions.csv")
    assert rows
    assert not any("<" in row["reference"] for row in rows)
    history = table(run / "history.csv")
    assert all(float(row["memory_gb"]) > 0.1 for row in history)
    assert {path.stem for path in (run / "figures").iterdir()} >= {"training_curves", "posterior", "features"}


def test_a_run_interrupted_within_an_epoch_ends_as_one_that_was_not(run, act, tmp_path, monkeypatch):
    """Dropout draws from the generator of the process, so a pass over the corpus must not draw from that."""
    same = (*TINY, "model=lmu", "seed=3", "trainer.checkpoint_every_s=1e-9")
    save = StateFiles.save

    def save_and_break_off(files, content, epoch, batches):
        save(files, content, epoch, batches)
        if (epoch, batches) == (0, 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StateFiles, "save", save_and_break_off)
        act(tmp_path, *same)
    assert [path.name for path in states(tmp_path / "checkpoints")] == ["checkpoint_epoch_0_batch_1.pt"]
    act(tmp_path, *same)
    assert json.loads((tmp_path / "run.json").read_text())["resumes"]
    last = [folder / "checkpoints" / "checkpoint_epoch_2.pt" for folder in (run, tmp_path)]
    expected, found = (torch.load(path, weights_only=True)["network"] for path in last)
    assert expected.keys() == found.keys()
    for name, weights in expected.items():
        assert torch.equal(weights, found[name]), name
    assert results(tmp_path)["metrics"] == results(run)["metrics"]


def test_a_recording_that_disappears_during_training_ends_the_run(act, small_release, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(small_release, tmp_path / "release")
    same = (
        *TINY,
        "dataset.workers=1",
        f"dataset.root={root}",
        f"dataset.prepared={tmp_path / 'prepared'}",
        "model=gru",
    )
    monkeypatch.setattr(storage, "_PAUSES_S", (0.0, 0.0))
    save = StateFiles.save

    def save_and_lose(files, content, epoch, batches):
        save(files, content, epoch, batches)
        (root / "audio").rename(root / "elsewhere")

    with monkeypatch.context() as patched:
        patched.setattr(StateFiles, "save", save_and_lose)
        with pytest.raises(storage.StorageError, match=r"\.opus cannot be read \(No such file or directory, 3 tries"):
            act(tmp_path / "run", *same)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], "cannot be read" in record["error"]) == ("failed", True)
    assert not (tmp_path / "run" / "results.json").exists()
    (root / "elsewhere").rename(root / "audio")
    act(tmp_path / "run", *same)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumes"]
    assert "left out 3, named in run.json: 3 a garbage tag, which marks a lack of speech\n" in capsys.readouterr().out


def test_more_bad_audio_than_the_stated_share_ends_the_run(act, small_release, tmp_path):
    root = shutil.copytree(small_release, tmp_path / "release")
    (path,) = root.glob("audio/audiobook/**/*.opus")
    path.write_bytes(path.read_bytes()[:200_000])
    same = (*TINY, f"dataset.root={root}", f"dataset.prepared={tmp_path / 'prepared'}", "trainer.epochs=1")
    with pytest.raises(
        ValueError, match=r"train utterances cannot be used, more than the share dataset\.max_dropped_share=0\.01 "
    ):
        act(tmp_path / "run", *same)
    act(tmp_path / "run", *same, "dataset.max_dropped_share=0.9")
    reasons = [item["reason"] for item in json.loads((tmp_path / "run" / "run.json").read_text())["dropped"]]
    assert sum("before the segment's end" in reason for reason in reasons) > 1


@pytest.mark.parametrize("part", ["validation", "test", "train"])
def test_evaluate_gives_the_metrics_of_any_part(run, act, tmp_path, part):
    act(tmp_path, "action=evaluate", f"checkpoint={best(run)}", f"part={part}")
    found = evaluation(best(run), part)["metrics"]
    assert found.keys() == {part, f"{part}_edits"}
    if part != "train":
        expected = results(run)["metrics"]["val" if part == "validation" else part]
        assert found[part] == expected
    assert math.isfinite(found[part]["loss"])


def test_each_storage_gives_about_the_same_run(run, act, tmp_path):
    """Features are rounded to float16 and shards to 16 bit, so losses differ only in the last digits."""
    losses = {}
    for kind in ("audio", "features", "shar"):
        act(tmp_path / kind, *TINY, "model=lmu", "seed=3", "augment=none", f"dataset.storage={kind}")
        losses[kind] = results(tmp_path / kind)["metrics"]["test"]["loss"]
    assert losses["features"] == pytest.approx(losses["audio"], rel=1e-2)
    assert losses["shar"] == pytest.approx(losses["audio"], rel=1e-2)
    # The shared run trained at several speeds.
    assert losses["audio"] != pytest.approx(results(run)["metrics"]["test"]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task=B1", "model=gru"],
        ["task=B2", "model=lstm", "task.qat_epochs=1"],
        ["task=C", "c_approach=inq", "model=lmu", "task.start_epoch=1", "trainer.epochs=4"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_its_constraints_are_met(act, tmp_path, overrides):
    short = (*TINY, "dataset.limits.max_s=5")  # integer inference is slow per frame
    act(tmp_path, *short, "trainer.accumulate=2", "trainer.schedule=onecycle", *overrides)
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
def test_unsupported_settings_are_reported_in_one_sentence(act, tmp_path, overrides, expected):
    with pytest.raises(ValueError, match=expected):
        act(tmp_path, *TINY, *overrides)


def test_a_password_is_in_no_record(compose, tmp_path):
    built = experiment(compose("dataset=gigaspeech", "dataset.password=secret"), tmp_path)
    assert built.dataset.password == "secret"
    assert "secret" not in json.dumps(built.plain_config())


@pytest.mark.slow
def test_a_few_utterances_can_be_learned_by_heart(act, tmp_path):
    """Every part from the Opus file to the text must work for this; an error in any of them would leave a CER above 0."""
    given = ["encoder=asr_small", "augment=none", "encoder.dropout=0", "objective.dropout=0", "dataset.workers=0"]
    trainer = ["trainer.epochs=60", "trainer.batch_size=2", "trainer.lr=2e-3"]
    act(tmp_path / "run", *given, *trainer, "model=lmu", "seed=0")
    losses = [float(row["train_loss"]) for row in table(tmp_path / "run" / "history.csv")]
    assert losses[0] > 2.5
    assert losses[-1] < 0.1  # per character; validation, on unseen utterances, selects a different epoch
