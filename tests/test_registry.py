"""The table of classes and conf/ name the same classes."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from speech_exp.registry import REGISTERED, registered_class

CONF = Path(__file__).parents[1] / "conf"
GROUPS = {node.partition(".")[0] for node in REGISTERED}


def named(node, key):
    """Return (node, class) of every `_target_` at or below `node`."""
    if not isinstance(node, dict):
        return set()
    own = {(key, node["_target_"])} if "_target_" in node else set()
    return own.union(*(named(value, f"{key}.{name}".lstrip(".")) for name, value in node.items()))


def test_conf_names_the_registered_classes_and_no_others():
    found = set()
    for path in CONF.glob("*/*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path))
        is_whole = "@package _global_" in path.read_text(encoding="utf-8")
        found |= named(content, "" if is_whole else path.parent.name)
    found = {(node, name) for node, name in found if node.partition(".")[0] in GROUPS}
    actions = {(node, name) for node, name in found if node == "action" and not name.endswith(".Train")}
    assert found - actions == {(node, name) for node, names in REGISTERED.items() for name in names}


@pytest.mark.parametrize(("node", "name"), [(node, name) for node, names in REGISTERED.items() for name in names])
def test_a_registered_name_is_a_class_of_this_package(node, name):
    found = registered_class(node, name)
    assert inspect.isclass(found)
    assert f"{found.__module__}.{found.__qualname__}" == name


@pytest.mark.parametrize(
    "name", ["os.system", "speech_exp.experiment.instantiate", "speech_exp.models.lmu.LMU", None, []]
)
def test_anything_else_is_refused(name):
    with pytest.raises(
        ValueError, match=r"task\._target_=.*: expected speech_exp\.tasks\.unconstrained\.Unconstrained or "
    ):
        registered_class("task", name)
    with pytest.raises(ValueError, match=r"expected no _target_ here"):
        registered_class("task.inner", name)
