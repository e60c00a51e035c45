"""Task B2 with integer recurrent layers in a float network: recognisers, and classifiers with attention, at toy size."""

import pytest
from composition import experiment, without_figures
from run_files import best, evaluation, results, table

from speech_exp.tasks.integer.conversion import integer_form
from speech_exp.training.checkpoint import load_deployable, save_deployable

FEW = ("dataset.index_ranges.test=[0,0]", "dataset.index_ranges.validation=[1,1]", "dataset.index_ranges.train=[2,5]")
STRINGS = (
    "dataset=fsdd_strings",
    "dataset.bundled=true",
    "dataset.folder=digits_demo",
    "dataset.strings.digits=[1,2]",
    "dataset.strings.evaluation_passes=1",
    *FEW,
)
BLOCKS = ("encoder.width=16", "encoder.num_layers=2", "encoder.attention_heads=2", "model.hidden_size=8")
EXACT = ("wer", "cer", "loss")


@pytest.fixture(scope="module")
def act(compose, cache, few_digits):
    root = f"dataset.root={few_digits}"

    def run(folder, *overrides):
        built = experiment(compose(*overrides, root, f"cache_dir={cache}", "trainer.device=cpu"), folder)
        built.overrides = (root, *(one for one in overrides if one.partition("=")[0] in ("action", "checkpoint")))
        with without_figures():
            built.build("action")(built)
        return built

    return run


@pytest.fixture(scope="module", params=["gru", pytest.param("lstm", marks=pytest.mark.slow), "lmu"])
def float_run(request, act, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    act(folder, *STRINGS, *BLOCKS, f"model={request.param}", "task=B1", "trainer.epochs=2", "seed=3")
    return folder, request.param


def evaluate(act, folder, path):
    act(folder, "action=evaluate", f"checkpoint={path}", "dataset=digits_demo")
    return evaluation(path)


@pytest.fixture(scope="module")
def integer_run(act, float_run, tmp_path_factory):
    start, model = float_run
    folder = tmp_path_factory.mktemp(f"integer_{model}")
    typed = (f"model={model}", "task=B2", f"task.float_checkpoint={start}", "seed=3")
    return folder, act(folder, *STRINGS, *BLOCKS, *typed)


def test_a_float_run_is_converted_and_certified(float_run, integer_run):
    (start, _), (folder, run) = float_run, integer_run
    found, engines = results(folder), results(folder)["engines"]
    assert found["metrics"]["test_float"] == engines["float"]["metrics"] == results(start)["metrics"]["test"]
    assert found["metrics"]["test"] == engines["integer"]["metrics"] != engines["float"]["metrics"]
    assert engines["dynamic"]["metrics"] != engines["float"]["metrics"]
    assert engines["integer"]["model_bytes"] == found["size"]["model_bytes"] < engines["float"]["model_bytes"]
    details = found["certificate"]["details"]
    assert details["integer_layers"] == ["encoder.blocks.0.recurrent", "encoder.blocks.1.recurrent"]
    some_float = {"encoder.downsampling", "encoder.blocks.1.attention", "encoder.norm", "output"}
    assert some_float < set(details["float_parts"])
    assert max(details["accumulator_bounds"].values()) < 2**31
    constraint = run.task.constraint(integer_form(run.network), epochs=2)
    assert constraint.parts == ("recurrent",)
    assert "INT8 recurrent layers, integers only from their input codes to their states" in constraint.lines


def test_evaluate_finds_the_same_again_and_a_layer_that_was_changed(act, integer_run, tmp_path):
    folder, _ = integer_run
    again = evaluate(act, tmp_path, best(folder))
    assert again["metrics"]["test"] == results(folder)["metrics"]["test"]
    assert again["certificate"] == results(folder)["certificate"]
    content, layer = load_deployable(str(best(folder))), "encoder.blocks.1.recurrent"
    weights = content["network"]
    key = next(key for key in weights if key.startswith(f"network.{layer}.") and key.endswith(".product.bias"))
    weights[key][0] = 2**31 - 1
    save_deployable(content, tmp_path / "tampered_best.pt")  # with a valid digest
    with pytest.raises(ValueError, match=rf"the accumulator {layer}\.\w+ may reach .* int32's limit"):
        evaluate(act, tmp_path, tmp_path / "tampered_best.pt")


def test_quantisation_aware_epochs_with_a_teacher_are_validated_in_integers(act, float_run, tmp_path):
    start, model = float_run
    typed = (f"model={model}", "task=B2", "task.qat_epochs=1", f"task.float_checkpoint={start}", "kd=teacher")
    act(tmp_path / "run", *STRINGS, *BLOCKS, *typed, f"kd.run={start}", "seed=3")
    found = results(tmp_path / "run")
    (row,) = table(tmp_path / "run" / "history.csv")
    assert row["phase"] == "quantisation-aware"
    assert [float(row[f"val_{name}"]) for name in EXACT] == [found["metrics"]["val"][name] for name in EXACT]
    assert found["metrics"]["test"]["loss"] < found["engines"]["float"]["metrics"]["loss"]  # it kept learning
    assert evaluate(act, tmp_path, best(tmp_path / "run"))["metrics"]["test"] == found["metrics"]["test"]


@pytest.mark.parametrize(
    ("overrides", "covered", "some_float"),
    [
        ((*STRINGS, "encoder=compact", "encoder.front_channels=4"), ["encoder.layers.0"], {"encoder.front", "output"}),
        (("dataset=digits_demo", *FEW, "encoder=asr_small", *BLOCKS[:3], "encoder.attention=off", "objective.pooling=attention"), ["encoder.blocks.0.recurrent", "encoder.blocks.1.recurrent"], {"encoder.downsampling", "output", "score"}),
    ],
    ids=["compact_ctc", "attention_classification"],
)  # fmt: skip
def test_the_other_encoder_of_each_objective(act, tmp_path, overrides, covered, some_float):
    parts = ("model.hidden_size=8", "model.bidirectional=true", "trainer.epochs=1", "trainer.precision=bf16")
    act(tmp_path / "run", *overrides, *parts, "task=B2", "task.qat_epochs=1", "seed=3")
    found = results(tmp_path / "run")
    assert found["certificate"]["details"]["integer_layers"] == covered
    assert some_float <= set(found["certificate"]["details"]["float_parts"])
    assert evaluate(act, tmp_path, best(tmp_path / "run"))["metrics"]["test"] == found["metrics"]["test"]
