"""A run's own section of the comparison page: what it was, how its config differs from the baseline's, its figures."""

from __future__ import annotations

from collections.abc import Sequence

from speech_exp.reporting.comparison_tables import NONE
from speech_exp.reporting.grouping import Group, config_differences
from speech_exp.reporting.html import element, embedded_figure, escaped, row_attributes
from speech_exp.reporting.runs import Run
from speech_exp.reporting.score import score_of

FIGURES = ("training_curves", "confusion_matrix", "errors")  # of those that a run has; more would make the page heavy


def run_section(number: int, run: Run, group: Group | None, baseline: Run, keys: Sequence[str]) -> str:
    """Collapsed until it is clicked on or linked to; `group` is None for a run without results."""
    told = _told(run, group)
    attributes = row_attributes(keys, [run.name, told, *keys])
    summary = f"<summary>{escaped(run.name)} <span>{escaped(told)}</span></summary>"
    body = _facts(run) + _differences(run, baseline) + _figures(run)
    return f'<details id="run-{number}" {attributes}>{summary}{body}</details>'


def _told(run: Run, group: Group | None) -> str:
    if group is None:
        return f"not counted: {run.problem}"
    score = score_of(run)
    value = None if score is None else score.of(run)
    return group.label if score is None or value is None else f"{group.label}, {score.title} {100 * value:.2f} %"


def _facts(run: Run) -> str:
    info, git = run.run_info, run.run_info.get("git") or {}
    commit = f"{git['commit'][:10]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else None
    facts = {
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


def _differences(run: Run, baseline: Run) -> str:
    title = element("h3", "Config, where it differs from the baseline's")
    if run is baseline:
        return title + element("p", "This run is the baseline.")
    if not run.config or not baseline.config:
        return title + element("p", "Not known: one of the two runs has no .hydra/config.yaml.")
    lines = [_line(key, [own or NONE, other or NONE]) for key, own, other in config_differences(run, baseline)]
    if not lines:
        return title + element("p", f"Nothing but what cannot change a result, compared with {baseline.name}.")
    titles = ("key", "this run", f"baseline: {baseline.name}")
    head = "".join(f'<th scope="col" class="words">{escaped(title)}</th>' for title in titles)
    return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _line(name: str, cells: Sequence[str]) -> str:
    values = "".join(f'<td class="words">{escaped(cell)}</td>' for cell in cells)
    return f'<tr><th scope="row">{escaped(name)}</th>{values}</tr>'


def _figures(run: Run) -> str:
    paths = [path for name in FIGURES if (path := run.folder / "figures" / f"{name}.png").is_file()]
    shown = [embedded_figure(path, f"{path.stem.replace('_', ' ')} of {run.name}") for path in paths]
    return f'<h3>Figures</h3><div class="figures">{"".join(shown)}</div>' if shown else ""
