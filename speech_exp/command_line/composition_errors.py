"""Turn Hydra's errors about a command line or config file into one sentence that says what to type instead."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr
from difflib import get_close_matches
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from speech_exp.config_types import flat
from speech_exp.safe_text import printable, text_of

CONF = Path(__file__).resolve().parents[2] / "conf"
_DETAILS = "\n    full_key:"  # OmegaConf's words for developers, below its sentence


def wrong_choice(typed: Sequence[str]) -> str | None:
    """Describe the first group that is removed or set to something else than a name; None if there is none.

    Hydra would end with a traceback, or compose a config without the group.

    Args:
        typed: arguments of the command line.
    """
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}  # ranks remove callbacks of Hydra
    of_groups = [one for one in typed if _concerns(groups, one)]
    for override in OverridesParser.create().parse_overrides(of_groups):
        group, value = override.key_or_group, override.value()
        if override.is_delete():
            return f"{printable(override.input_line)} removes what a run needs: leave it out"
        values = value.list if isinstance(value, ChoiceSweep) else [value]
        if not all(isinstance(one, str | QuotedString | Glob | dict) for one in values):
            options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            return _unknown_choice(group, str(override.input_line).partition("=")[2], options)
    return None


def _concerns(groups: Collection[str], typed: str) -> bool:
    """Whether an argument sets a group, or removes one or a key of one."""
    removed, key = typed.startswith("~"), typed.lstrip("+~").partition("=")[0]
    return (removed and key.partition(".")[0] in groups) or ("=" in typed and key in groups)


def unknown_flag(typed: Sequence[str]) -> str | None:
    """Describe the first flag, or value of one, that Hydra does not know; None if there is none. It would print its whole usage."""
    usage = io.StringIO()
    try:
        with redirect_stderr(usage):
            unknown = [one for one in get_args_parser().parse_known_args(typed)[1] if one.startswith("-")]
    except SystemExit:
        return printable(usage.getvalue().rpartition("error: ")[2])
    if not unknown:
        return None
    return f"{printable(unknown[0])} is not a flag: a key is set by KEY=VALUE, as in trainer.epochs=20, and --help shows all keys"


def one_sentence(error: HydraException, typed: Sequence[str]) -> str:
    """Describe what was wrong, on one line.

    Args:
        typed: arguments of the command line.
    """
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return _unknown_choice(group, choice, error.options)
    if isinstance(error, OverrideParseException):
        return (
            f"{printable(error.override)} cannot be parsed: expected KEY=VALUE; a VALUE with spaces, brackets or quotes needs two "
            f"pairs of quotes (KEY=\"'VALUE'\")"
        )
    if isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(error.__cause__)
    several = next((one for one in typed if one in str(error) and "," in one), None)
    if several is not None and "--multirun" in str(error):
        return f"{printable(several)} has several values: add -m to run each of them, or write [a,b] where the key takes a list"
    text = printable(str(error).split("\nTo append")[0].replace("--multirun", "-m"))
    return text if error.__cause__ is None else f"{text}: {plain_text(error.__cause__)}"


def plain_text(error: BaseException) -> str:
    """Return the sentence of an error, with the key that OmegaConf names below it."""
    sentence, _, details = text_of(error).partition(_DETAILS)
    key = details.partition("\n")[0].strip()
    return printable(f"{key}: {sentence}" if key and key not in sentence else sentence)


def _unknown_choice(group: str, choice: str, options: Sequence[str]) -> str:
    return f"{group}={printable(choice)}: expected one of {', '.join(options)}{_suggestion(choice, options)}, change {group}"


def _unknown_key(error: ConfigAttributeError | ConfigKeyError) -> str:
    """Describe an unknown key; a key elsewhere in the config with the same last part is the most likely intent."""
    key, node = str(error.full_key), error.parent_node
    root = node._get_root() if node is not None else None
    config = OmegaConf.to_container(root, resolve=False) if root is not None else {}
    assert isinstance(config, dict)
    keys = sorted({*flat({str(name): value for name, value in config.items() if name != "hydra"}), *map(str, config)})
    name = key.rpartition(".")[2]
    same_name = [known for known in keys if known.rpartition(".")[2] == name and not known.startswith("sizes.")]
    first = key.partition(".")[0]
    owners = "" if first in config else _choices_with_key(first)
    hint = f" (did you mean {' or '.join(same_name[:3])}?)" if same_name else owners or _key_suggestion(key, keys)
    return f"{printable(key)} is not a key of this config{hint}: python run.py --cfg job shows all keys"


def _choices_with_key(name: str) -> str:
    """Name the choices that bring a top-level key, such as `checkpoint`; empty if none does."""
    line = re.compile(rf"^{re.escape(name)}:", re.MULTILINE)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(CONF.glob("*/*.yaml"))}
    brings = [path for path, text in texts.items() if "@package _global_" in text and line.search(text)]
    found = [f"{path.parent.name}={path.stem}" for path in brings]
    return f" (it belongs to {' and '.join(found)})" if found else ""


def _key_suggestion(typed: str, keys: Sequence[str]) -> str:
    """Suggest a key beside the typed one; elsewhere only one that is almost the same."""
    parent, _, name = typed.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    found = [beside[one] for one in get_close_matches(name, beside, n=1)]
    found = found or get_close_matches(typed, keys, n=1, cutoff=0.8)
    return f" (did you mean {found[0]}?)" if found else ""


def _suggestion(typed: str, known: Sequence[str]) -> str:
    found = get_close_matches(typed, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""
