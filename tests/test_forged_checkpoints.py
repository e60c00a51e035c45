"""Forged checkpoints are refused in one sentence, and nothing that they ask for happens."""

import copy
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from composition import composing, experiment
from run_files import best

from speech_exp.data.digits import BUNDLED
from speech_exp.training.checkpoint import FORMAT, load_deployable, save_deployable

RUN = Path(__file__).parents[1] / "run.py"
RECORDING = BUNDLED / "digits_demo" / "3_emil_0.flac"
NAME = "forged_best.pt"  # in the working directory
TOUCH = "from pathlib import Path; Path('canary').touch()"


def act(config, folder):
    built = experiment(config, folder)
    return built.build("action")(built)


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield lambda *overrides: composed("dataset=digits_demo", "trainer.device=cpu", *overrides)


@pytest.fixture(scope="module")
def prediction(compose):
    """Return the config of a prediction with the file that `forged` writes."""
    return compose("action=predict", f"checkpoint={NAME}", f"audio={RECORDING}")


@pytest.fixture(scope="module")
def content(compose, tmp_path_factory):
    """Return the content of a valid checkpoint of an LMU, which has sizes of every kind."""
    folder = tmp_path_factory.mktemp("run")
    cache = f"cache_dir={tmp_path_factory.mktemp('cache')}"
    act(compose(cache, "trainer=debug", "trainer.epoch_batches=1", "model=lmu"), folder)
    return load_deployable(str(best(folder)))


def config(key, value):
    """Return a forgery that sets `key` of the config."""

    def forge(content):
        *path, last = key.split("/")
        node = content["config"]
        for part in path:
            node = node[part]
        node[last] = value

    return forge


def network(change):
    def forge(content):
        name = "encoder.layers.0.hidden_from_input.weight"
        content["network"][name] = change(content["network"][name])

    return forge


def replaced(part, value):
    return lambda content: content.update({part: value})


def without(part):
    return lambda content: content["config"].pop(part)


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


SHELL = {"_target_": "os.system", "command": "touch canary"}
FORGERIES = {
    # what is called
    "a shell": config("task", SHELL),
    "sympy": config("task", {"_target_": "sympy.sympify", "a": "__import__('os').system('touch canary')"}),
    "eval": config("model", {"_target_": "builtins.eval", "expression": TOUCH}),
    "subprocess": config("trainer", {"_target_": "subprocess.run", "args": ["touch", "canary"]}),
    "the package's own instantiate": config("task", {"_target_": "speech_exp.experiment.instantiate", "config": SHELL}),
    "hydra's instantiate": config("task", {"_target_": "hydra.utils.instantiate", "config": SHELL}),
    "a class of another group": config("model/_target_", "speech_exp.tasks.unconstrained.Unconstrained"),
    "a function of the package": config("task/_target_", "speech_exp.tasks.storage.stored_in_float"),
    "another name of a registered class": config("task/_target_", "speech_exp.experiment.Task"),
    "a name with a space": config("task/_target_", "speech_exp.tasks.unconstrained.Unconstrained "),
    "a target that is a table": config("task/_target_", SHELL),
    "a target that is null": config("task/_target_", None),
    "no target": config("task", {}),
    "a group that is a text": config("encoder", "compact"),
    "a target in an extractor": config("features/extractor/_target_", "os.system"),
    "a target in a download": config("dataset/download", SHELL),
    "a target in variants": config("augment/variants", SHELL),
    "a target below an argument": config("model/order", SHELL),
    "a target in a list": config("augment/speeds", [SHELL]),
    "a target in numbers that are never built": config("recipe/lr", SHELL),
    "a target in an action": config("action/_target_", "os.system"),
    # how it is called
    "positional arguments": config("task/_args_", ["touch canary"]),
    "a partial call": config("task/_partial_", True),
    "no recursion": config("task/_recursive_", False),
    "another conversion": config("task/_convert_", "object"),
    "an unknown argument": config("model/secret", 1),
    "an argument that the composition gives": config("encoder/cell", {"_target_": "speech_exp.models.lmu.LMU"}),
    "an unknown key": config("extra", 1),
    "a missing group": without("features"),
    "a key that is no name": config("recipe/a b", 1),
    # what it refers to
    "the environment": config("dataset/root", "${oc.env:HOME}"),
    "an own key": config("model/hidden_size", "${seed}"),
    "a missing value": config("dataset/name", "???"),
    "a cycle": config("recipe", {"a": "${recipe.b}", "b": "${recipe.a}"}),
    # what it weighs
    "a million hidden units": config("model/hidden_size", 10**6),
    "an order of 100,000": config("model/order", 10**5),
    "a million channels": config("model/memory_channels", 10**6),
    "a million layers": config("encoder/num_layers", 10**6),
    "sizes that multiply": lambda content: content["config"]["model"].update(hidden_size=9000, memory_channels=9000),
    "a huge transform": config("features/extractor/n_fft", 2**40),
    "a huge bank": config("features/extractor/n_mels", 2**30),
    "a huge number": config("seed", 2**63),
    "a dropout above 1": config("encoder/dropout", 1.5),
    "fewer channels than none": config("encoder/front_channels", -3),
    "not a number": config("model/theta", float("nan")),
    "a text for a number": config("model/hidden_size", "128"),
    "deep tables": config("recipe", nested(20)),
    "deeper tables": config("recipe", nested(60)),
    "more coefficients than bands": config("features/extractor/n_mfcc", 1000),
    "no window": config("features/extractor/hop_s", 0.0),
    # weights
    "an expanded tensor": network(lambda _: torch.zeros(1).expand(40_000_000_000)),
    "a transposed tensor": network(lambda weight: weight.T),
    "a sparse tensor": network(lambda weight: weight.to_sparse()),
    "a weight that is NaN": network(lambda weight: torch.full_like(weight, torch.nan)),
    "a weight that is infinite": network(lambda weight: torch.full_like(weight, torch.inf)),
    "another shape": network(lambda weight: weight[:, :-1].contiguous()),
    "a text for a tensor": network(lambda _: "weight"),
    "one tensor too many": lambda content: content["network"].update(extra=torch.zeros(3)),
    "no tensors": replaced("network", {}),
    "no statistics": replaced("front_end", {}),
    "statistics of other features": replaced("front_end", {"mean_F": torch.zeros(7), "std_F": torch.ones(7)}),
    "statistics of zero": lambda content: content["front_end"]["std_F"].zero_(),
    "choices that are a list": replaced("choices", ["task"]),
    "a config that is a text": replaced("config", "task"),
    "a fingerprint that is a tensor": replaced("data_fingerprint", torch.zeros(3)),
    "a number without end": replaced("data_fingerprint", 1 << 100_000),
    "tables that share": replaced("class_names", [["a"] * 10]),
}


