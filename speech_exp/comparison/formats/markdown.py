"""Write a comparison as Markdown, and format the cells of its tables for the other formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from speech_exp.comparison import measures
from speech_exp.comparison.estimates import Estimate, mean
from speech_exp.comparison.findings import Findings
from speech_exp.comparison.grouping import Group, seed, test_speaker
from speech_exp.comparison.paired_tests import PairedTest
from speech_exp.safe_text import visible

MAX_COLUMNS = 8  # more groups than this become rows: wider tables are hard to read
NONE = "–"
_HTML = re.compile(r"<(?=[A-Za-z/!?])")  # starts of HTML tags, which Markdown would pass through
LAYER_KEYS = ("recurrent_layer_bytes", "packed_layer_bytes", "recurrent_state_bytes")
TEST_HEAD = ("group", "metric", "pairs of runs", "utterances", "difference (points, 95 %)", "better", "worse", "test", "p", "p (Holm)")  # fmt: skip
INTERVALS = (
    " Test metrics are those of the deployable model: the mean over seeds with its 95 % interval. The notes say what the "
    "intervals of accuracy and error rates are over; other measures have Student's t interval over seeds."
)
TEST_METRICS = {"accuracy": "accuracy", "wer": "word error rate", "cer": "character error rate"}
TEST_METHOD = (
    "Each test compares a group with the baseline on the seeds and utterances that both have. The difference is the group's "
    "value minus the baseline's, averaged over seeds. Its 95 % interval and its p value come from a hierarchical bootstrap: "
    "it draws speakers, then seeds, then the recordings of each drawn speaker (10,000 resamples, 2,000 for a large corpus), "
    "and uses the tails of Student's t distribution for the number of speakers. An error in a string of words counts for the "
    "recording in which it occurs. If the speakers are unknown or fewer than three, only recordings are drawn, and the p "
    "value of accuracy is that of the exact McNemar test over recordings (with several seeds, of the sign test of better "
    "against worse); it then says nothing about other speakers. With fewer than three seeds there is no interval, and p "
    "applies only to these trained models. Better and worse count the utterances with fewer and with more errors than the "
    "baseline makes, summed over seeds. p (Holm) is corrected for all tests of the same metric in the table."
)
CLASS_TITLES = {"precision": "Precision", "recall": "Recall", "f1": "F1"}


def markdown_report(findings: Findings) -> str:
    """Return the whole report; without absolute paths and times, the same runs give the same text anywhere."""
    groups, not_counted = findings.groups, findings.not_counted
    parts = ["# Comparison of runs", introduction(findings)]
    rows = [(row.title, row.texts) for row in main_rows(groups)]
    parts.append(_table("", [group.label for group in groups], rows))
    if findings.notes:
        parts.append("\n".join(f"- {_cell(note)}" for note in findings.notes))
    parts += [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in findings.figures]
    parts += _test_section(findings)
    parts += _engine_section(groups)
    parts += _speaker_section(groups)
    parts += _class_section(groups)
    parts += ["## Runs", _runs_table(findings)]
    if not_counted:
        lines = [[_cell(run.name), _cell(run.status), _cell(run.problem or "")] for run in not_counted]
        parts += ["## Runs without results", _markdown(["folder", "status", "reason"], lines, words=(1, 2))]
    return visible(_HTML.sub("&lt;", "\n\n".join(parts))) + "\n"


def introduction(findings: Findings) -> str:
    grouping, left_out = findings.grouping, len(findings.not_counted)
    counted = sum(len(group.runs) for group in findings.groups)
    same = ", ".join(f"{key} {value}" for key, value in grouping.same.items() if value != "none")
    keys = ", ".join(grouping.keys)
    text = f"{_number(counted, 'run')} in {_number(len(grouping.groups), 'group')}"
    text += f" that differ in {keys}." if keys else "."
    text += f" All have {same}." if same else ""
    text += f" {_number(left_out, 'run')} without results (see the end)." if left_out else ""
    return text + INTERVALS


@dataclass(frozen=True)
class MainRow:
    """One measure for all groups, as texts to show and values to sort by."""

    title: str
    texts: Sequence[str]
    values: Sequence[float | None]


def main_rows(groups: Sequence[Group]) -> list[MainRow]:
    """Return one row per measure; for many groups, only the most important measures."""
    counts = [f"{len(group.runs)} ({len(group.seeds)})" for group in groups]
    table = [MainRow("runs (seeds)", counts, [len(group.runs) for group in groups])]
    brief = len(groups) > MAX_COLUMNS
    devices = [", ".join(measures.latency_devices(group)) for group in groups]
    one_device = brief and len(set(devices)) == 1  # a column that repeats one word is left out
    for row in measures.rows(tuple(groups)):
        if brief and not row.measure.brief:
            continue
        texts = [estimate_text(estimate, row.measure) for estimate in row.estimates]
        if row.measure.key in LAYER_KEYS:
            texts = [_layers(group, row.measure.key) for group in groups]
        title = row.measure.title.replace("(ms)", f"(ms, {devices[0]})") if one_device else row.measure.title
        table.append(MainRow(title, texts, [estimate.mean if estimate else None for estimate in row.estimates]))
        if row.measure.key == "accuracy" and any(len(group.speakers) > 1 for group in groups):
            worst = [min(measures.per_speaker(group).values(), default=None) for group in groups]
            table.append(MainRow("worst speaker (%)", [_worst(group) for group in groups], worst))
    return table if one_device else [*table, MainRow("latency measured on", devices, [None] * len(groups))]


def estimate_text(estimate: Estimate | None, measure: measures.Measure) -> str:
    if estimate is None:
        return NONE
    text = value_text(estimate.mean, measure)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({value_text(estimate.low, measure)} to {value_text(estimate.high, measure)})"


def value_text(value: float, measure: measures.Measure) -> str:
    return f"{round(measure.scale * value, measure.decimals) + 0.0:,.{measure.decimals}f}"  # + 0.0 avoids -0.00


def _layers(group: Group, key: str) -> str:
    """Return the bytes of each layer, such as `26,640 + 26,640`; several alternatives if the group's runs differ."""
    return " or ".join(
        " + ".join(f"{layer:,}" for layer in layers) or NONE for layers in measures.layer_bytes(group, key)
    )


