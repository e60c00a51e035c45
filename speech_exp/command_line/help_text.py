"""The text of --help: the config groups, and each key of the chosen config with its value and the comment in its file."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speech_exp.command_line.composition_errors import CONF
from speech_exp.config_types import flat

WIDTH, CHOICES_AT, COMMENT_AT = 100, 40, 44  # columns
_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w/]+):(?P<value>[^#]*)(?:# (?P<comment>.*))?")


def help_text(overrides: Sequence[str]) -> str:
    """Return the help text for a command line with these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    raw = flat({str(name): node for name, node in plain.items() if name != "hydra"})
    chosen = config.hydra.runtime.choices
    groups = sorted((group for group in chosen if "hydra/" not in group and chosen[group]), key=_order)
    comments, sections = _comments(CONF / "config.yaml", ""), []
    left = dict(raw)
    for group in groups:
        path = CONF / group / f"{chosen[group]}.yaml"
        of_group = _comments(path, group)
        comments |= of_group
        keys = [key for key in left if key.startswith(f"{group}.") or key in of_group]
        for key in keys:
            del left[key]
        title = ": ".join(filter(None, (f"{group}={chosen[group]}", _title(path))))
        sections.append((title, keys))
    text = "\n".join(
        _section(
            title,
            {key: (_value(config, key, raw[key]), comments.get(key, "")) for key in keys if _is_shown(key, raw[key])},
        )
        for title, keys in [("every run", list(left)), *sections]
    )
    template: str = config.hydra.help.template
    for group in ("dataset", "model", "c_approach"):  # groups to which users add choices
        template = template.replace(f"${group.upper()}", _choices(group))
    return template.replace("$CONFIG", text.strip())


def _choices(group: str) -> str:
    """Return the files of a group's folder, in lines below each other."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return f"\n{' ' * CHOICES_AT}".join(textwrap.wrap(" | ".join(names), WIDTH - CHOICES_AT))


def _order(group: str) -> int:
    """Return the sort position of a group: as in the defaults of config.yaml, but the data set first."""
    defaults = (CONF / "config.yaml").read_text(encoding="utf-8").partition("defaults:")[2]
    return 0 if group == "dataset" else defaults.index(f" {group}:")


def _is_shown(key: str, raw: object) -> bool:
    """Whether a key is shown: not the class, nor an action's copy of a top-level key."""
    name = key.rpartition(".")[2]
    return name != "_target_" and not (key.startswith("action.") and raw == f"${{{name}}}")


def _section(title: str, keys: dict[str, tuple[str, str]]) -> str:
    """Return the values and comments of some keys as text; empty if there are no keys."""
    lines = [line for key, (value, comment) in keys.items() for line in _lines(key, value, comment)]
    return "\n".join(["", *textwrap.wrap(f"-- {title}", WIDTH, subsequent_indent="   "), *lines, ""]) if lines else ""


def _lines(key: str, value: str, comment: str) -> list[str]:
    setting = f"{key}={value}"
    if len(setting) > WIDTH:
        setting = f"{setting[: WIDTH - 3]}..."
    comment_lines = textwrap.wrap(comment, WIDTH - COMMENT_AT)
    beside = comment_lines and len(setting) < COMMENT_AT
    first = f"{setting:<{COMMENT_AT}}{comment_lines.pop(0)}" if beside else setting
    return [first, *(" " * COMMENT_AT + line for line in comment_lines)]


def _value(config: DictConfig, key: str, raw: object) -> str:
    if isinstance(raw, str) and "oc.env" in raw:
        return raw  # an environment variable may hold a password
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # only known inside a run
        value = raw
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    return value if isinstance(value, str) else json.dumps(value)


def _comments(path: Path, group: str) -> dict[str, str]:
    """Return {key: comment or empty text} for the keys that a file of a group sets, including the files that it builds on."""
    text = path.read_text(encoding="utf-8")
    above = [] if "@package _global_" in text or not group else [group]
    found: dict[str, str] = {}
    for based_on in re.findall(r"^  - (\w+)$", text, re.MULTILINE):
        if based_on != "_self_":
            found |= _comments(path.with_name(f"{based_on}.yaml"), group)
    nodes: list[tuple[int, str]] = []
    for line in text.splitlines():
        if (match := _KEY.fullmatch(line)) is None:
            continue
        indent = len(match["indent"])
        nodes = [(deep, name) for deep, name in nodes if deep < indent] + [(indent, match["key"])]
        key = ".".join([*above, *(name for _, name in nodes)])
        if match["comment"] or key not in found:
            found[key] = match["comment"] or ""
    return found


def _title(path: Path) -> str:
    """Return the comment at the start of a file."""
    return " ".join(_leading(path)).rstrip(".")


def _leading(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        if not line.startswith("# @package"):
            yield line[2:]
