"""What a user should know of the kernels before a game begins: draws without a gradient, latents without a gauge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy
from halikit.kernels import DensityKernel, Kernel
from halikit.utils.modes import evaluating
from halikit.utils.random import seeded

__all__ = ["gauge_notices", "gradient_notices", "passes_gradient"]


def passes_gradient(kernel: Kernel, given: Tensor) -> bool:
    """Whether draws of a kernel pass gradients to its parameters or to what is given.

    Args:
        kernel: The kernel; it is not changed.
        given: A few states of its source, ``(n, *source.shape)``.
    """
    given = given.detach().clone()
    if given.is_floating_point():
        given.requires_grad_()
    with evaluating(kernel), seeded(0, given.device), torch.enable_grad():
        return kernel.sample(given).requires_grad


def gradient_notices(hierarchy: Hierarchy, states: Mapping[str, Tensor]) -> Iterator[str]:
    """A message for each kernel whose draws pass no gradient.

    Args:
        hierarchy: The hierarchy that plays, given its context if it takes one.
        states: A sample of a joint, ``(n, *shape)`` by name.
    """
    for kernel in (kernel for link in hierarchy for kernel in (link.up, link.down)):
        if not passes_gradient(kernel, states[kernel.source.name]):
            yield (
                f"draws of {kernel} ({type(kernel).__name__}) pass no gradient: the game trains neither it nor the "
                "kernels before it. Use rsample, or a straight-through or relaxed gradient; or give "
                "the kernel a loss of its own, by hk.ExtraLoss"
            )


def gauge_notices(hierarchy: Hierarchy, states: Mapping[str, Tensor]) -> Iterator[str]:
    """A message for each latent between two others whose location and scale nothing fixes.

    Args:
        hierarchy: The hierarchy that plays, given its context if it takes one.
        states: A sample of a joint, ``(n, *shape)`` by name.
    """
    links = list(hierarchy)
    for below, above in zip(links, links[1:], strict=False):
        without = [kernel for kernel in (below.up, above.down) if _drifts(kernel, states)]
        if without:
            yield (
                f"nothing fixes location and scale of {below.up.target.name} in {' and '.join(map(str, without))}: "
                "levels drift apart in training and do not couple. Wrap the kernels, as hk.gauged(kernel, "
                "'standardised')"
            )


def _drifts(kernel: Kernel, states: Mapping[str, Tensor]) -> bool:
    last = kernel.factors[-1]
    if last.gauge or last.integer_draws or last.target.support not in (None, "real"):
        return False
    if len(kernel.factors) > 1 or not isinstance(kernel, DensityKernel):
        return True
    with evaluating(kernel), torch.no_grad():
        support = kernel(states[kernel.source.name]).support
    while isinstance(support, torch.distributions.constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(torch.distributions.constraints.real)) or support is (
        torch.distributions.constraints.real_vector
    )