def _worst(group: Group) -> str:
    speakers = measures.per_speaker(group)
    if not speakers:
        return NONE
    name = min(speakers, key=lambda one: (speakers[one], one))
    return f"{100 * speakers[name]:.2f} ({name})"


def _test_section(findings: Findings) -> list[str]:
    if not findings.tests:
        return []
    lines = [[_cell(text) for text in line] for line in test_lines(findings.tests)]
    return [
        f"## Paired tests against {_cell(findings.baseline.label)}",
        TEST_METHOD,
        _markdown(TEST_HEAD, lines, words=(1, 7)),
    ]


def test_lines(tests: Sequence[PairedTest]) -> list[list[str]]:
    """Return the cells of each test, in the columns of TEST_HEAD."""
    return [
        [
            test.group,
            TEST_METRICS[test.metric],
            str(test.pairs),
            f"{test.utterances:,}",
            _difference(test),
            f"{test.better:,}",
            f"{test.worse:,}",
            f"{test.test} over {test.over}",
            p_text(test.p),
            p_text(test.p_holm),
        ]
        for test in tests
    ]


def _difference(test: PairedTest) -> str:
    text = _points(test.difference)
    if test.low is None or test.high is None:
        return f"{text} (too few seeds)"
    return f"{text} ({_points(test.low)} to {_points(test.high)})"


