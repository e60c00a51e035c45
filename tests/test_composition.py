"""Every file of conf/ composes, and what it composes can be built."""

from itertools import product

import pytest
from composition import choices, composing, experiment
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

GROUPS = ["features", "augment", "encoder", "objective", "decoder", "kd", "trainer", "action", "launcher", "experiment"]


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


def test_the_groups_of_the_full_product_are_all_there():
    assert {"fsdd", "digits_demo"} <= set(choices("dataset"))
    assert set(choices("model")) == {"gru", "lstm", "lmu"}
    assert "A" in choices("task")


# Task C comes with each of its approaches.
TASKS = [(task, "null") for task in choices("task") if task != "C"] + [("C", one) for one in choices("c_approach")]


@pytest.mark.parametrize(
    ("dataset", "model", "task", "c_approach"),
    [(d, m, *task) for d, m, task in product(choices("dataset"), choices("model"), TASKS)],
)
def test_dataset_model_task_and_approach_compose_and_build(compose, tmp_path, dataset, model, task, c_approach):
    typed = [f"c_approach={c_approach}"] if task == "C" else []
    config = compose(f"dataset={dataset}", f"model={model}", f"task={task}", *typed, "trainer.device=cpu", "seed=3")
    built = experiment(config, tmp_path)
    layer = built.network.encoder.recurrent_layers[0]
    assert layer.name == model
    assert built.dataset.name.replace("-", "_") == dataset
    assert built.seed == 3
    assert built.task.name == task
    if task == "A":
        assert layer.hidden_size == config.model.hidden_size
    else:
        assert config.model.hidden_size is None
        assert layer.size().bytes() <= config.sizes.budget_bytes
        if config.hydra.runtime.choices.encoder == "compact":
            assert config.sizes.budget_bytes == 36 * 1024
    if task == "C":
        assert built.task.approach.name == c_approach
        assert built.task.phases(40)[0].last + 1 == built.task.phases(40)[1].first == 10


@pytest.mark.parametrize("task", ["B1", "B2", "C"])
@pytest.mark.parametrize(
    ("model", "features", "hidden_size"), [("gru", 20, 45), ("lstm", 20, 38), ("gru", 39, 38), ("lstm", 39, 31)]
)
def test_the_budget_gives_the_sizes_of_the_design(compose, tmp_path, task, model, features, hidden_size):
    config = compose(f"task={task}", f"model={model}", f"features=mfcc{features}", "trainer.device=cpu")
    layer = experiment(config, tmp_path).network.encoder.recurrent_layers[0]
    assert (layer.hidden_size, layer.output_size) == (hidden_size, hidden_size)


