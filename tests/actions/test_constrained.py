"""Runs of the constrained tasks: the report describes the deployed model, and action=evaluate confirms it."""

from contextlib import nullcontext
from functools import cache as once

import pytest
import torch
from composition import experiment, without_figures
from omegaconf import OmegaConf
from run_files import best, evaluation, results, table

from speech_exp.experiment import Experiment
from speech_exp.tasks.deployment import CertificateError
from speech_exp.tasks.grids import Grid, row_shared
from speech_exp.training.checkpoint import load_deployable, save_deployable

SHORT = ("dataset=digits_demo", "trainer.device=cpu", "trainer.epochs=2", "model.hidden_size=12")


@pytest.fixture(scope="module")
def act(compose, cache):
    def run(folder, *overrides, defaults=SHORT, figures=False):
        built = experiment(compose(*defaults, f"cache_dir={cache}", *overrides), folder)
        built.overrides = overrides
        with nullcontext() if figures else without_figures():
            built.build("action")(built)
        return built

    return run


def evaluate(act, folder, path):
    act(folder, "action=evaluate", f"checkpoint={path}", defaults=("dataset=digits_demo", "trainer.device=cpu"))
    return evaluation(path)


@pytest.fixture(scope="module")
def trained(act, tmp_path_factory):
    """Return a function that gives the folder of a model's float run, trained at its first call."""

    @once
    def folder_of(model):
        folder = tmp_path_factory.mktemp(f"float_{model}")
        act(folder, "task=B1", f"model={model}", "seed=5")
        return folder

    return folder_of


@pytest.fixture(params=["gru", "lstm", "lmu"])
def float_run(request, trained):
    return trained(request.param), request.param


@pytest.fixture
def gru(trained):
    return trained("gru")


def refuse_other_memory(act, folder, name):
    """Check that a negated B is refused: it is as stable and on the same grid, but not the one that the config describes."""
    content = load_deployable(str(best(folder / "run")))
    content["network"][name] = -content["network"][name]
    save_deployable(content, folder / "other_best.pt")
    with pytest.raises(CertificateError, match=f"{name} is not the zero-order hold"):
        evaluate(act, folder, folder / "other_best.pt")


def assert_stored(folder, found):
    """Check that the reported bytes are those of the packed file, and that the file restores the checkpoint's network."""
    path = best(folder).with_suffix(".packed")
    assert path.stat().st_size == found["size"]["packed_bytes"]
    content = load_deployable(str(best(folder)))
    original = Experiment(OmegaConf.create(content["config"]), content["choices"], folder)
    again = original.task.deployment.unpacked(original.network, path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in content["network"].items())


def test_a_budget_run_is_certified(float_run):
    found = results(float_run[0])
    assert (found["task"], found["c_approach"], found["kd"]) == ("B1", None, None)
    assert found["certificate"]["kind"] == "budget"
    assert found["certificate"]["details"]["recurrent_layer_bytes"] == found["size"]["recurrent_layer_bytes"]
    assert found["size"]["recurrent_layer_bytes"][0] <= found["size"]["budget_bytes"] == 36 * 1024
    assert "test_float" not in found["metrics"]
    assert_stored(float_run[0], found)


def test_powers_of_two_from_a_float_run(act, float_run, tmp_path):
    start, model = float_run
    act(
        tmp_path / "run",
        "task=C",
        f"model={model}",
        "c_approach=snap_epoch",
        "task.start_epoch=1",
        f"task.float_checkpoint={start}",
        "seed=5",
    )
    found = results(tmp_path / "run")
    # The reference equals the float run that the run started from, to the last digit.
    assert found["metrics"]["test_float"] == results(start)["metrics"]["test"]
    assert (found["certificate"]["kind"], found["c_approach"]) == ("power_of_two", "snap_epoch")
    saved = torch.load(best(tmp_path / "run"), weights_only=True)["network"]
    levels = torch.tensor([0.0, *(sign * 2.0**k for k in range(-8, 9) for sign in (1, -1))])
    projected = {name for name in saved if not name.endswith((".memory.A", ".memory.B"))}
    assert all(torch.isin(saved[name], levels).all() for name in projected)
    assert found["certificate"]["checked"] == sum(saved[name].numel() for name in projected)
    assert found["size"]["packed_bytes"] < found["size"]["model_bytes"] / 4
    assert_stored(tmp_path / "run", found)
    again = evaluate(act, tmp_path, best(tmp_path / "run"))
    assert again["metrics"]["test"] == found["metrics"]["test"]
    assert again["certificate"] == found["certificate"]
    if model == "lmu":
        refuse_other_memory(act, tmp_path, "encoder.layers.0.memory.B")


