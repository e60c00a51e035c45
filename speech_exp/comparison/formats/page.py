"""Write a comparison as one self-contained HTML page: sortable, filterable tables, figures, and a section for each run.

The page loads nothing from elsewhere: its security policy allows only embedded images and its own script.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files as package_files
from pathlib import Path
from string import Template

from speech_exp.comparison import measures
from speech_exp.comparison.findings import Findings
from speech_exp.comparison.formats.html import (
    Cell,
    Row,
    element,
    embedded_drawing,
    embedded_figure,
    escaped,
    sortable_table,
)
from speech_exp.comparison.formats.markdown import (
    NONE,
    TEST_HEAD,
    TEST_METHOD,
    introduction,
    main_rows,
    test_lines,
    value_text,
)
from speech_exp.comparison.formats.run_section import run_section, short_names
from speech_exp.comparison.grouping import Group, seed, test_speaker
from speech_exp.figures.style import group_id
from speech_exp.runs.reading import Run


def page(findings: Findings, name: str) -> str:
    """Return the page; `name` says which runs are compared, such as the name of the sweep's folder."""
    parts = package_files("speech_exp.comparison.formats") / "template"
    script = (parts / "page.js").read_text(encoding="utf-8")
    rows = _RunRows(findings)
    return Template((parts / "page.html").read_text(encoding="utf-8")).substitute(
        style=(parts / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        name=escaped(name),
        title=escaped(f"Comparison of {', '.join(findings.grouping.keys) or 'runs'}"),
        introduction=escaped(introduction(findings)),
        choices="\n".join(_choice(at, key, rows) for at, key in enumerate(findings.grouping.keys)),
        groups=_groups_table(findings),
        notes="<ul>" + "".join(element("li", note) for note in findings.notes or ("None.",)) + "</ul>",
        tests=_tests(findings),
        figures="\n".join(map(_figure, findings.figures)),
        runs=rows.table(),
        details="\n".join(rows.sections()),
    )


def _figure(path: Path) -> str:
    drawing, alt = path.with_suffix(".svg"), path.stem.replace("_", " ")
    return embedded_drawing(drawing, alt) if drawing.is_file() else embedded_figure(path, alt)


class _RunRows:
    """All runs in the order of their groups, those without results last, with their values of the varying keys."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        counted = [(group, run) for group in findings.groups for run in group.runs]
        self.runs: list[tuple[Group | None, Run]] = [*counted, *((None, run) for run in findings.not_counted)]
        self.names = short_names([run.name for _, run in self.runs])

    def keys(self, group: Group | None, run: Run) -> list[str]:
        """Return a run's values of the varying keys; without results, only the typed overrides are known."""
        known = group.fields if group else run.overrides
        return [known.get(key, NONE) or NONE for key in self.findings.grouping.keys]

    def table(self) -> str:
        rows = measures.rows(self.findings.groups)
        speakers = any(group.speakers for group in self.findings.groups)
        head = ["run", *self.findings.grouping.keys, "seed", *(["test speaker"] if speakers else []), "status"]
        words = len(head)
        lines = []
        for at, (group, run) in enumerate(self.runs):
            keys = self.keys(group, run)
            own_seed = str(seed(run)) if group else run.overrides.get("seed", NONE)
            cells = [Cell(self.names[run.name], link=f"run-{at}"), *map(Cell, keys), Cell(own_seed)]
            cells += [Cell(test_speaker(run) or NONE if group else NONE)] if speakers else []
            cells.append(Cell(run.problem or run.status))
            cells += [_value_cell(run, row.measure) if group else Cell(NONE) for row in rows]
            lines.append(Row(cells, keys))
        return sortable_table("runs", [*head, *(row.measure.title for row in rows)], lines, words)

    def sections(self) -> list[str]:
        sections = []
        for at, (group, run) in enumerate(self.runs):
            baseline = self._reference(run)
            names = self.names[run.name], self.names[baseline.name]
            sections.append(run_section(at, run, names[0], group, baseline, names[1], self.keys(group, run)))
        return sections

    def _reference(self, run: Run) -> Run:
        """Return the baseline's run with the same seed and test speaker, or else its first run."""
        baseline = self.findings.baseline.runs
        if run.results is None:
            return baseline[0]
        same = (seed(run), test_speaker(run))
        return next((one for one in baseline if (seed(one), test_speaker(one)) == same), baseline[0])


def _value_cell(run: Run, measure: measures.Measure) -> Cell:
    value = measure.of(run)
    if value is None:
        return Cell(NONE)
    mark = " (emulated)" if measure.key.startswith("latency") and measures.emulated(run) else ""
    return Cell(value_text(value, measure) + mark, value)


def _groups_table(findings: Findings) -> str:
    rows = main_rows(findings.groups)
    lines = []
    for at, group in enumerate(findings.groups):
        mark = " (baseline)" if group is findings.baseline and len(findings.groups) > 1 else ""
        cells = [Cell(group.label + mark), *(Cell(row.texts[at], row.values[at]) for row in rows)]
        lines.append(Row(cells, _keys(findings, group), group_id(group.label)))
    return sortable_table("groups", ["group", *(row.title for row in rows)], lines, words=1)


def _keys(findings: Findings, group: Group) -> list[str]:
    return [group.fields[key] or NONE for key in findings.grouping.keys]


def _choice(at: int, key: str, rows: _RunRows) -> str:
    """Return a drop-down list with all values of this key, in the order of the runs."""
    values = dict.fromkeys(rows.keys(group, run)[at] for group, run in rows.runs)
    options = "".join(f'<option value="{escaped(value)}">{escaped(value)}</option>' for value in values)
    return f'<label>{escaped(key)} <select name="key{at}"><option value="">all</option>{options}</select></label>'


def _tests(findings: Findings) -> str:
    if not findings.tests:
        return ""
    lines = []
    keys = {group.label: _keys(findings, group) for group in findings.groups}
    for test, texts in zip(findings.tests, test_lines(findings.tests), strict=True):
        counts = (test.pairs, test.utterances, test.difference, test.better, test.worse)
        values = (None, None, *counts, None, test.p, test.p_holm)
        cells = [Cell(text, value) for text, value in zip(texts, values, strict=True)]
        lines.append(Row(cells, keys[test.group]))
    title = element("h2", f"Paired tests against {findings.baseline.label}")
    method = f'<p class="method">{escaped(TEST_METHOD)}</p>'
    return f"<section>{title}{method}{sortable_table('tests', TEST_HEAD, lines, words=2)}</section>"
