"""Compare a deployed model with a blank one built from the config alone, before a certificate checks anything else."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from speech_exp.models.linear_memory import LinearMemory
from speech_exp.tasks.integer.lmu import IntegerLMU


def difference(deployed: nn.Module, blank: nn.Module) -> str | None:
    """Return the first difference in form between `deployed` and `blank`, or None.

    Modules must have the same classes, and tensors the same names, shapes and dtypes. The A and B of each LMU are constants
    and must have the same values.
    """
    found, expected = _parts(deployed), _parts(blank)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return f"{name or 'the model'} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
    for name, memory in blank.named_modules():
        if isinstance(memory, LinearMemory | IntegerLMU):
            buffers = dict(deployed.get_submodule(name).named_buffers(recurse=False))
            for key, constant in memory.named_buffers(recurse=False):
                if not torch.equal(buffers[key].cpu(), constant.cpu()):
                    return f"{name}.{key} is not the zero-order hold of its order and theta as stored by the task"
    return None


def _parts(model: nn.Module) -> dict[str, str]:
    """Return the class of each module and the shape and dtype of each tensor, by name."""
    classes = {name: f"{type(module).__module__}.{type(module).__qualname__}" for name, module in model.named_modules()}
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return classes | {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors}
