"""Mixtures of diagonal Gaussians whose samples pass a gradient to the weights too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["DiagonalMixture", "mixture_sample"]

# Largest logarithm of a density ratio in the gradient of the weights. The ratios have means of at most one, so larger
# ones are rare, but a single one would spoil an optimiser's running averages.
_LARGEST_LOG_RATIO = 10.0


class DiagonalMixture(dist.MixtureOfDiagNormals):
    """Pyro's mixture of diagonal Gaussians with an unbiased gradient of its samples, for any dimension.

    ``MixtureOfDiagNormals.rsample`` of Pyro 1.9 passes a gradient to the weights that is biased, and NaN from about 100
    dimensions on. Here the gradient moves mass from a component to a narrow reference Gaussian one coordinate after the
    other, which has a closed form (the pathwise gradients of Jankowiak & Karaletsos 2019 with axis-aligned paths), and
    is computed from logarithms.

    Args:
        locs: Means of the components, ``(..., K, D)``.
        coord_scale: Standard deviations, ``(..., K, D)``, positive.
        component_logits: Unnormalised log-weights, ``(..., K)``.
    """

    def __init__(self, locs: Tensor, coord_scale: Tensor, component_logits: Tensor) -> None:
        super().__init__(locs, coord_scale, component_logits)  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiagonalMixture:
        """The same distribution with another batch shape."""
        batch = torch.Size(batch_shape)
        parameters = (self.locs, self.coord_scale, self.component_logits)
        events = (2, 2, 1)
        return DiagonalMixture(
            *(p.expand(*batch, *p.shape[-event:]) for p, event in zip(parameters, events, strict=True))
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples ``(*sample_shape, ..., D)`` that pass gradients to means, standard deviations and weights."""
        return mixture_sample(self.locs, self.coord_scale, self.component_logits, sample_shape)


def mixture_sample(locs: Tensor, scales: Tensor, logits: Tensor, sample_shape: Sequence[int] = ()) -> Tensor:
    """Samples ``(*sample_shape, ..., D)`` of a mixture; see :class:`DiagonalMixture` for the arguments.

    No value is read, so that a training step with it can be compiled.
    """
    with torch.no_grad():
        component = dist.Categorical(logits=logits, validate_args=False).sample(torch.Size(sample_shape))
        rows = component[..., None, None].expand(*component.shape, 1, locs.shape[-1])
        shape = (*component.shape, *locs.shape[-2:])
        loc, scale = (parameter.expand(shape).gather(-2, rows).squeeze(-2) for parameter in (locs, scales))
        z = loc + scale * torch.randn_like(loc)
    passed: Tensor = _PassGradient.apply(z, locs, scales, logits)  # type: ignore[no-untyped-call]
    return passed


class _PassGradient(torch.autograd.Function):
    """The identity on samples of a mixture; its backward pass gives the gradients of the parameters."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, locs: Tensor, scales: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(z, locs, scales, logits)
        return z.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        z, locs, scales, logits = ctx.saved_tensors
        gradient, distances = gradient.unsqueeze(-2), (z.unsqueeze(-2) - locs) / scales
        # Logarithms of the densities of each coordinate under each component, without the constant √(2π).
        each = -0.5 * distances.square() - scales.log()
        joint = logits.log_softmax(-1) + each.sum(-1)
        total = joint.logsumexp(-1, keepdim=True)
        of_locs = (joint - total).exp().unsqueeze(-1) * gradient
        of_logits = _weight_gradient(z, locs, scales, logits, distances, each, total, gradient)
        return (
            None,
            of_locs.sum_to_size(locs.shape),
            (of_locs * distances).sum_to_size(scales.shape),
            of_logits.sum_to_size(logits.shape),
        )


def _weight_gradient(
    z: Tensor,
    locs: Tensor,
    scales: Tensor,
    logits: Tensor,
    distances: Tensor,
    each: Tensor,
    total: Tensor,
    gradient: Tensor,
) -> Tensor:
    """The gradient of the logits, ``(..., K)``, for each sample.

    Mass moves from component k to the reference in D moves. Before move i the first i − 1 coordinates have the
    distribution of the reference, and the last D − i have that of the component after it. The flow through ``z`` is the
    difference of both distribution functions at ``z_i``, times the densities of the other coordinates.
    """
    weights = logits.softmax(-1)
    centre = (weights.unsqueeze(-1) * locs).sum(-2, keepdim=True)
    # The reference is narrower than all components, so that the ratio of the densities is bounded.
    width = scales.min(-2, keepdim=True).values
    from_centre = (z.unsqueeze(-2) - centre) / width
    reference = -0.5 * from_centre.square() - width.log()
    before = reference.cumsum(-1) - reference
    after = each.sum(-1, keepdim=True) - each.cumsum(-1)
    log_ratio = before + after - total.unsqueeze(-1) + 0.5 * math.log(2 * math.pi)
    ratio = log_ratio.clamp_max(_LARGEST_LOG_RATIO).exp()
    flow = (torch.special.ndtr(from_centre) - torch.special.ndtr(distances)) * ratio
    each_moved = weights * (flow * gradient).sum(-1)
    return each_moved - weights * each_moved.sum(-1, keepdim=True)
