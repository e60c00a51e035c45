"""Checks of config values against the annotations of what they configure, and configs as flat tables."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def check_types(key: str, node: Mapping[str, Any]) -> None:
    """Compare the values of `node`, the config at `key`, with the constructor that its `_target_` names.

    Plain types, their unions, lists, dicts and `Literal` choices are checked; what the annotation leaves open is not.
    """
    module_name, _, name = node["_target_"].rpartition(".")
    target = getattr(import_module(module_name), name)
    function = target.__init__ if inspect.isclass(target) else target
    hints = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}
    for argument, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            check_types(f"{key}.{argument}", value)
        elif not argument.startswith("_") and argument not in hints:
            raise ValueError(
                f"{key}.{argument} is unknown to {node['_target_']}: expected one of {', '.join(hints)}, leave it out"
            )
        elif argument in hints and not _fits(value, hints[argument]):
            raise ValueError(f"{key}.{argument}={value}: expected {_wording(hints[argument])}, change {key}.{argument}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(item, arguments[1]) for item in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _NAMES:
        return isinstance(value, hint)
    return True


def _wording(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_wording(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"a list, each item {_wording(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_wording(arguments[1])}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"trainer.lr": 0.001} of nested tables."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