def bomb(levels):
    """Nest lists of ten references to the list below: 20 levels represent 10^20 items in a few hundred bytes."""
    value = [0] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


FORGERIES["lists that share"] = replaced("class_names", bomb(20))


def write(content, path):
    """Write a checkpoint with a valid digest where possible: it uses no secret key, so a forger can compute it too."""
    try:
        save_deployable(content, path)
    except Exception:
        torch.save({"format": FORMAT, **content, "digest": "0" * 64}, path)


@pytest.fixture
def forged(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(forge):
        changed = copy.deepcopy(content)
        forge(changed)
        path = tmp_path / NAME
        write(changed, path)
        return path

    return make


def cheap(monkeypatch):
    """Replace the digest, which would take forever for a forgery that represents terabytes."""
    monkeypatch.setattr("speech_exp.training.checkpoint._digest", lambda _: "0" * 64)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused_in_one_sentence(name, forged, prediction, tmp_path, monkeypatch):
    cheap(monkeypatch)
    path = forged(FORGERIES[name])
    assert path.stat().st_size < 1_000_000
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"^checkpoint=") as refusal:
        act(prediction, tmp_path / "out")
    text = str(refusal.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert "weights_only" not in text
    assert set(tmp_path.rglob("*")) == before


def test_the_sound_file_is_accepted(forged, prediction, tmp_path, capsys):
    forged(lambda _: None)
    act(prediction, tmp_path / "out")
    assert str(RECORDING) in capsys.readouterr().out


def test_a_file_does_not_choose_where_folders_are_made(forged, compose, tmp_path):
    path = forged(config("cache_dir", str(tmp_path / "elsewhere" / "cache")))
    own = tmp_path / "own"
    built = experiment(compose("action=evaluate", f"checkpoint={path}", f"cache_dir={own}"), tmp_path / "out")
    built.overrides = (f"cache_dir={own}",)
    built.build("action")(built)
    assert own.is_dir()
    assert not (tmp_path / "elsewhere").exists()


COMMANDS = [
    ("predict", "an expanded tensor"),
    ("evaluate", "a shell"),
]  # the tests above refuse each of these in this process
COMMANDS += [
    pytest.param(action, name, marks=pytest.mark.slow)
    for action, name in (("predict", "sympy"), ("predict", "the package's own instantiate"), ("evaluate", "a cycle"))
]


@pytest.mark.parametrize(("action", "name"), COMMANDS)
def test_the_command_line_ends_with_status_1(action, name, forged, tmp_path, monkeypatch):
    cheap(monkeypatch)
    path = forged(FORGERIES[name])
    words = [f"action={action}", f"checkpoint={path}", "trainer.device=cpu", "hydra.run.dir=out"]
    words += [f"audio={RECORDING}"] if action == "predict" else []
    done = subprocess.run([sys.executable, str(RUN), *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error: checkpoint=" in done.stderr
    assert "Traceback" not in done.stderr
    assert "weights_only" not in done.stderr
    assert not (tmp_path / "canary").exists()


class Harm:
    def __reduce__(self):
        return (exec, (TOUCH,))


def pickled(value):
    def make(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(value))
            archive.writestr("a/version", "3")

    return make


def compressed(path):
    torch.save({"format": FORMAT, "network": {"w": torch.zeros(10_000_000)}}, path)
    entries = {entry: zipfile.ZipFile(path).read(entry) for entry in zipfile.ZipFile(path).infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry.filename, data)


def overlapping(path):
    """Write an archive with many entries that share the same bytes."""
    torch.save({"format": FORMAT, "network": {"w": torch.zeros(100_000)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        large = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        for number in range(1, 500):
            twin = copy.copy(large)
            twin.filename = large.filename[:-1] + str(number)
            archive.filelist.append(twin)
        archive._didModify = True


ARCHIVES = {
    "code": pickled(Harm()),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Harm())),
    "the legacy format": lambda path: torch.save({"format": FORMAT}, path, _use_new_zipfile_serialization=False),
    "allocating bytes": pickled(bytearray(10)),
    "another class that torch trusts": lambda path: torch.save({"format": FORMAT, "x": torch.Size([1])}, path),
    "compressed entries": compressed,
    "overlapping entries": overlapping,
    "two pickles": lambda path: [pickled({})(path), zipfile.ZipFile(path, "a").writestr("b/data.pkl", b"")],
    "nothing": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_forged_archive_is_refused_before_it_is_unpacked(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "forged_best.pt"
    ARCHIVES[name](path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch opened it"))
    with pytest.raises(ValueError, match=r"^checkpoint=.*not a readable checkpoint") as refusal:
        load_deployable(str(path))
    assert "weights_only" not in str(refusal.value)
    assert not Path("canary").exists()
