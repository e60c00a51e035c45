"""Connected digits from data to text through the composition root, on the bundled recordings at toy size."""

from contextlib import nullcontext

import pytest
from composition import choices, experiment, without_figures
from run_files import best, evaluation, results, table

DATA = ("dataset=fsdd_strings", "dataset.bundled=true", "dataset.folder=digits_demo", "dataset.split=random")
TINY = (
    "encoder.width=16",
    "encoder.num_layers=1",
    "encoder.attention_heads=2",
    "model.hidden_size=8",
    "trainer.epochs=2",
)
FIGURES = {"training_curves", "errors", "flowchart", "features", "posterior"}


@pytest.fixture(scope="module")
def act(compose, cache, few_digits):
    root = f"dataset.root={few_digits}"

    def run(folder, *overrides, figures=False):
        built = experiment(compose(*overrides, root, f"cache_dir={cache}", "trainer.device=cpu"), folder)
        own = ("action", "checkpoint", "audio", "decoder")
        built.overrides = (root, *(one for one in overrides if one.partition("=")[0] in own))
        with nullcontext() if figures else without_figures():
            built.build("action")(built)
        return built

    return run


@pytest.fixture(scope="module", params=["gru", "lmu"])
def run(request, act, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    act(folder, *DATA, *TINY, f"model={request.param}", "seed=3", figures=True)
    return folder


def test_a_run_leaves_every_file(run):
    found = results(run)
    assert (found["objective"], found["encoder"], found["features"]) == ("ctc", "asr_small", "logmel40")
    assert {path.stem for path in (run / "figures").iterdir()} == FIGURES
    assert (run / "worst_utterances.txt").read_text().count("REF ") >= 1
    rows = table(run / "predictions.csv")
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    words = sum(len(row["reference"].split()) for row in rows)
    assert words == found["metrics"]["test_edits"]["words"] == 3 * 20  # each recording of the part in three strings
    history = table(run / "history.csv")
    assert float(history[found["best_epoch"] - 1]["val_wer"]) == found["metrics"]["val"]["wer"]


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_evaluate_gives_the_same_loss_with_any_decoder_and_the_same_metrics_with_the_trained_one(
    run, act, tmp_path, decoder
):
    act(tmp_path, "action=evaluate", f"checkpoint={best(run)}", f"decoder={decoder}", "dataset=digits_demo")
    found = evaluation(best(run))["metrics"]["test"]
    expected = results(run)["metrics"]["test"]
    assert found["loss"] == expected["loss"]
    if decoder == "greedy":
        assert found == expected


def test_predict_prints_text_and_word_times(run, act, tmp_path, capsys):
    recording = "speech_exp/data/digits_demo/3_emil_0.flac"
    act(tmp_path, "action=predict", f"checkpoint={best(run)}", f"audio={recording}", "dataset=digits_demo")
    header, line = capsys.readouterr().out.splitlines()[:2]
    assert header.split("\t") == ["file", "text", "words with their start and end in s", "note"]
    assert line.split("\t")[0] == recording


@pytest.mark.parametrize("run", ["gru"], indirect=True)
@pytest.mark.parametrize(
    "c_approach",
    [one if one in ("ste", "inq") else pytest.param(one, marks=pytest.mark.slow) for one in choices("c_approach")],
)
def test_powers_of_two_with_a_teacher_on_recognition(run, act, tmp_path, c_approach):
    float_run = run
    taught = (
        "task=C",
        f"c_approach={c_approach}",
        f"task.float_checkpoint={float_run}",
        "kd=teacher",
        f"kd.run={float_run}",
    )
    act(tmp_path, *DATA, *TINY, "model=gru", "trainer.epochs=3", "task.start_epoch=1", *taught, "seed=3")
    found = results(tmp_path)
    assert found["metrics"]["test_float"] == results(float_run)["metrics"]["test"]
    assert found["certificate"]["kind"] == "power_of_two"
    assert "encoder.norm.weight" in found["certificate"]["details"]["exempt"]


def test_the_attention_encoder_classifies_too(act, tmp_path):
    act(tmp_path, "dataset=digits_demo", "encoder=asr_small", *TINY, "task=C", "task.start_epoch=1", "model=lmu")
    assert results(tmp_path)["encoder"] == "asr_small"
    assert results(tmp_path)["certificate"]["passed"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["features=mfcc20"], "set features=logmel40"),
        (["augment=strong"], "cannot use variants: set augment=light or none"),
    ],
)
def test_what_strings_cannot_take_is_reported_in_one_sentence(act, tmp_path, overrides, expected):
    with pytest.raises(ValueError, match=expected):
        act(tmp_path, *DATA, *TINY, *overrides)
