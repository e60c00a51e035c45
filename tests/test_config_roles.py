"""One table states what each config key decides, and all its users agree."""

from functools import cache
from types import SimpleNamespace

import pytest
from composition import choices, composing, experiment
from omegaconf import OmegaConf

from speech_exp.comparison.grouping import RESULT_KEYS, config_differences, group_runs
from speech_exp.config_roles import ROLES, Role, changes_results, evaluation_may_set, float_run_shares, role, sets_apart
from speech_exp.config_types import flat
from speech_exp.folder_names import sweep_subdir
from speech_exp.runs.reading import Run
from speech_exp.training import float_runs

GROUPS = ("dataset", "features", "augment", "encoder", "model", "objective", "decoder", "task", "c_approach", "kd")
GROUPS += ("trainer", "action", "launcher", "experiment")
WITH = {"c_approach": ["task=C"], "decoder": ["dataset=fsdd_strings"]}  # choices that only make sense with others
RESULTS = {name: name for name in RESULT_KEYS} | {"split": "official", "test_speaker": None}
WITHOUT_EFFECT = ("dataset.workers", "dataset.host", "cache_dir", "trainer.keep", "trainer.watchdog_s")
WITHOUT_EFFECT += ("trainer.checkpoint_every_s", "trainer.tensorboard", "dry_run", "resume", "slurm.partition", "study")


@cache
def composed():
    """Return the composed config of every choice of every group."""
    with composing() as compose:
        typed = {(group, choice): WITH.get(group, []) for group in GROUPS for choice in choices(group)}
        return {(group, choice): compose(f"{group}={choice}", *more) for (group, choice), more in typed.items()}


@cache
def every_key():
    plain = [OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]) for config in composed().values()]
    return sorted({key for config in plain for key in flat(OmegaConf.to_container(config))})


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_every_group_composes_and_resolves(group):
    for choice in choices(group):
        config = composed()[group, choice].copy()
        OmegaConf.resolve(config[group] if config.get(group) is not None else OmegaConf.create())
        if group != "experiment":
            assert config.hydra.runtime.choices[group] == choice


def test_the_table_names_no_removed_key():
    found = every_key()
    known = {".".join(key.split(".")[:length]) for key in found for length in range(1, key.count(".") + 2)}
    assert set(ROLES) - known == {"launcher"}  # its choices contain keys of other groups


def test_a_key_that_the_table_does_not_name_changes_results():
    assert role("dataset.of_tomorrow") is role("tomorrow") is Role.RESULT
    for asks in (changes_results, sets_apart, float_run_shares):
        assert asks("dataset.of_tomorrow")
    assert not evaluation_may_set("dataset.of_tomorrow")
    assert role("trainer.of_tomorrow") is Role.TRAINING


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_keys_that_cannot_change_a_result(key):
    assert not changes_results(key)


def run(seed, key, value):
    results = RESULTS | {"seed": seed}
    typed = {key: value} if value else {}
    return Run(f"{key}={value}", None, "finished", results, overrides=typed, config={"seed": seed, **typed})


def test_the_hash_folder_names_and_groups_agree_on_every_key(tmp_path):
    with composing() as compose:
        base = experiment(compose(), tmp_path)
    checked = 0
    for key in every_key():
        built = SimpleNamespace(plain_config=lambda key=key: {"config": {key: 1}})
        in_hash = key in type(base).identity(built)
        in_name = sweep_subdir(["x=1", f"{key}=1"]) != sweep_subdir(["x=1"])
        groups = len(group_runs([run(0, key, "1"), run(1, key, "2")]).groups)
        shown = key in [differing for differing, *_ in config_differences(run(0, key, "1"), run(1, key, "2"))]
        repeats = role(key) in (Role.FOLD, Role.REPETITION) or key == "dataset.split"  # which results.json records
        assert in_hash == in_name == shown == changes_results(key), key
        assert (groups == 2) == (changes_results(key) and not repeats), key
        checked += 1
    assert checked > 150


def test_a_float_run_must_share_what_decides_data_and_network(monkeypatch):
    def refusal(key):
        """Return the error for a float run that differs in this key only."""
        content = {"choices": {"task": "A"}, "config": {key: "other"}, "network": {}, "data_fingerprint": "same"}
        monkeypatch.setattr(float_runs, "load_deployable", lambda *_: content)
        layer = SimpleNamespace(sizes=lambda: {"hidden_size": 8})
        encoder = SimpleNamespace(recurrent_layers=[layer])
        network = SimpleNamespace(state_dict=dict, load_state_dict=len, encoder=encoder)
        try:
            float_runs.load_float_run("kd.run", "RUN", {key: "own"}, "same", network)
        except ValueError as error:
            return str(error)
        return None

    shapes_tell, if_random = "model.hidden_size", "dataset.split_seed"
    for key in every_key():
        refused = refusal(key) is not None
        assert refused == (role(key) in (Role.RESULT, Role.FOLD) and key not in (shapes_tell, if_random)), key


def test_an_evaluation_may_set_what_leaves_the_trained_model_as_it_is():
    for key in every_key():
        assert evaluation_may_set(key) == (not changes_results(key) or role(key) is Role.USE), key
    assert [key for key in every_key() if role(key) is Role.USE and "decoder" not in key] == ["trainer.device"]


def test_two_seeds_with_other_workers_are_one_group():
    for key in WITHOUT_EFFECT:
        (group,) = group_runs([run(0, key, "1"), run(1, key, "2")]).groups
        assert group.seeds == [0, 1]
