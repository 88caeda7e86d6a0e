"""Activations that are computed again in the backward pass instead of being kept: less memory for a forward more."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

__all__ = ["run"]


def run(module: nn.Module, *inputs: Any, again: bool) -> Any:
    """``module(*inputs)``; only the inputs are kept for the backward pass if it may run ``again`` there.

    The second run draws the same random numbers, and starts from the buffers (running statistics, say) that the first
    one started from, on copies: gradients and buffers are those of one run.

    Args:
        module: Any.
        inputs: What it takes.
        again: Whether to save memory.
    """
    if not again or not torch.is_grad_enabled():
        return module(*inputs)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    runs = 0

    def once_more(*inputs: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 1:
            return module(*inputs)
        return functional_call(module, {name: buffer.clone() for name, buffer in before.items()}, inputs)

    return checkpoint(once_more, *inputs, use_reentrant=False)
