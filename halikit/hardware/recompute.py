"""Activations that are computed again in the backward pass instead of being stored, which saves memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from halikit.discriminator import JointDiscriminator
from halikit.kernels import Kernel

__all__ = ["recompute_activations"]


def recompute_activations(model: nn.Module) -> None:
    """Let the networks of all kernels and the stages of all discriminators in ``model`` recompute their activations.

    Such a module becomes an instance of a subclass of its class, as torch's ``fully_shard`` does it. So names of
    parameters stay the same, and copies of the module recompute too.
    """
    for part in model.modules():
        if isinstance(part, Kernel) and isinstance(network := getattr(part, "network", None), nn.Module):
            _wrap(network)
        elif isinstance(part, JointDiscriminator):
            for stage in part.stages:
                _wrap(stage)


def _wrap(module: nn.Module) -> None:
    if not isinstance(module, _Recomputed):
        kind = type(module)
        module.__class__ = type(f"Recomputed{kind.__name__}", (_Recomputed, kind), {})


class _Recomputed(nn.Module):
    """Stores its inputs alone for the backward pass, and runs its forward pass again there.

    The second run draws the same random numbers. It starts from copies of the buffers (running statistics, for example)
    that the first run started from, so gradients and buffers are those of one run.
    """

    def forward(self, *inputs: Any) -> Any:
        """Run the module; with gradients, without storing its activations."""
        forward = super().forward
        if not torch.is_grad_enabled():
            return forward(*inputs)
        buffers = {f"module.{name}": buffer.clone() for name, buffer in self.named_buffers()}
        runs = 0

        def run(*inputs: Any) -> Any:
            nonlocal runs
            runs += 1
            if runs == 1:
                return forward(*inputs)
            copies = {name: buffer.clone() for name, buffer in buffers.items()}
            return functional_call(_Forward(self, forward), copies, inputs)

        return checkpoint(run, *inputs, use_reentrant=False)


class _Forward(nn.Module):
    """One way to run a module, as a module, so that its buffers can be replaced for one call."""

    def __init__(self, module: nn.Module, forward: Any) -> None:
        super().__init__()
        self.module = module
        self._run = forward

    def forward(self, *inputs: Tensor) -> Any:
        """Run the module in this way."""
        return self._run(*inputs)