@pytest.mark.parametrize(("model", "hidden_size"), [("gru", 97), ("lstm", 83)])
def test_expansion_counts_what_int8_stores(compose, tmp_path, model, hidden_size):
    config = compose("task=B2", "task.expand_to_budget=true", f"model={model}", "trainer.device=cpu")
    assert experiment(config, tmp_path).network.encoder.recurrent_layers[0].hidden_size == hidden_size


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["objective=ctc"], "objective=ctc learns text, dataset=fsdd gives classes"),
        (["dataset=fsdd_strings", "objective=classification"], "learns classes, dataset=fsdd_strings gives text"),
        (["decoder=beam"], "decoder=beam has no meaning with objective=classification"),
        (["dataset=gigaspeech", "objective=classification"], "learns classes, dataset=gigaspeech gives text"),
        (["dataset=gigaspeech", "dataset.subset=xxl"], "dataset.subset=xxl: expected one of xs, s, m, l, xl"),
        (["dataset=gigaspeech", "objective.consistency=-1"], "objective.consistency=-1"),
        (["dataset=fsdd_strings", "decoder=beam", "decoder.beam=0"], "decoder.beam=0: expected at least 1"),
        (["task=A", "c_approach=apot2"], "c_approach=apot2 has no meaning with task=A"),
        (["task=B1", "c_approach=ste"], "c_approach=ste has no meaning with task=B1"),
        (["kd=teacher"], "kd=teacher has no meaning with task=A"),
        (["task=B1", "kd=teacher"], "kd=teacher has no meaning with task=B1"),
        (["task=B2", "kd=teacher"], "set task.qat_epochs"),
        (["task=B2", "task.qat_epochs=-1"], "task.qat_epochs=-1: expected at least 0"),
        (["task=C", "kd=teacher", "kd.tau=0"], "kd.tau=0"),
        (["task=C", "kd=teacher", "kd.alpha=2"], "kd.alpha=2: expected a number from 0 to 1"),
        (["task=C", "task.k_min=3", "task.k_max=1"], "task.k_min=3"),
        (["task=C", "task.scope=everything"], "expected one of all, rnn_only, recurrent_matrices"),
        (
            ["task=C", "c_approach=mixed_pot", "task.scope=all"],
            "c_approach=mixed_pot is defined for recurrent_matrices",
        ),
        (["task=C", "c_approach=inq", "task.every_n_steps=5"], "has no meaning with c_approach=inq"),
        (["task=C", "c_approach=ste", "task.every_n_steps=5"], "has no meaning with c_approach=ste"),
        (["task=C", "task.start_epoch=0"], "task.start_epoch=0: expected at least 1"),
        (["task=C", "task.fine_tune_lr=0"], "task.fine_tune_lr=0"),
        (["task=C", "task.every_n_steps=0"], "task.every_n_steps=0"),
        (["task=B1", "task.budget_bytes=0"], "task.budget_bytes=0: expected at least 1"),
        (["task=B1", "task.budget_bytes=100"], "task.budget_bytes=100 cannot be met: with hidden size 1"),
        (["task=B1", "model.hidden_size=46"], "set model.hidden_size to at most 45"),
        (["model.hidden_size=null"], "task A solves for no size"),
    ],
)
def test_combinations_without_meaning_are_one_sentence(compose, tmp_path, overrides, expected):
    with pytest.raises(ValueError, match=expected):
        _ = experiment(compose(*overrides, "trainer.device=cpu"), tmp_path).network


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_the_other_groups_composes_and_resolves(compose, group):
    for choice in choices(group):
        config = compose(f"{group}={choice}")
        OmegaConf.resolve(config[group] if config.get(group) is not None else OmegaConf.create())
        if group != "experiment":
            assert config.hydra.runtime.choices[group] == choice


@pytest.mark.parametrize("features", choices("features"))
@pytest.mark.parametrize("augment", choices("augment"))
def test_features_and_augment_build_together(compose, tmp_path, features, augment):
    built = experiment(compose(f"features={features}", f"augment={augment}", "trainer.device=cpu"), tmp_path)
    assert built.extractor.num_features == built.network.encoder.input_size
    assert built.augment is not None


def test_what_the_user_types_wins(compose, tmp_path):
    built = experiment(compose("model=lstm", "model.hidden_size=7", "model.bidirectional=true"), tmp_path)
    layer = built.network.encoder.recurrent_layers[0]
    assert (layer.hidden_size, layer.output_size) == (7, 14)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.epochs=many", "trainer.epochs=many: expected a whole number, change trainer.epochs"),
        ("trainer.epochs=0", "trainer.epochs=0: expected at least 1"),
        ("trainer.lr=-1", "trainer.lr=-1: expected a number above 0"),
        ("trainer.batch_seconds=0", "trainer.batch_seconds=0: expected a number above 0"),
        ("trainer.accumulate=0", "trainer.accumulate=0: expected at least 1"),
        ("trainer.epoch_batches=0", "trainer.epoch_batches=0: expected at least 1"),
        ("trainer.warmup_share=1", "trainer.warmup_share=1: expected a share from 0 up to below 1"),
        ("trainer.device=tpu", "trainer.device=tpu: expected one of auto, cpu, cuda"),
        ("trainer.precision=fp64", "expected one of fp32, bf16, fp16"),
        ("trainer.compile=2", "trainer.compile=2: expected true or false"),
        ("trainer.patience=often", "expected a whole number or null"),
        ("+trainer.momentum=1", "trainer.momentum is unknown"),
    ],
)
def test_a_wrong_value_is_one_sentence_naming_the_key(compose, tmp_path, override, expected):
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        experiment(compose(override), tmp_path).build("trainer")


