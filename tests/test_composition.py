"""Every file of conf/ composes into a config whose objects can be built."""

from functools import cache
from itertools import product

import pytest
import yaml
from composition import CONF, choices, composing, experiment
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

GROUPS = ["features", "augment", "encoder", "objective", "decoder", "kd", "trainer", "action", "launcher", "experiment"]


@pytest.fixture(scope="module")
def compose():
    with composing() as composed:
        yield composed


@pytest.fixture(scope="module")
def typed(compose):
    """Return a faster `compose`: each choice of groups is composed once, and values are set afterwards."""
    composed = cache(compose)

    def make(*overrides):
        chosen = [override for override in overrides if (CONF / override.partition("=")[0]).is_dir()]
        config = composed(*chosen).copy()
        for override in overrides:
            key, _, value = override.partition("=")
            if override not in chosen:
                OmegaConf.update(config, key.lstrip("+"), yaml.safe_load(value), force_add=key.startswith("+"))
        return config

    return make


def test_values_set_afterwards_are_those_that_hydra_sets(compose, typed, tmp_path):
    overrides = ["task=C", "task.k_min=3", "kd=teacher", "kd.tau=0", "model.hidden_size=big", "+trainer.momentum=1.5"]
    found, expected = (experiment(make(*overrides), tmp_path).config for make in (typed, compose))
    assert found == expected
    with pytest.raises(ConfigAttributeError):
        typed("trainer.momentum=1")


def test_the_groups_of_the_full_product_are_all_there():
    assert {"fsdd", "digits_demo"} <= set(choices("dataset"))
    assert {"gru", "lstm", "lmu"} <= set(choices("model"))
    assert "A" in choices("task")


INTEGER_MODELS = ("gru", "lstm", "lmu")  # those that task B2 can convert


def compositions():
    """Yield every data set with every model and task (C with its first approach), and each other approach with every model.

    Without the slow tests, every approach and every pair of data set, model and task still occurs.
    """
    datasets, models, (first, *others) = choices("dataset"), choices("model"), choices("c_approach")
    tasks = choices("task")
    for (i, dataset), (j, model), (k, task) in product(enumerate(datasets), enumerate(models), enumerate(tasks)):
        row = dataset, model, task, first if task == "C" else "null"
        if task != "B2" or model in INTEGER_MODELS:
            yield pytest.param(*row, marks=[pytest.mark.slow] * ((i + j + k) % len(models) != 0))
    for turn, ((i, c_approach), (j, model)) in enumerate(product(enumerate(others), enumerate(models))):
        row = datasets[turn % len(datasets)], model, "C", c_approach
        yield pytest.param(*row, marks=[pytest.mark.slow] * ((i + j) % len(models) != 0))


def test_by_default_every_model_and_approach_is_built_with_every_data_set_and_task():
    rows = [row.values for row in compositions() if not row.marks]
    datasets, models, tasks = (choices(group) for group in ("dataset", "model", "task"))
    assert {(row[0], row[1]) for row in rows} == set(product(datasets, models))
    built = {(row[1], row[2]) for row in rows}
    assert built == {(model, task) for model, task in product(models, tasks) if task != "B2" or model in INTEGER_MODELS}
    assert {row[3] for row in rows} == {*choices("c_approach"), "null"}


@pytest.mark.parametrize(("dataset", "model", "task", "c_approach"), compositions())
def test_dataset_model_task_and_approach_compose_and_build(compose, tmp_path, dataset, model, task, c_approach):
    approach = [f"c_approach={c_approach}"] if task == "C" else []
    config = compose(f"dataset={dataset}", f"model={model}", f"task={task}", *approach, "trainer.device=cpu", "seed=3")
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
        assert built.task.deployment.approach.name == c_approach
        assert built.task.phases(40)[0].last + 1 == built.task.phases(40)[1].first == 10


@pytest.mark.parametrize("task", ["B1", "B2", "C"])
@pytest.mark.parametrize(
    ("model", "features", "hidden_size"), [("gru", 20, 45), ("lstm", 20, 38), ("gru", 39, 38), ("lstm", 39, 31)]
)
def test_the_budget_gives_the_sizes_of_the_design(compose, tmp_path, task, model, features, hidden_size):
    config = compose(f"task={task}", f"model={model}", f"features=mfcc{features}", "trainer.device=cpu")
    layer = experiment(config, tmp_path).network.encoder.recurrent_layers[0]
    assert (layer.hidden_size, layer.output_size) == (hidden_size, hidden_size)


