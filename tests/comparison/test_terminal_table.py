"""The table at the end of a sweep fits the terminal."""

from dataclasses import replace

import pytest

from speech_exp.comparison.formats.terminal import terminal_table
from speech_exp.comparison.grouping import group_runs
from speech_exp.runs.reading import find_runs


@pytest.mark.parametrize("width", [60, 80, 120])
def test_measures_that_do_not_fit_are_left_out(make_run, tmp_path, width):
    for model in ("gru", "lmu"):
        for seed in (0, 1):
            make_run(f"{model}{seed}", seed=seed, model=model)
    groups = group_runs(find_runs(tmp_path)).groups
    head, *lines = terminal_table(groups, width).splitlines()
    assert max(map(len, [head, *lines])) <= width
    assert [line.split()[0] for line in lines] == ["gru", "lmu"]
    assert "accuracy (%)" in head
    assert ("parameters" in head) == (width > 60)


def test_a_long_label_continues_on_further_lines_beside_the_measures(make_run, tmp_path):
    for seed in (0, 1):
        make_run(f"gru{seed}", seed=seed, model="gru")
    (group,) = group_runs(find_runs(tmp_path)).groups
    long = replace(group, label="gru · features.extractor.n_mels=30 · augment.batch.feature_mask_width=7")
    head, short, *lines = terminal_table([group, long], 80).splitlines()
    assert max(map(len, [head, short, *lines])) <= 80
    assert "accuracy (%)" in head
    first = "gru · features.extractor.n_mels=30 ·"
    assert lines[0].removeprefix(first).split() == short.split()[1:]
    assert lines[1] == "augment.batch.feature_mask_width=7"
