"""Check config values against the annotations of the class or function that they configure; flatten nested configs."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from speech_exp.bounds import Bound

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def check_types(key: str, node: Mapping[str, Any]) -> None:
    """Check the values of `node`, the config at `key`, against the constructor that its `_target_` names.

    Plain types with their bounds (`speech_exp.bounds`), their unions, lists, dicts and `Literal` choices are checked. An
    argument of any other type must be a node with its own `_target_`. `key` is empty if the arguments are keys of the top level.
    """
    module_name, _, class_name = node["_target_"].rpartition(".")
    hints = _arguments(getattr(import_module(module_name), class_name))
    for argument, value in node.items():
        name = f"{key}.{argument}".lstrip(".")
        if isinstance(value, Mapping) and "_target_" in value:
            check_types(name, value)
        elif not argument.startswith("_") and argument not in hints:
            raise ValueError(
                f"{name} is unknown to {node['_target_']}: expected one of {', '.join(hints)}, leave it out"
            )
        elif argument in hints and not _fits(value, hints[argument]):
            raise ValueError(f"{name}={value}: expected {_wording(hints[argument])}, change {name}")


def _arguments(target: Callable[..., object]) -> dict[str, Any]:
    """Return the annotation of each argument of a class or function."""
    if is_dataclass(target):  # its fields may be annotated in the modules of its base classes
        hints = get_type_hints(target, include_extras=True)
        return {field.name: hints[field.name] for field in fields(target) if field.init}
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    hints.pop("return", None)
    return hints


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds: tuple[Bound, ...] = hint.__metadata__
        return _fits(value, arguments[0]) and all(bound.allows(value) for bound in bounds)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(item, arguments[1]) for item in value.values())
    if hint is float:
        return (isinstance(value, float) and math.isfinite(value)) or _fits(value, int)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _NAMES:
        return isinstance(value, hint)
    return hint is Any


def _wording(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_wording(arguments[0])} {' and '.join(map(str, hint.__metadata__))}"
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_wording(argument) for argument in arguments)
    if origin in (list, tuple, Sequence):
        return f"a list, each item {_wording(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_wording(arguments[1])}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys, such as {"trainer.lr": 0.001}."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