LMU_SIZES = ("hidden_size", "memory_channels", "order")


@pytest.mark.parametrize("encoder", ["compact", "asr_small", "asr"])
@pytest.mark.parametrize("task", ["B1", "B2", "C"])
def test_a_budget_leaves_the_sizes_of_an_lmu_open(compose, tmp_path, task, encoder):
    config = compose(f"task={task}", "model=lmu", f"encoder={encoder}", "features=mfcc39", "trainer.device=cpu")
    assert [config.model[key] for key in LMU_SIZES] == [None] * 3
    layer = experiment(config, tmp_path).network.encoder.recurrent_layers[0]
    assert 0.9 * config.sizes.budget_bytes < layer.size().bytes() <= config.sizes.budget_bytes


def test_typed_sizes_of_an_lmu_win_and_task_a_keeps_the_encoders(compose, tmp_path):
    def sizes(*overrides):
        config = compose("model=lmu", *overrides, "trainer.device=cpu")
        layer = experiment(config, tmp_path).network.encoder.recurrent_layers[0]
        return [layer.sizes()[key] for key in LMU_SIZES]

    assert sizes() == [128, 20, 8]
    assert sizes("task=B1", "model.memory_channels=20", "model.order=8") == [48, 20, 8]
    assert sizes("task=B1", "model.hidden_size=9", "model.order=6")[::2] == [9, 6]


@pytest.mark.parametrize(("model", "hidden_size"), [("gru", 93), ("lstm", 78)])
def test_expansion_counts_what_the_integer_layer_stores(compose, tmp_path, model, hidden_size):
    config = compose("task=B2", "task.expand_to_budget=true", f"model={model}", "trainer.device=cpu")
    assert experiment(config, tmp_path).network.encoder.recurrent_layers[0].hidden_size == hidden_size


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["objective=ctc"], "objective=ctc needs text, but dataset=fsdd provides classes"),
        (["dataset=fsdd_strings", "objective=classification"], "needs classes, but dataset=fsdd_strings provides text"),
        (["decoder=beam"], "decoder=beam cannot be used with objective=classification"),
        (["dataset=gigaspeech", "objective=classification"], "needs classes, but dataset=gigaspeech provides text"),
        (["dataset=gigaspeech", "dataset.subset=xxl"], "dataset.subset=xxl: expected one of xs, s, m, l, xl"),
        (["dataset=gigaspeech", "objective.consistency=-1"], "consistency=-1: expected a number of at least 0"),
        (
            ["dataset=fsdd_strings", "decoder=beam", "decoder.beam=0"],
            "decoder.beam=0: expected an integer of at least 1",
        ),
        (["task=A", "c_approach=apot2"], "c_approach=apot2 cannot be used with task=A"),
        (["task=B1", "c_approach=ste"], "c_approach=ste cannot be used with task=B1"),
        (["kd=teacher"], "kd=teacher cannot be used with task=A"),
        (["task=B1", "kd=teacher"], "kd=teacher cannot be used with task=B1"),
        (["task=B2", "kd=teacher"], "set task.qat_epochs"),
        (["task=B2", "task.qat_epochs=-1"], "task.qat_epochs=-1: expected an integer of at least 0"),
        (["task=C", "kd=teacher", "kd.tau=0"], "kd.tau=0: expected a number above 0, change kd.tau"),
        (["task=C", "kd=teacher", "kd.alpha=2"], "kd.alpha=2: expected a number from 0 to 1"),
        (["task=C", "task.k_min=3", "task.k_max=1"], "task.k_min=3"),
        (["task=C", "task.scope=everything"], "expected one of all, rnn_only, recurrent_matrices"),
        (
            ["task=C", "c_approach=mixed_pot", "task.scope=all"],
            "c_approach=mixed_pot is only defined for recurrent_matrices",
        ),
        (["task=C", "c_approach=inq", "task.every_n_steps=5"], "cannot be used with c_approach=inq"),
        (["task=C", "c_approach=ste", "task.every_n_steps=5"], "cannot be used with c_approach=ste"),
        (["task=C", "task.k_min=-127"], "task.k_min=-127: expected an integer from -126 to 127, change task.k_min"),
        (
            ["task=C", "task.start_epoch=0"],
            "task.start_epoch=0: expected an integer of at least 1 or null, change task.start",
        ),
        (["task=C", "c_approach=ema", "c_approach.start=nan"], "c_approach.start=nan: expected a number from 0 to 1"),
        (
            ["task=C", "task.fine_tune=false", "task.start_epoch=3"],
            "task.start_epoch cannot be used with task.fine_tune=false",
        ),
        (["task=C", "task.fine_tune=false", "kd=teacher"], "kd cannot be used with task.fine_tune=false"),
        (["task=B1", "task.budget_bytes=0"], "task.budget_bytes=0: expected an integer of at least 1"),
        (["task=B1", "task.budget_bytes=100"], "task.budget_bytes=100 cannot be met: with hidden size 1"),
        (["task=B1", "model.hidden_size=46"], "set model.hidden_size to at most 45"),
        (["model.hidden_size=null"], "task A does not solve for the size"),
    ],
)
def test_combinations_without_meaning_are_reported_in_one_sentence(typed, tmp_path, overrides, expected):
    with pytest.raises(ValueError, match=expected):
        _ = experiment(typed(*overrides, "trainer.device=cpu"), tmp_path).network