@pytest.mark.parametrize(
    ("overrides", "part", "expected"),
    [
        (["dataset.split=fold"], "dataset", "expected one of official, random, speaker"),
        (["dataset.test_speaker=theo"], "dataset", "add dataset.split=speaker"),
        (["dataset.index_ranges=3"], "dataset", "expected a table"),
        (["features.normalization=batch"], "normalizer", "features.normalization=batch"),
        (["features.extractor.hop_s=1"], "extractor", "0 < hop <= window"),
        (["encoder.num_layers=0"], "network", "encoder.num_layers=0: expected at least 1"),
        (["model.hidden_size=big"], "network", "model.hidden_size=big"),
        (["model.hidden_size=0"], "network", "model.hidden_size=0"),
        (["model=lmu", "model.order=0"], "network", "model.order"),
        (["model=lmu", "model.theta=-1"], "network", "model.theta"),
        (["model=lmu", "model.memory_channels=0"], "network", "model.memory_channels"),
        (["model=lmu", "model.algorithm=magic"], "network", "model.algorithm"),
        (["objective.pooling=max"], "network", "expected one of last, mean, attention"),
    ],
)
def test_wrong_values_of_other_parts(compose, tmp_path, overrides, part, expected):
    with pytest.raises(ValueError, match=expected):
        getattr(experiment(compose(*overrides, "trainer.device=cpu"), tmp_path), part)


def test_synthetic_voices_without_variants_are_refused_not_passed_over(compose, tmp_path):
    config = compose("dataset=digits_demo", "dataset.synthetic_voices=8", "augment=light", "trainer.device=cpu")
    with pytest.raises(ValueError, match=r"synthetic_voices=8 join training only .*: set augment=strong"):
        _ = experiment(config, tmp_path).features


@pytest.mark.parametrize("seed", ["early", "-1", "1.5", "true", str(2**32)])
def test_a_wrong_seed_is_one_sentence(compose, tmp_path, seed):
    with pytest.raises(ValueError, match=f"seed={'True' if seed == 'true' else seed}: expected a whole number"):
        experiment(compose(f"seed={seed}"), tmp_path)


@pytest.mark.parametrize("override", ["trainer.momentum=1", "modle=gru", "dataset.speed=2", "model=rnn"])
def test_unknown_keys_and_choices_fail_in_composition(compose, override):
    with pytest.raises(ConfigCompositionException):
        compose(override)


def test_the_help_page_names_every_choice_of_every_group(compose):
    template = OmegaConf.to_container(compose().hydra.help, resolve=False)["template"]
    for group in ["dataset", "model", "task", "c_approach", *GROUPS]:
        line = next(line for line in template.splitlines() if line.startswith(f"{group} "))
        for choice in choices(group):
            assert choice in line, f"{group}={choice} is not in the help page"


def test_the_config_hash_ignores_places_and_sees_everything_else(compose, tmp_path):
    def digest(*overrides: str) -> str:
        return experiment(compose(*overrides), tmp_path).config_hash()

    assert digest() == digest("dataset.root=/elsewhere") == digest("cache_dir=/c") == digest("trainer.tensorboard=true")
    assert digest() == digest("trainer.mlflow=http://host:5000", "trainer.wandb=mine")
    assert digest("experiment=search_lr", "study=one") == digest()
    assert len({digest(), digest("seed=1"), digest("trainer.lr=1"), digest("model=lmu"), digest("augment=none")}) == 5
