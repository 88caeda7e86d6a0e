"""Modules in evaluation mode, modules whose buffers stay as they are, and distributions that check their values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call

__all__ = ["evaluating", "keeping_buffers", "validating"]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode within the context; afterwards each submodule has its former mode again."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def keeping_buffers(module: nn.Module, *inputs: object) -> Tensor:
    """Call a module on copies of its buffers, so that running statistics do not change."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    output: Tensor = functional_call(module, buffers, inputs)
    return output


@contextmanager
def validating() -> Iterator[None]:
    """Distributions that are made in the context refuse values outside their support.

    That is torch's default, but the first compilation of a process turns it off for good.
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
