"""The section of one run on the comparison page: facts, how its config differs from the baseline's, and figures."""

from __future__ import annotations

from collections.abc import Sequence

from speech_exp.comparison.formats.html import element, embedded_figure, escaped, row_attributes
from speech_exp.comparison.formats.markdown import NONE
from speech_exp.comparison.grouping import Group, config_differences
from speech_exp.comparison.score import score_of
from speech_exp.runs.reading import Run

# Shown if the run has them; more would make the page too large.
FIGURES = ("training_curves", "confusion_matrix", "errors")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return each run's name without the settings that all names share, such as `model=gru,seed=0`."""
    parts = {name: name.split(",") for name in names}
    shared = set.intersection(*map(set, parts.values()))
    short = {name: ",".join(part for part in own if part not in shared) for name, own in parts.items()}
    return short if all(short.values()) and len(set(short.values())) == len(short) else {name: name for name in names}


def run_section(
    number: int, run: Run, name: str, group: Group | None, baseline: Run, baseline_name: str, keys: Sequence[str]
) -> str:
    """Return a section that is collapsed until it is clicked or linked to; `group` is None for a run without results.

    `name` and `baseline_name` are the short names of the two runs.
    """
    outcome = _outcome(run, group)
    attributes = row_attributes(keys, [run.name, outcome, *keys])
    summary = f"<summary>{escaped(name)} <span>{escaped(outcome)}</span></summary>"
    body = _facts(run) + _differences(run, baseline, baseline_name) + _figures(run)
    return f'<details id="run-{number}" {attributes}>{summary}{body}</details>'


def _outcome(run: Run, group: Group | None) -> str:
    if group is None:
        return f"not counted: {run.problem}"
    score = score_of(run)
    value = None if score is None else score.of(run)
    return group.label if score is None or value is None else f"{group.label}, {score.title} {100 * value:.2f} %"


def _facts(run: Run) -> str:
    info, git = run.run_info, run.run_info.get("git") or {}
    commit = f"{git['commit'][:10]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else None
    facts = {
        "folder": run.name,
        "status": run.status,
        "best epoch": (run.results or {}).get("best_epoch"),
        "epochs": (run.results or {}).get("epochs"),
        "host": info.get("host"),
        "device": info.get("device_name"),
        "commit": commit,
        "started": info.get("started"),
        "finished": info.get("finished"),
        "config hash": info.get("config_hash"),
        "command": info.get("command"),
    }
    lines = [_line(name, [str(value)]) for name, value in facts.items() if value is not None]
    return f"<table><caption>Facts</caption><tbody>{''.join(lines)}</tbody></table>"


def _differences(run: Run, baseline: Run, baseline_name: str) -> str:
    title = element("h3", "Differences from the config of the baseline")
    if run is baseline:
        return title + element("p", "This run is the baseline.")
    if not run.config or not baseline.config:
        return title + element("p", "Unknown, because one of the two records has no config.")
    lines = [_line(key, [own or NONE, other or NONE]) for key, own, other in config_differences(run, baseline)]
    if not lines:
        return title + element("p", f"None that can change a result, compared with {baseline_name}.")
    titles = ("key", "this run", f"baseline: {baseline_name}")
    head = "".join(f'<th scope="col" class="words">{escaped(title)}</th>' for title in titles)
    return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _line(name: str, cells: Sequence[str]) -> str:
    values = "".join(f'<td class="words">{escaped(cell)}</td>' for cell in cells)
    return f'<tr><th scope="row">{escaped(name)}</th>{values}</tr>'


def _figures(run: Run) -> str:
    paths = [path for name in FIGURES if (path := run.folder / "figures" / f"{name}.png").is_file()]
    shown = [embedded_figure(path, f"{path.stem.replace('_', ' ')} of {run.name}") for path in paths]
    return f'<h3>Figures</h3><div class="figures">{"".join(shown)}</div>' if shown else ""