def test_a_float_run_is_rounded_without_training(act, float_run, tmp_path):
    start, model = float_run
    typed = ("c_approach=row_shared", "task.fine_tune=false", f"task.float_checkpoint={start}", "seed=5")
    act(tmp_path / "run", "task=C", f"model={model}", *typed)
    found = results(tmp_path / "run")
    assert (found["epochs"], found["best_epoch"]) == (0, 0)
    assert found["metrics"]["test_float"] == results(start)["metrics"]["test"]
    saved, trained = (load_deployable(str(best(folder)))["network"] for folder in (tmp_path / "run", start))
    for name, weight in trained.items():
        if not name.endswith((".memory.A", ".memory.B")):
            assert torch.equal(saved[name], row_shared(weight, Grid(-8, 8))), name
    again = evaluate(act, tmp_path, best(tmp_path / "run"))
    assert (again["metrics"]["test"], again["certificate"]) == (found["metrics"]["test"], found["certificate"])


def test_a_weight_off_the_grid_is_caught_by_evaluate_from_the_checkpoint_alone(act, gru, tmp_path):
    act(tmp_path / "run", "task=C", "c_approach=ste", "task.start_epoch=2", f"task.float_checkpoint={gru}")
    content = load_deployable(str(best(tmp_path / "run")))
    content["network"]["output.bias"][3] += 0.3
    save_deployable(content, tmp_path / "tampered_best.pt")  # with a valid digest
    with pytest.raises(CertificateError, match=r"1 of output.bias"):
        evaluate(act, tmp_path, tmp_path / "tampered_best.pt")
    # The weights of a float run in a checkpoint of task C.
    content["network"] = load_deployable(str(best(gru)))["network"]
    save_deployable(content, tmp_path / "mixed_best.pt")
    with pytest.raises(CertificateError, match="off the grid of c_approach=ste"):
        evaluate(act, tmp_path, tmp_path / "mixed_best.pt")


def test_integers_from_a_float_run(act, float_run, tmp_path):
    start, model = float_run
    act(tmp_path / "run", "task=B2", f"model={model}", f"task.float_checkpoint={start}", "seed=5")
    found = results(tmp_path / "run")
    assert (found["epochs"], found["best_epoch"]) == (0, 0)
    assert found["metrics"]["test_float"] == results(start)["metrics"]["test"] == found["engines"]["float"]["metrics"]
    assert found["metrics"]["test"] == found["engines"]["integer"]["metrics"]
    assert set(found["engines"]) == {"float", "dynamic", "integer"}
    sizes = {name: engine["model_bytes"] for name, engine in found["engines"].items()}
    assert sizes["dynamic"] < sizes["float"] / 2
    assert sizes["integer"] == found["size"]["model_bytes"] < sizes["float"]
    assert found["certificate"]["kind"] == "integer_only"
    assert max(found["certificate"]["details"]["accumulator_bounds"].values()) < 2**31
    assert found["certificate"]["details"]["float_parts"] == []
    assert_stored(tmp_path / "run", found)
    saved = load_deployable(str(best(tmp_path / "run")))["network"]
    weights = [value for value in saved.values() if value.numel() > 100]
    assert weights
    assert not [value for value in weights if value.is_floating_point()]
    again = evaluate(act, tmp_path, best(tmp_path / "run"))
    assert again["metrics"]["test"] == found["metrics"]["test"]
    assert again["certificate"] == found["certificate"]
    if model == "lmu":
        refuse_other_memory(act, tmp_path, "layers.0.B")


