"""Turn Hydra's errors about a command line or config file into one sentence that says what to type instead."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from speech_exp.config_types import flat
from speech_exp.safe_text import printable, text_of


def one_sentence(error: HydraException, typed: Sequence[str]) -> str:
    """Describe what was wrong, on one line.

    Args:
        typed: arguments of the command line.
    """
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return _of_choice(group, choice, error.options)
    if isinstance(error, OverrideParseException):
        return (
            f"{printable(error.override)} cannot be parsed: expected KEY=VALUE; a VALUE with spaces, brackets or quotes needs two "
            f"pairs of quotes (KEY=\"'VALUE'\")"
        )
    if isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError):
        return _of_key(error.__cause__)
    several = next((one for one in typed if one in str(error) and "," in one), None)
    if several is not None and "--multirun" in str(error):
        return f"{printable(several)} has several values: add -m to run each of them, or write [a,b] where the key takes a list"
    text = printable(str(error).split("\nTo append")[0].replace("--multirun", "-m"))
    return text if error.__cause__ is None else f"{text}: {printable(text_of(error.__cause__))}"


def _of_choice(group: str, choice: str, options: Sequence[str]) -> str:
    return f"{group}={printable(choice)}: expected one of {', '.join(options)}{_meant(choice, options)}, change {group}"


def _of_key(error: ConfigAttributeError | ConfigKeyError) -> str:
    """Describe an unknown key; a key elsewhere in the config with the same last part is the most likely intent."""
    key, node = str(error.full_key), error.parent_node
    root = node._get_root() if node is not None else None
    config = OmegaConf.to_container(root, resolve=False) if root is not None else {}
    assert isinstance(config, dict)
    keys = sorted({*flat({str(name): value for name, value in config.items() if name != "hydra"}), *map(str, config)})
    name = key.rpartition(".")[2]
    alike = [known for known in keys if known.rpartition(".")[2] == name and not known.startswith("sizes.")]
    meant = f" (did you mean {' or '.join(alike[:3])}?)" if alike else _meant(key, keys)
    return f"{printable(key)} is not a key of this config{meant}: python run.py --cfg job shows all keys"


def _meant(typed: str, known: Sequence[str]) -> str:
    found = get_close_matches(typed, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""