def _points(difference: float) -> str:
    return f"{round(100 * difference, 2) + 0.0:+.2f}"  # + 0.0 avoids -0.00


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _engine_section(groups: Sequence[Group]) -> list[str]:
    with_engines = tuple(group for group in groups if all("engines" in (run.results or {}) for run in group.runs))
    found = measures.engine_rows(with_engines)
    measured = {row.measure.title for rows in found.values() for row in rows}
    titles = [measure.title for measure in measures.engine_measures("float") if measure.title in measured]
    lines = []
    for at, group in enumerate(with_engines):
        for engine, rows in found.items():
            texts = {row.measure.title: estimate_text(row.estimates[at], row.measure) for row in rows}
            lines.append([_cell(group.label), _engine(engine, group), *(texts.get(title, NONE) for title in titles)])
    return ["## Engines side by side", _markdown(["group", "engine", *titles], lines, words=(1,))] if lines else []


def _engine(name: str, group: Group) -> str:
    """Return an engine's name, with a remark if it is not on equal terms with the other engines."""
    longer = sorted({measures.qat_epochs(run) for run in group.runs} - {0})
    if name == "integer":
        return f"integer ({measures.EMULATED})"
    if name == "float" and longer:
        return f"float (not trained for the {' or '.join(map(str, longer))} QAT epochs)"
    return name


def _speaker_section(groups: Sequence[Group]) -> list[str]:
    found = [measures.per_speaker(group) for group in groups]
    names = sorted({name for speakers in found for name in speakers})
    if not names:
        return []
    rows = [(name, [_percent(speakers.get(name), 2) for speakers in found]) for name in names]
    return [
        "## Accuracy of each test speaker (%, mean over seeds)",
        _table("speaker", [group.label for group in groups], rows),
    ]


def _class_section(groups: Sequence[Group]) -> list[str]:
    found = [measures.per_class(group) for group in groups]
    names = list(dict.fromkeys(name for classes in found for name in classes))
    parts = []
    for key, title in CLASS_TITLES.items():
        rows = [
            (name, [_percent(mean(classes[name][key]) if name in classes else None, 1) for classes in found])
            for name in names
        ]
        if rows:
            parts += [
                f"## {title} of each class (%, mean over runs)",
                _table("class", [group.label for group in groups], rows),
            ]
    return parts


def _runs_table(findings: Findings) -> str:
    groups, scores = findings.groups, findings.scores
    speakers = any(group.speakers for group in groups)
    lines = []
    for group in groups:
        for run in group.runs:
            assert run.results is not None
            line = [_cell(group.label), str(seed(run)), *([test_speaker(run) or NONE] if speakers else [])]
            commit = (run.run_info.get("git") or {}).get("commit")
            dirty = "+changes" if (run.run_info.get("git") or {}).get("dirty") else ""
            line += [_percent(score.of(run), 2) for score in scores]
            line += [str(run.results["best_epoch"]), f"{commit[:10]}{dirty}" if commit else NONE]
            lines.append([*line, _cell(run.name)])
    head = ["group", "seed", *(["test speaker"] if speakers else []), *(f"{score.title} (%)" for score in scores)]
    head += ["best epoch", "commit", "folder"]
    words = (1 + head.index("seed"), len(head) - 2, len(head) - 1) if speakers else (len(head) - 2, len(head) - 1)
    return _markdown(head, lines, words)


def _table(corner: str, labels: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table with the groups as columns, or as rows if there are many."""
    if len(labels) <= MAX_COLUMNS:
        return _markdown([corner, *map(_cell, labels)], [[_cell(name), *texts] for name, texts in rows])
    lines = [[_cell(label), *(texts[at] for _, texts in rows)] for at, label in enumerate(labels)]
    return _markdown(["group", *(_cell(name) for name, _ in rows)], lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
    """Return a Markdown table; the first column and those in `words` are left-aligned, numbers right-aligned."""
    rule = ["---" if at == 0 or at in words else "---:" for at in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("](", "]\\(")  # no links out of the report


def _percent(value: float | None, decimals: int) -> str:
    return NONE if value is None else f"{100 * value:.{decimals}f}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
