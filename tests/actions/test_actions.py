"""Each action on the bundled recordings, through the composition root, in this process."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch
from composition import experiment, without_figures
from run_files import best, evaluation, table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from speech_exp.__main__ import main
from speech_exp.data.digits import BUNDLED
from speech_exp.runs.schema import validate_results
from speech_exp.training.checkpoint import load_deployable, save_deployable

RECORDING = BUNDLED / "digits_demo" / "3_emil_0.flac"
FIGURES = {"training_curves", "confusion_matrix", "metrics_table", "flowchart", "features", "occlusion"}


def act(compose, folder, cache, *overrides):
    built = experiment(compose("dataset=digits_demo", "trainer.device=cpu", f"cache_dir={cache}", *overrides), folder)
    # As on a command line: the folders set here must not count as overrides of a checkpoint.
    built.overrides = tuple(override for override in overrides if not override.startswith("trainer="))
    return built.build("action")(built)


@pytest.fixture(scope="module", params=["gru", "lstm", "lmu"])
def run(request, compose, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    accuracy = act(compose, folder, cache, "trainer=debug", f"model={request.param}", "trainer.epochs=2", "seed=5")
    results = json.loads((folder / "results.json").read_text())
    assert accuracy == results["metrics"]["val"]["accuracy"]
    return folder, results, request.param


def test_train_leaves_every_file_of_a_run(run):
    folder, results, model = run
    validate_results(results)
    assert (results["model"], results["task"], results["seed"], results["epochs"]) == (model, "A", 5, 2)
    assert {path.stem for path in (folder / "figures").iterdir()} == FIGURES
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["seed"], record["dropped"]) == ("finished", 5, [])
    assert len(record["data_fingerprint"]) == 64
    history = table(folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "checkpoint_epoch_1.pt",
        "checkpoint_epoch_2.pt",
        best(folder).name,
        best(folder).with_suffix(".packed").name,
    }
    assert best(folder).name == f"checkpoint_epoch_{results['best_epoch']}_best.pt"


def test_loggers_are_reported_every_epoch_and_the_results(compose, cache, tmp_path):
    with without_figures():
        act(compose, tmp_path, cache, "trainer=debug", "trainer.epochs=2", "trainer.tensorboard=true")
    found = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2]
    accuracy = json.loads((tmp_path / "results.json").read_text())["metrics"]["test"]["accuracy"]
    assert found.Scalars("results/metrics.test.accuracy")[0].value == pytest.approx(accuracy)


def test_the_predictions_carry_the_reported_accuracy(run):
    folder, results, _ = run
    rows = table(folder / "predictions.csv")
    assert len({row["id"] for row in rows}) == len(rows) == 120
    assert all(row["id"].startswith(row["reference"] + "_") for row in rows)
    right = sum(row["reference"] == row["prediction"] for row in rows)
    assert right / len(rows) == results["metrics"]["test"]["accuracy"]


def test_sizes_are_counted_from_the_stored_weights(run):
    folder, results, model = run
    network = torch.load(best(folder), weights_only=True)["network"]
    numbers = sum(value.numel() for value in network.values())
    layer = sum(value.numel() for name, value in network.items() if ".layers.0" in name)
    assert results["size"]["recurrent_layer_bytes"] == [4 * layer]
    assert results["size"]["model_bytes"] == 4 * numbers
    assert results["size"]["budget_bytes"] is None
    if model == "gru":
        assert layer == 2 * 3 * 64 * (20 + 64 + 2)


def test_evaluate_gives_the_same_metrics_to_the_last_digit(run, compose, cache, tmp_path, capsys):
    folder, results, _ = run
    act(compose, tmp_path, cache, "action=evaluate", f"checkpoint={best(folder)}")
    found = evaluation(best(folder))["metrics"]
    assert (found["test"], found["test_per_class"]) == (
        results["metrics"]["test"],
        results["metrics"]["test_per_class"],
    )
    predictions = best(folder).with_name(f"{best(folder).stem}_test_predictions.csv")
    assert predictions.read_bytes() == (folder / "predictions.csv").read_bytes()
    printed = capsys.readouterr().out
    assert repr(results["metrics"]["test"]["loss"]) in printed
    assert f"{best(folder).with_suffix('')}_test.json" in printed
    assert list(tmp_path.iterdir()) == []


def test_evaluate_refuses_what_would_be_another_experiment(run, compose, cache, tmp_path):
    folder, _, _ = run
    with pytest.raises(
        ValueError, match=r"features=mfcc39 cannot be set here, because action=evaluate takes it from the checkpoint"
    ):
        act(compose, tmp_path, cache, "action=evaluate", f"checkpoint={best(folder)}", "features=mfcc39")


def test_evaluate_refuses_other_data(run, compose, cache, tmp_path):
    folder, _, _ = run
    content = load_deployable(str(best(folder)))
    save_deployable({**content, "data_fingerprint": "0" * 64}, tmp_path / "moved_best.pt")
    with pytest.raises(ValueError, match="was trained on different data"):
        act(compose, tmp_path, cache, "action=evaluate", f"checkpoint={tmp_path / 'moved_best.pt'}")


def probabilities(line):
    return np.array([float(cell) for cell in line.split("\t")[2:-1]])


def test_predict_agrees_over_rates_channels_and_formats(run, compose, cache, tmp_path, capsys):
    folder, _, _ = run
    waveform_N, rate_hz = soundfile.read(RECORDING)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    soundfile.write(sounds / "a.wav", waveform_N, rate_hz, subtype="FLOAT")
    soundfile.write(sounds / "b_stereo.flac", np.stack([waveform_N, waveform_N], 1), rate_hz)
    upsampled_N = np.interp(np.arange(2 * len(waveform_N)) / 2, np.arange(len(waveform_N)), waveform_N)
    soundfile.write(sounds / "c_16kHz.wav", upsampled_N, 2 * rate_hz)
    (sounds / "d_broken.wav").write_bytes(b"RIFF")
    (sounds / "notes.txt").write_text("not audio")
    with pytest.raises(ValueError, match=rf"^1 of 4 files of audio={sounds} were not predicted"):
        act(compose, tmp_path, cache, "action=predict", f"checkpoint={best(folder)}", f"audio={sounds}")
    printed = capsys.readouterr()
    header, *lines = printed.out.splitlines()
    assert header.split("\t")[:3] == ["file", "label", "p(0)"]
    rows = [line for line in lines if "\t" in line]
    assert len(rows) == 3
    for row in rows:
        assert probabilities(row).sum() == pytest.approx(1.0, abs=1e-3)
        assert row.split("\t")[1] == str(probabilities(row).argmax())
    np.testing.assert_allclose(probabilities(rows[0]), probabilities(rows[1]), atol=1e-4)
    # Linear interpolation distorts the upper octave a little; the probabilities stay close.
    np.testing.assert_allclose(probabilities(rows[0]), probabilities(rows[2]), atol=0.15)
    assert f"not predicted: {sounds / 'd_broken.wav'} is not readable as audio" in printed.err
    assert not any("notes.txt" in line for line in lines)


def test_predict_gives_the_probability_that_the_test_gave(run, compose, cache, tmp_path, capsys):
    folder, _, _ = run
    row = next(row for row in table(folder / "predictions.csv") if row["id"] == RECORDING.stem)
    act(compose, tmp_path, cache, "action=predict", f"checkpoint={best(folder)}", f"audio={RECORDING}")
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split("\t")[1] == row["prediction"]
    assert probabilities(line).max() == pytest.approx(float(row["score"]), abs=1e-4)
    main(["predict", str(best(folder)), str(RECORDING)])  # as in an installed wheel, without the config files
    assert capsys.readouterr().out.splitlines()[1] == line


def test_predict_names_each_file_that_it_cannot_use_and_notes_what_means_nothing(run, compose, cache, tmp_path, capsys):
    folder, _, _ = run
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    waveform_N, rate_hz = soundfile.read(RECORDING)
    whole = (sounds / "a.flac", RECORDING.read_bytes())
    lying = bytearray(whole[1])
    lying[21:26] = [lying[21] | 0xF, 255, 255, 255, 255]  # 2^36 - 1 samples
    (sounds / "b_lying.flac").write_bytes(lying)
    whole[0].write_bytes(whole[1])
    os.mkfifo(sounds / "c_fifo.wav")
    (sounds / "d_folder.wav").mkdir()
    soundfile.write(sounds / "e_loud.wav", 1e30 * waveform_N, rate_hz, subtype="FLOAT")
    soundfile.write(sounds / "f_nan.wav", np.nan * waveform_N, rate_hz, subtype="FLOAT")
    soundfile.write(sounds / "g_slow.wav", waveform_N, 1)
    soundfile.write(sounds / "h_silent.wav", np.zeros(8000), rate_hz)
    soundfile.write(sounds / "i_short.wav", waveform_N[2000:2100], rate_hz)
    soundfile.write(sounds / "j_long.flac", np.resize(waveform_N, 61 * rate_hz), rate_hz)
    whole[0].with_name("k\x1b[2J.flac").write_bytes(whole[1])
    with pytest.raises(ValueError, match=rf"^6 of 11 files of audio={sounds} were not predicted for the reasons above"):
        act(compose, tmp_path, cache, "action=predict", f"checkpoint={best(folder)}", f"audio={sounds}")
    printed = capsys.readouterr()
    header, *rows = (line.split("\t") for line in printed.out.splitlines())
    assert header[-1] == "note"
    notes = {row[0].removeprefix(f"{sounds}/")[0]: row[-1] for row in rows}
    assert notes == {"a": "", "h": "silence", "i": "shorter than one frame of 32 ms", "j": "longer than 60 s", "k": ""}
    assert rows[-1][1:] == rows[0][1:]
    assert "\x1b" not in printed.out
    told = [line for line in printed.err.splitlines() if line.startswith("not predicted: ")]
    assert [line.removeprefix(f"not predicted: {sounds}/")[0] for line in told] == list("bcdefg")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["action=evaluate"], "set checkpoint="),
        (["action=predict", "audio=x"], "audio=x does not exist"),
        (["action=predict"], "set audio="),
        (["action=compare"], "action=compare has no run folders: set runs=FOLDER"),
        (["action=compare", "runs=/nowhere"], "runs=/nowhere is not a folder"),
    ],
)
def test_missing_arguments_are_reported_in_one_sentence(compose, cache, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        act(compose, tmp_path, cache, *overrides)


def test_a_folder_without_audio_is_named(compose, cache, tmp_path):
    with pytest.raises(ValueError, match=r"contains no file ending in \.wav"):
        act(compose, tmp_path, cache, "action=predict", f"audio={tmp_path}")


def test_dry_run_prints_sizes_and_trains_nothing(compose, cache, tmp_path, capsys):
    act(compose, tmp_path, cache, "dry_run=true", "model=lmu")
    printed = capsys.readouterr().out
    for words in (
        "parameters",
        "bytes per recurrent layer",
        "window",
        " ms (theta ",
        "utterances per epoch",
        "960 in batches of 64",
    ):
        assert words in printed
    assert list(tmp_path.iterdir()) == []


def test_prepare_verifies_and_fills_the_cache(compose, tmp_path, capsys):
    act(compose, tmp_path, tmp_path / "cache", "action=prepare")
    printed = capsys.readouterr().out
    assert "1,200 recordings of 6 speakers" in printed
    assert "960 train, 120 validation, 120 test" in printed
    assert list((tmp_path / "cache").glob("*/frames.npy"))


def test_check_passes_here_and_names_what_is_missing(compose, cache, tmp_path, capsys):
    act(compose, tmp_path, cache, "action=check")
    assert capsys.readouterr().out.count("ok    ") == 6
    with pytest.raises(ValueError, match="needs repair: data"):
        act(compose, tmp_path, cache, "action=check", "dataset=fsdd", "dataset.root=/nowhere")
    assert "FAIL  data" in capsys.readouterr().out


def test_an_unwritable_cache_is_named_by_check(compose, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="needs repair: feature cache"):
        act(compose, tmp_path, tmp_path / "file" / "cache", "action=check")
    assert "set cache_dir" in capsys.readouterr().out