def test_quantisation_aware_training_is_validated_in_integers(act, gru, tmp_path):
    act(
        tmp_path,
        "task=B2",
        f"task.float_checkpoint={gru}",
        "task.qat_epochs=2",
        "kd=teacher",
        f"kd.run={gru}",
        "seed=5",
    )
    found = results(tmp_path)
    assert (found["epochs"], found["kd"]) == (2, "teacher")
    rows = table(tmp_path / "history.csv")
    assert [row["phase"] for row in rows] == ["quantisation-aware"] * 2
    assert found["metrics"]["test_float"] == results(gru)["metrics"]["test"]
    # The deployed network is the one selected in training: the same integers, the same validation metrics.
    assert float(rows[found["best_epoch"] - 1]["val_accuracy"]) == found["metrics"]["val"]["accuracy"]


def test_a_teacher_is_trained_first_kept_and_changes_only_the_loss(act, tmp_path):
    typed = ("task=C", "c_approach=snap_epoch", "task.start_epoch=2", "kd=teacher", "seed=5")
    act(tmp_path / "one", *typed)
    teacher = tmp_path / "one" / "teacher"
    assert (results(teacher)["task"], results(teacher)["epochs"]) == ("A", 2)
    assert results(teacher)["size"]["hidden_size"] == results(tmp_path / "one")["size"]["hidden_size"]
    assert results(tmp_path / "one")["kd"] == "teacher"
    # Loading the same teacher from its folder gives the same student, bit for bit.
    act(tmp_path / "two", *typed, f"kd.run={teacher}")
    assert not (tmp_path / "two" / "teacher").exists()
    assert results(tmp_path / "one")["metrics"] == results(tmp_path / "two")["metrics"]
    # With alpha 0 the teacher has no part in the loss: the result is that of a run without distillation.
    act(tmp_path / "alone", *typed, f"kd.run={teacher}", "kd.alpha=0")
    act(tmp_path / "plain", *typed[:3], "seed=5")
    assert results(tmp_path / "alone")["metrics"] == results(tmp_path / "plain")["metrics"]
    assert results(tmp_path / "one")["metrics"]["val"] != results(tmp_path / "plain")["metrics"]["val"]


def test_a_teacher_has_all_the_sizes_that_the_budget_gave_its_student(act, tmp_path):
    typed = ("model=lmu", "task=C", "task.budget_bytes=2304", "task.start_epoch=2", "kd=teacher")
    act(tmp_path, *typed, defaults=SHORT[:-1])
    student, teacher = (results(folder)["size"] for folder in (tmp_path, tmp_path / "teacher"))
    for size in ("hidden_size", "memory_channels", "order"):
        assert student[size] == teacher[size]
    # The teacher's config states them as numbers, because its task A does not solve for sizes.
    saved = load_deployable(str(best(tmp_path / "teacher")))["config"]["model"]
    assert (saved["memory_channels"], saved["order"]) == (student["memory_channels"], student["order"])


def test_a_run_on_other_data_is_refused_as_a_start(act, gru, tmp_path):
    with pytest.raises(
        ValueError, match=r"task.float_checkpoint=.* was trained with dataset.split=official, this run has random"
    ):
        act(tmp_path, "task=C", f"task.float_checkpoint={gru}", "dataset.split=random")


def test_engines_stand_side_by_side_after_training_in_bfloat16_with_every_part(act, tmp_path):
    parts = ("objective.pooling=attention", "encoder.front_channels=8", "model=lstm", "trainer.precision=bf16")
    act(tmp_path, "task=B2", "task.qat_epochs=1", *parts, figures=True)
    assert (tmp_path / "figures" / "flowchart.png").exists()
    found = results(tmp_path)
    assert found["certificate"]["details"]["integer_layers"] == ["front", "layers.0", "pooling", "output"]
    assert found["engines"]["integer"]["agreement"] > 0.9
    assert found["engines"]["float"]["agreement"] == 1


def test_too_few_epochs_are_reported_before_any_work(act, tmp_path):
    with pytest.raises(ValueError, match="phase two has 2 epochs with c_approach=inq: expected at least 3"):
        act(tmp_path, "task=C", "c_approach=inq")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_tells_the_size_and_trains_no_teacher(act, tmp_path, capsys):
    act(tmp_path, "task=C", "kd=teacher", "dry_run=true", "model.hidden_size=null")
    printed = capsys.readouterr().out
    assert (
        "hidden size 45: the largest within 36,864 bytes per recurrent layer, 36,180 bytes (8,775 weights, 270 biases)"
        in printed
    )
    assert "1 to 2" in printed
    assert list(tmp_path.iterdir()) == []
