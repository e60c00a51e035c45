"""Write a comparison as a LaTeX table to \\input in a paper: score, bytes and p value of each group."""

from __future__ import annotations

from speech_exp.comparison import measures
from speech_exp.comparison.estimates import mean
from speech_exp.comparison.findings import Findings
from speech_exp.comparison.formats.markdown import NONE, p_text
from speech_exp.comparison.grouping import Group
from speech_exp.safe_text import printable

TITLES = {"accuracy": "accuracy (%)", "wer": "WER (%)"}
LABEL_LIMIT = 18  # characters that fit beside the numbers; longer labels are wrapped
LABEL_COLUMN = "p{1.15in}"

_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "·": r"$\cdot$", NONE: "--",
    "±": r"$\pm$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
}  # fmt: skip


def latex_table(findings: Findings) -> str:
    """Return a booktabs table that fits a column of 3.3 in; p is the Holm-corrected p value against the baseline."""
    metrics = [score.key for score in findings.scores]
    tested = [metric for metric in metrics if any(test.metric == metric for test in findings.tests)]
    head = ["group", *(TITLES[metric] for metric in metrics), "bytes"]
    head += ["p" if len(tested) == 1 else f"p of {TITLES[metric]}" for metric in tested]
    lines = []
    for group in findings.groups:
        scores = [_score(group, metric) for metric in metrics]
        sizes = [f"{mean([measures.stored_bytes(run) or 0.0 for run in group.runs]):,.0f}"]
        lines.append([group.label, *scores, *sizes, *(_p(findings, group, metric) for metric in tested)])
    body = [" & ".join(map(escaped, line)) + r" \\" for line in [head, *lines]]
    comments = [
        "% needs \\usepackage{booktabs}; means over seeds with the 95 % intervals described in comparison.md",
        "% bytes: of the stored model",
    ]
    if tested:
        comments.append(f"% p: paired test against {' '.join(findings.baseline.label.split())}, corrected (Holm)")
    long = any(len(group.label) > LABEL_LIMIT for group in findings.groups)
    columns = (LABEL_COLUMN if long else "l") + "r" * (len(head) - 1)
    start = [r"{\small\setlength{\tabcolsep}{4pt}%", rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule"]
    return "\n".join([*comments, *start, body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}}"]) + "\n"


def _score(group: Group, metric: str) -> str:
    """Return a score in percent with its interval, such as `97.89 (96.1–98.9)`."""
    found = measures.estimate(group, measures.measure(metric))
    if found is None:
        return NONE
    interval = (
        "" if found.low is None or found.high is None else f" ({100 * found.low:.1f}{NONE}{100 * found.high:.1f})"
    )
    return f"{100 * found.mean:.2f}{interval}"


def escaped(text: str) -> str:
    """Return `text` on one line, escaped so that LaTeX prints it literally."""
    return "".join(_ESCAPED.get(letter, letter) for letter in printable(text))


def _p(findings: Findings, group: Group, metric: str) -> str:
    found = [test for test in findings.tests if (test.group, test.metric) == (group.label, metric)]
    return p_text(found[0].p_holm) if found else NONE