@pytest.mark.parametrize("features", choices("features"))
@pytest.mark.parametrize("augment", choices("augment"))
def test_features_and_augment_build_together(compose, tmp_path, features, augment):
    built = experiment(compose(f"features={features}", f"augment={augment}", "trainer.device=cpu"), tmp_path)
    assert built.front_end.extractor.num_features == built.network.encoder.input_size
    assert built.augment is not None


@pytest.mark.parametrize("encoder", choices("encoder"))
def test_the_config_of_an_encoder_states_its_downsampling(compose, tmp_path, encoder):
    built = experiment(compose(f"encoder={encoder}", "trainer.device=cpu"), tmp_path)
    assert built._data_request.frames_per_state == built.network.encoder.frames_per_state


def test_what_the_user_types_wins(compose, tmp_path):
    built = experiment(compose("model=lstm", "model.hidden_size=7", "model.bidirectional=true"), tmp_path)
    layer = built.network.encoder.recurrent_layers[0]
    assert (layer.hidden_size, layer.output_size) == (7, 14)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.epochs=many", "trainer.epochs=many: expected an integer of at least 1, change trainer.epochs"),
        ("trainer.epochs=0", "trainer.epochs=0: expected an integer of at least 1"),
        ("trainer.lr=-1", "trainer.lr=-1: expected a number above 0"),
        ("trainer.batch_seconds=0", "trainer.batch_seconds=0: expected a number above 0 or null"),
        ("trainer.warmup_share=1", "trainer.warmup_share=1: expected a number of at least 0 and below 1"),
        ("trainer.device=tpu", "trainer.device=tpu: expected one of auto, cpu, cuda"),
        ("trainer.precision=fp64", "expected one of fp32, bf16, fp16"),
        ("trainer.compile=2", "trainer.compile=2: expected true or false"),
        ("trainer.patience=often", "expected an integer of at least 1 or null"),
        ("+trainer.momentum=1", "trainer.momentum is unknown"),
    ],
)
def test_a_wrong_value_is_reported_in_one_sentence_naming_the_key(typed, tmp_path, override, expected):
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        experiment(typed(override), tmp_path).build("trainer")


