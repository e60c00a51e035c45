"""Folder names of a sweep's runs: unique for each list of overrides, valid on any file system."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speech_exp.folder_names import sweep_subdir

KEYS = st.sampled_from(["seed", "model", "experiment", "+extra", "trainer.lr", "dataset.test_speaker"])
VALUES = st.one_of(st.integers().map(str), st.text(alphabet="abAB01.,-_[]{}'\"/ =:", max_size=60))
OVERRIDES = st.lists(st.builds("{}={}".format, KEYS, VALUES), max_size=6)


def test_short_names_are_what_was_typed():
    assert sweep_subdir(["model=gru", "seed=0", "trainer.lr=1e-3"]) == "model=gru,seed=0,trainer.lr=1e-3"
    assert sweep_subdir([]) == "run"


@given(OVERRIDES, OVERRIDES)
@example(["a=[1,2]"], ["a=(1,2)"])
@example(["a=1,2"], ["a=1", "2="])
@example(["experiment=gru_vs_lstm"], ["experiment=unseen_speaker"])
@example(["a=" + "x" * 200 + "1"], ["a=" + "x" * 200 + "2"])
@example(["a=b", "c="], ["a=b,c="])
@example(["a=x/y"], ["a=x-y"])
def test_other_overrides_give_another_name(first, second):
    assert (sweep_subdir(first) == sweep_subdir(second)) == (first == second)


@given(OVERRIDES)
def test_a_name_is_one_folder_of_plain_characters(overrides):
    assert re.fullmatch(r"[A-Za-z0-9=,._+-]{1,120}", sweep_subdir(overrides))


@pytest.mark.parametrize("typed", ["cache_dir=/tmp/x", "dataset.root=/data", "launcher=slurm", "resume=true"])
def test_a_run_resumes_in_its_folder_whatever_cannot_change_its_result(typed):
    assert sweep_subdir(["seed=0", typed, "model=gru"]) == "seed=0,model=gru"
