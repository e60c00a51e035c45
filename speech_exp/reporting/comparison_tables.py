"""A comparison as Markdown, and the texts of its tables for other forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speech_exp.reporting import measures
from speech_exp.reporting.estimates import Estimate, mean
from speech_exp.reporting.findings import Findings
from speech_exp.reporting.grouping import Group, seed, test_speaker
from speech_exp.reporting.paired_tests import PairedTest

MOST_COLUMNS = 8  # beyond it groups become rows: wider tables cannot be read
NONE = "–"
LAYER_KEYS = ("recurrent_layer_bytes", "packed_layer_bytes")
TEST_HEAD = ("group", "metric", "pairs of runs", "utterances", "difference, points (95 %)", "better", "worse", "test", "p", "p (Holm)")  # fmt: skip
TEST_METRICS = {"accuracy": "accuracy", "wer": "word error rate", "cer": "character error rate"}
TEST_METHOD = (
    "The same seeds and utterances of both; an utterance is one unit, its errors summed over the seeds, so that p and "
    "interval say how sure the difference is for other utterances (the table above, for other seeds). Difference: the "
    "group's value less the baseline's, with the interval of a bootstrap over utterances (10,000 resamples). Better, "
    "worse: utterances with fewer, more errors than the baseline makes. p: exact McNemar test for accuracy (of several "
    "seeds, the exact sign test of better against worse), bootstrap for error rates; p (Holm): corrected for all tests "
    "of that metric in the table."
)
CLASS_TITLES = {"precision": "Precision", "recall": "Recall", "f1": "F1"}


def markdown_report(findings: Findings) -> str:
    """The whole report; it names no absolute path and no time, so that the same runs give the same text anywhere."""
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
        parts += ["## Not counted", _markdown(["folder", "status", "why"], lines, words=(1, 2))]
    return "\n\n".join(parts) + "\n"


def introduction(findings: Findings) -> str:
    grouping, left_out = findings.grouping, len(findings.not_counted)
    counted = sum(len(group.runs) for group in findings.groups)
    same = ", ".join(f"{key} {value}" for key, value in grouping.same.items() if value != "none")
    keys = ", ".join(grouping.keys)
    text = f"{_number(counted, 'run')} in {_number(len(grouping.groups), 'group')}"
    text += f", which differ in: {keys}." if keys else "."
    text += f" The same in all: {same}." if same else ""
    text += f" {_number(left_out, 'folder')} not counted (see the end)." if left_out else ""
    return text + " Test metrics of the deployable form; mean ± half the 95 % interval over seeds (Student's t)."


@dataclass(frozen=True)
class MainRow:
    """A measure of all groups as texts, and as values to sort them by."""

    title: str
    texts: Sequence[str]
    values: Sequence[float | None]


def main_rows(groups: Sequence[Group]) -> list[MainRow]:
    """One row a measure; of many groups, only the measures that matter most."""
    counts = [f"{len(group.runs)} ({len(group.seeds)})" for group in groups]
    table = [MainRow("runs (seeds)", counts, [len(group.runs) for group in groups])]
    brief = len(groups) > MOST_COLUMNS
    devices = [", ".join(measures.latency_devices(group)) for group in groups]
    one_device = brief and len(set(devices)) == 1  # no column for one and the same word
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
    if not measure.interval or estimate.half_width is None:
        return text
    return f"{text} ± {measure.scale * estimate.half_width:.{measure.decimals}f}"


def value_text(value: float, measure: measures.Measure) -> str:
    return f"{round(measure.scale * value, measure.decimals) + 0.0:,.{measure.decimals}f}"  # no -0.00


def _layers(group: Group, key: str) -> str:
    """Bytes of each layer, such as `26,640 + 26,640`; several where the group's runs differ."""
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
    """Cells under TEST_HEAD."""
    return [
        [
            test.group,
            TEST_METRICS[test.metric],
            str(test.pairs),
            f"{test.utterances:,}",
            f"{100 * test.difference + 0.0:+.2f} ({100 * test.low + 0.0:+.2f} to {100 * test.high + 0.0:+.2f})",
            f"{test.better:,}",
            f"{test.worse:,}",
            test.test,
            p_text(test.p),
            p_text(test.p_holm),
        ]
        for test in tests
    ]


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _engine_section(groups: Sequence[Group]) -> list[str]:
    own = tuple(group for group in groups if all("engines" in (run.results or {}) for run in group.runs))
    found = measures.engine_rows(own)
    measured = {row.measure.title for rows in found.values() for row in rows}
    titles = [measure.title for measure in measures.engine_measures("float") if measure.title in measured]
    lines = []
    for at, group in enumerate(own):
        for engine, rows in found.items():
            texts = {row.measure.title: estimate_text(row.estimates[at], row.measure) for row in rows}
            lines.append([_cell(group.label), engine, *(texts.get(title, NONE) for title in titles)])
    return ["## Engines side by side", _markdown(["group", "engine", *titles], lines, words=(1,))] if lines else []


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
    """Groups as columns, or, where they are many, as rows."""
    if len(labels) <= MOST_COLUMNS:
        return _markdown([corner, *map(_cell, labels)], [[_cell(name), *texts] for name, texts in rows])
    lines = [[_cell(label), *(texts[at] for _, texts in rows)] for at, label in enumerate(labels)]
    return _markdown(["group", *(_cell(name) for name, _ in rows)], lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
    """The first column and those in `words` are aligned left, numbers right."""
    rule = ["---" if at == 0 or at in words else "---:" for at in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _percent(value: float | None, decimals: int) -> str:
    return NONE if value is None else f"{100 * value:.{decimals}f}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