@pytest.mark.parametrize(
    ("overrides", "part", "expected"),
    [
        (["dataset.split=fold"], "dataset", "expected one of official, random, speaker"),
        (["dataset.test_speaker=theo"], "dataset", "add dataset.split=speaker"),
        (["dataset.index_ranges=3"], "dataset", "expected a table"),
        (["features.normalization=batch"], "front_end", "features.normalization=batch"),
        (["dataset.max_dropped_share=2"], "dataset", "max_dropped_share=2: expected a number from 0 to 1"),
        (["dataset=fsdd_strings", "dataset.strings.evaluation_passes=0"], "dataset", "an integer of at least 1"),
        (["dataset=gigaspeech", "dataset.subset=xxl"], "dataset", "subset=xxl: expected one of xs, s, m, l, xl"),
        (["dataset=gigaspeech", "dataset.workers=-1"], "dataset", "workers=-1: expected an integer of at least 0"),
        (
            ["dataset=gigaspeech", "dataset.limits.min_s=-1"],
            "dataset",
            "limits.min_s=-1: expected a number of at least 0",
        ),
        (
            ["dataset=gigaspeech", "dataset.limits.min_s=50"],
            "dataset",
            "dataset.limits.min_s=50 and max_s=20.0: expected min_s < max_s, change dataset.limits.max_s",
        ),
        (["augment=strong", "augment.variants.tempo=10"], "front_end", "tempo=10: expected a number from 0 to 1"),
        (["augment=strong", "augment.variants.snr_db=[5]"], "front_end", "expected the lowest and the highest ratio"),
        (["augment.batch.time_mask_share=5"], "augment", "time_mask_share=5: expected a number from 0 to 1"),
        (["features=logmel40", "features.extractor.floor=0"], "front_end", "floor=0: expected a number above 0"),
        (["features=mfcc39", "features.extractor.delta_window=4"], "front_end", "of at least 3 and that is odd"),
        (["features.extractor.hop_s=1"], "front_end", "0 < hop <= window"),
        (["encoder.num_layers=0"], "network", "encoder.num_layers=0: expected an integer from 1 to 1000"),
        (["model.hidden_size=big"], "network", "model.hidden_size=big"),
        (["model.hidden_size=0"], "network", "model.hidden_size=0"),
        (["encoder.front_width=4"], "network", "front_width=4: expected an integer that is odd and of at least 1"),
        (["encoder=asr_small", "encoder.downsampling=3"], "network", "encoder.downsampling=3: expected one of 2, 4"),
        (
            ["encoder=asr_small", "encoder.attention=none"],
            "network",
            "attention=none: expected one of full, window, off",
        ),
        (["model=lmu", "model.order=0"], "network", "model.order"),
        (["model=lmu", "model.theta=-1"], "network", "model.theta"),
        (["model=lmu", "model.memory_channels=0"], "network", "model.memory_channels"),
        (["model=lmu", "model.algorithm=magic"], "network", "model.algorithm"),
        (["objective.pooling=max"], "network", "expected one of last, mean, attention"),
    ],
)
def test_wrong_values_of_other_parts(typed, tmp_path, overrides, part, expected):
    with pytest.raises(ValueError, match=expected):
        getattr(experiment(typed(*overrides, "trainer.device=cpu"), tmp_path), part)


def test_synthetic_voices_without_variants_are_refused_not_passed_over(compose, tmp_path):
    config = compose("dataset=digits_demo", "dataset.synthetic_voices=8", "augment=light", "trainer.device=cpu")
    with pytest.raises(
        ValueError, match=r"synthetic_voices=8 are used only with an augmentation .*: set augment=strong"
    ):
        _ = experiment(config, tmp_path).data


@pytest.mark.parametrize("seed", ["early", "-1", "1.5", "true", str(2**32)])
def test_a_wrong_seed_is_reported_in_one_sentence(typed, tmp_path, seed):
    with pytest.raises(ValueError, match=f"seed={'True' if seed == 'true' else seed}: expected an integer"):
        experiment(typed(f"seed={seed}"), tmp_path)


@pytest.mark.parametrize("override", ["trainer.momentum=1", "modle=gru", "dataset.speed=2", "model=rnn"])
def test_unknown_keys_and_choices_fail_in_composition(compose, override):
    with pytest.raises(ConfigCompositionException):
        compose(override)


def test_the_config_hash_ignores_places_and_sees_everything_else(compose, tmp_path):
    @cache
    def digest(*overrides: str) -> str:
        return experiment(compose(*overrides), tmp_path).config_hash()

    assert digest() == digest("dataset.root=/elsewhere") == digest("cache_dir=/c") == digest("trainer.tensorboard=true")
    assert digest() == digest("trainer.mlflow=http://host:5000", "trainer.wandb=mine")
    assert digest("experiment=search_lr", "study=one") == digest()
    assert len({digest(), digest("seed=1"), digest("trainer.lr=1"), digest("model=lmu"), digest("augment=none")}) == 5
