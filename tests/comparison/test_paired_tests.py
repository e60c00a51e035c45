"""Tests against a baseline: counts by hand, pairing of runs and utterances, and cases that cannot be tested."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from speech_exp.comparison.compare import compare, find_runs
from speech_exp.comparison.formats.markdown import test_lines as lines_of_tests
from speech_exp.comparison.grouping import group_runs
from speech_exp.comparison.paired_tests import PairedTest, choose_baseline, paired_tests
from speech_exp.comparison.significance import exact_sign_p

MakeRun = Callable[..., Path]
SIX = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
WORDS = ("zero one", "two", "three four five")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def against_baseline(runs: Path) -> tuple[list[PairedTest], list[str]]:
    groups = group_runs(find_runs(runs)).groups
    return paired_tests(groups, choose_baseline(groups, None))


def digits(right: str) -> list[tuple[str, str, str]]:
    """Return predictions of class 7, one per letter: right where the letter is x, wrong elsewhere."""
    return [(f"7_theo_{at}", "7", "7" if letter == "x" else "1") for at, letter in enumerate(right)]


def sentences(*heard: str) -> list[tuple[str, str, str]]:
    return [(str(at), *pair) for at, pair in enumerate(zip(WORDS, heard, strict=True))]


class TestAccuracy:
    def test_mcnemar_by_hand(self, make_run: MakeRun, runs: Path) -> None:
        make_run("a", model="gru", predictions=digits("xxxxxxxxx-" + "xx--"))
        make_run("b", model="lstm", predictions=digits("---------x" + "xx--"))
        ((test,), notes) = against_baseline(runs)
        assert (test.group, test.baseline, test.test, test.pairs, test.utterances) == ("lstm", "gru", "McNemar", 1, 14)
        assert (test.better, test.worse) == (1, 9)
        assert test.p == test.p_holm == pytest.approx(22 / 1024)
        assert test.difference == pytest.approx(-8 / 14)
        assert (test.low, test.high) == (None, None)  # of one seed
        assert notes == []

    def test_an_utterance_is_one_unit_whatever_the_number_of_seeds(self, make_run: MakeRun, runs: Path) -> None:
        for seed in range(3):
            make_run(f"a{seed}", model="gru", seed=seed, predictions=digits("xxxx----"))
            make_run(f"b{seed}", model="lstm", seed=seed, predictions=digits("--------"))
        ((test,), _) = against_baseline(runs)
        assert (test.pairs, test.utterances, test.better, test.worse) == (3, 8, 0, 4)
        assert test.p == pytest.approx(2 / 16)
        assert test.difference == -0.5

    def test_the_worst_speakers_prove_nothing_about_other_speakers(self, make_run: MakeRun, runs: Path) -> None:
        """Losing 48 recordings of two of six speakers is significant over recordings, but not over speakers."""
        rows = [(f"{at}@{name}", "7", "7") for name in SIX for at in range(50)]
        lost = [
            (one, "7", "1" if one.endswith(("theo", "lucas")) and int(one.split("@")[0]) < 24 else "7")
            for one, *_ in rows
        ]
        for seed in range(3):
            for model, found in (("gru", rows), ("lstm", lost)):
                make_run(f"{model}{seed}", model=model, seed=seed, predictions=found)
        ((test,), _) = against_baseline(runs)
        assert exact_sign_p(test.better, test.worse) < 1e-6
        assert (test.better, test.worse, test.over) == (0, 48, "6 speakers, 3 seeds and 300 utterances")
        assert 0.1 < test.p < 0.6
        assert test.low is not None and test.high is not None and test.low < test.difference < 0 <= test.high

    def test_folds_are_speakers_where_no_column_names_them(self, make_run: MakeRun, runs: Path) -> None:
        for model, right in (("gru", "xxxx"), ("lstm", "x---")):
            for seed in range(3):
                for speaker in SIX:
                    changes = {"model": model, "seed": seed, "split": "speaker", "test_speaker": speaker}
                    make_run(
                        f"{model}{speaker}{seed}",
                        **changes,
                        predictions=[(f"{speaker}{name}", *rest) for name, *rest in digits(right)],
                    )
        ((test,), _) = against_baseline(runs)
        assert (test.test, test.over) == ("bootstrap", "6 speakers, 3 seeds and 24 utterances")
        assert test.p < 0.05

    def test_another_fold_makes_no_pair(self, make_run: MakeRun, runs: Path) -> None:
        """Runs with different validation speakers were selected on different data."""
        for model, speaker in (("gru", "lucas"), ("lstm", "jackson")):
            override = [f"dataset.validation_speaker={speaker}"]
            changes = {"split": "speaker", "test_speaker": "theo", "overrides": override}
            make_run(model, model=model, predictions=digits("xx"), **changes)
        tests, notes = against_baseline(runs)
        assert tests == []
        assert "no two runs have the same data, split, objective and seed" in notes[0]

    def test_seeds_that_contradict_each_other_are_not_a_difference(self, make_run: MakeRun, runs: Path) -> None:
        for seed, (one, other) in enumerate([("x---", "---x"), ("---x", "x---")]):
            make_run(f"a{seed}", model="gru", seed=seed, predictions=digits(one))
            make_run(f"b{seed}", model="lstm", seed=seed, predictions=digits(other))
        ((test,), _) = against_baseline(runs)
        assert (test.better, test.worse, test.difference, test.p) == (0, 0, 0.0, 1.0)

    def test_only_shared_seeds_and_utterances_count(self, make_run: MakeRun, runs: Path) -> None:
        make_run("a0", model="gru", seed=0, predictions=digits("xx"))
        make_run("a1", model="gru", seed=1, predictions=digits("--"))
        make_run("b0", model="lstm", seed=0, predictions=[*digits("x-x")[1:], ("other", "7", "1")])
        make_run("b2", model="lstm", seed=2, predictions=digits("--"))
        ((test,), _) = against_baseline(runs)
        assert (test.pairs, test.utterances, test.better, test.worse) == (1, 1, 0, 1)

    def test_an_utterance_with_another_reference_is_another_one(self, make_run: MakeRun, runs: Path) -> None:
        make_run("a", model="gru", predictions=[("u", "7", "7"), ("v", "7", "7")])
        make_run("b", model="lstm", predictions=[("u", "8", "7"), ("v", "7", "7")])
        ((test,), _) = against_baseline(runs)
        assert test.utterances == 1

    def test_held_out_speakers_form_separate_pairs(self, make_run: MakeRun, runs: Path) -> None:
        for model, right in (("gru", "xx"), ("lstm", "x-")):
            for speaker in ("theo", "lucas"):
                rows = [(f"{speaker}{name}", *rest) for name, *rest in digits(right)]
                name = f"{model}{speaker}"
                make_run(name, model=model, split="speaker", test_speaker=speaker, predictions=rows)
        ((test,), _) = against_baseline(runs)
        assert (test.pairs, test.utterances, test.worse) == (2, 4, 2)

    def test_corrected_for_all_comparisons(self, make_run: MakeRun, runs: Path) -> None:
        for model, right in (("gru", "x" * 9), ("lmu", "-" * 9), ("lstm", "---------")):
            make_run(model, model=model, predictions=digits(right))
        tests, _ = against_baseline(runs)
        assert [test.p for test in tests] == [2 / 512] * 2
        assert [test.p_holm for test in tests] == [4 / 512] * 2


class TestErrorRates:
    def test_words_and_characters_by_hand(self, make_recogniser: MakeRun, runs: Path) -> None:
        make_recogniser("a", 0.0, model="gru", predictions=sentences(*WORDS))
        make_recogniser("b", 0.5, model="lmu", predictions=sentences("zero", "two two", "three  four five"))
        tests, _ = against_baseline(runs)
        assert [(test.metric, test.test) for test in tests] == [("wer", "bootstrap"), ("cer", "bootstrap")]
        words, characters = tests
        assert words.difference == pytest.approx(2 / 6)  # one deleted, one inserted; six words
        assert characters.difference == pytest.approx(8 / (8 + 3 + 15))  # " one" and " two"
        assert (words.better, words.worse, words.utterances) == (0, 2, 3)

    def test_the_corpus_rate_is_what_the_runs_report(self, make_recogniser: MakeRun, runs: Path) -> None:
        from speech_exp.objectives.scoring import find_errors

        heard = (("zero", "two", "three four"), ("one", "", "three for five six"))
        for name, own in zip(("gru", "lmu"), heard, strict=True):
            make_recogniser(name, 0.5, model=name, predictions=sentences(*own))
        tests, _ = against_baseline(runs)
        rates = [find_errors(("u1", "u2", "u3"), WORDS, own).words.rate for own in heard]
        assert tests[0].difference == pytest.approx(rates[1] - rates[0])


class TestNotTested:
    def test_without_predictions(self, make_run: MakeRun, runs: Path) -> None:
        make_run("a", model="gru", predictions=digits("x"))
        make_run("b", model="lmu")
        assert against_baseline(runs) == ([], ["lmu is not tested against gru: b has no predictions.csv."])

    def test_other_columns(self, make_run: MakeRun, runs: Path) -> None:
        make_run("a", model="gru", predictions=digits("x"))
        (make_run("b", model="lmu") / "predictions.csv").write_text("id,text\n1,2\n", encoding="utf-8")
        assert (
            "predictions.csv does not have all of the columns id, reference, prediction, score"
            in against_baseline(runs)[1][0]
        )

    @pytest.mark.parametrize("change", [{"seed": 1}, {"dataset": "digits_demo"}, {"split": "random"}])
    def test_no_pairs(self, make_run: MakeRun, runs: Path, change: dict[str, object]) -> None:
        make_run("a", model="gru", predictions=digits("x"))
        make_run("b", model="lmu", predictions=digits("x"), **change)
        tests, notes = against_baseline(runs)
        assert tests == []
        assert "no two runs have the same data, split, objective and seed" in notes[0]


class TestBaseline:
    def labels(self, make_run: MakeRun, settings: Sequence[tuple[str, str]]) -> None:
        for model, task in settings:
            make_run(f"{model}{task}", model=model, task=task, c_approach="ema" if task == "C" else None)

    def test_the_first_float_group_unless_named(self, make_run: MakeRun, runs: Path) -> None:
        self.labels(make_run, [("gru", "C"), ("lmu", "B1"), ("lmu", "A")])
        groups = group_runs(find_runs(runs)).groups
        assert choose_baseline(groups, None).label == "lmu · A"
        assert choose_baseline(groups, "lmu B1").label == "lmu · B1"
        assert choose_baseline(groups, "gru · C ema").label == "gru · C ema"
        assert choose_baseline(groups[:1], None).label == "gru · C ema"

    def test_unknown(self, make_run: MakeRun, runs: Path) -> None:
        self.labels(make_run, [("gru", "A"), ("lmu", "A")])
        with pytest.raises(
            ValueError, match="baseline=lstm is not a group of these runs, expected one of gru; lmu: change"
        ):
            compare(find_runs(runs), runs.parent / "out", baseline="lstm")
        assert not (runs.parent / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_written_as_markdown_csv_and_latex(make_run: MakeRun, runs: Path) -> None:
    make_run("a", model="gru", overrides=["trainer.note=a_b"], predictions=digits("xxxxxxxxx-"))
    make_run("b", model="gru", overrides=["trainer.note=50%&"], predictions=digits("---------x"))
    found = compare(find_runs(runs), runs.parent / "out", baseline="trainer.note=a_b")
    row = "| trainer.note=50%& | accuracy | 1 | 10 | -80.00 (too few seeds) | 1 | 9 | McNemar over 10 recordings (speakers unknown or too few) | 0.021 | 0.021 |"
    assert row in found.markdown.splitlines()
    rows = csv.DictReader((runs.parent / "out" / "comparison.csv").read_text(encoding="utf-8").splitlines())
    cells = {row["metric"]: row for row in rows if row["group"] == "trainer.note=50%&"}
    assert (cells["accuracy_over_baseline"]["item"], cells["accuracy_over_baseline"]["mean"]) == (
        "trainer.note=a_b",
        "-0.8",
    )
    assert float(cells["accuracy_p_holm"]["mean"]) == pytest.approx(22 / 1024)
    latex = (runs.parent / "out" / "comparison.tex").read_text(encoding="utf-8").splitlines()
    assert r"trainer.note=50\%\& & 90.00 & 38,020 & 0.021 \\" in latex
    assert r"trainer.note=a\_b & 90.00 & 38,020 & -- \\" in latex
    (columns,) = [line for line in latex if line.startswith(r"\begin{tabular}")]
    assert columns == r"\begin{tabular}{@{}lrrr@{}}"
    assert [line for line in latex if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]


def test_a_difference_that_rounds_to_zero_has_no_minus_sign() -> None:
    test = PairedTest("lmu", "gru", "accuracy", 3, 100, -1e-6, -2e-6, 1e-6, 0, 0, "bootstrap", "6 speakers", 1.0, 1.0)
    ((*_, difference, _, _, _, _, _),) = lines_of_tests([test])
    assert difference == "+0.00 (+0.00 to +0.00)"
