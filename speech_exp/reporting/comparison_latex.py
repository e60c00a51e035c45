"""A comparison as a LaTeX table to be \\input in a paper: one row a group, the measures that matter most."""

from __future__ import annotations

from speech_exp.reporting import measures
from speech_exp.reporting.comparison_tables import NONE, TEST_METRICS, estimate_text, p_text
from speech_exp.reporting.findings import Findings
from speech_exp.reporting.grouping import Group

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "·": r"$\cdot$", NONE: "--",
    "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip


def latex_table(findings: Findings) -> str:
    """A tabular in the rules of booktabs. p is Holm's, of the group's own score against the baseline."""
    rows = [row for row in measures.rows(findings.groups) if row.measure.brief]
    metrics = [score.key for score in findings.scores if any(test.metric == score.key for test in findings.tests)]
    head = ["group", "seeds", *(row.measure.title for row in rows)]
    head += [f"p of {TEST_METRICS[metric]}" for metric in metrics]
    lines = []
    for at, group in enumerate(findings.groups):
        cells = [estimate_text(row.estimates[at], row.measure) for row in rows]
        lines.append([group.label, str(len(group.seeds)), *cells, *(_p(findings, group, metric) for metric in metrics)])
    body = [" & ".join(map(escaped, line)) + r" \\" for line in [head, *lines]]
    comments = ["% needs \\usepackage{booktabs}; mean and half the 95 % interval over seeds"]
    if metrics:
        comments.append(f"% p: paired test against {' '.join(findings.baseline.label.split())}, corrected (Holm)")
    start = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    rules = [start, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*comments, *rules]) + "\n"


def escaped(text: str) -> str:
    """`text` on one line, to be printed by LaTeX as it stands."""
    return "".join(_ESCAPED.get(letter, letter) for letter in " ".join(text.split()))


def _p(findings: Findings, group: Group, metric: str) -> str:
    found = [test for test in findings.tests if (test.group, test.metric) == (group.label, metric)]
    return p_text(found[0].p_holm) if found else NONE
