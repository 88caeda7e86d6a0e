"""Conditional normalising flows, made of Pyro's conditional transforms."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.nn import DenseNN
from torch import Tensor, nn

from halikit.kernels.kernel import DensityKernel, Representative, network_takes_context
from halikit.kernels.scales import bounded_scale
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single

__all__ = ["FlowKernel"]

_BINS = 8


class FlowKernel(DensityKernel):
    """``T_{w|v}`` as a normalising flow: an invertible function of Gaussian noise that depends on ``v``.

    The network gives features of ``v``. Every layer is an affine coupling: it shifts and scales one half of the
    elements by a function of the other half and of the features (Dinh et al. 2017), so a draw and a density cost one
    pass each. The halves alternate. A target of one element has no halves: there each layer is a monotone spline (Durkan
    et al. 2019). A shift and a scale of every element, linear in the features, follow.

    The mean of a flow has no closed form. :meth:`mean` is the draw at zero noise: the mean of the noise, pushed through
    the flow.

    Args:
        source: Space of ``v``.
        target: Space of ``w``.
        network: Any module from ``(n, *source.shape)`` to features, ``n × features`` elements in any shape.
        features: Number of features for each sample.
        layers: Number of layers, at least 1; with two or more, every element depends on every other.
        hidden: Width of the hidden layer that computes shift and scale in each layer.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self, source: Space, target: Space, network: nn.Module, *, features: int, layers: int = 4, hidden: int = 64
    ) -> None:
        super().__init__(source, target)
        if min(features, layers, hidden) < 1:
            raise ValueError(f"{self}: features, layers and hidden are 1 or more, got {features}, {layers}, {hidden}")
        self.network, self.takes_context = network, network_takes_context(network)
        self.features = features
        self.layers = nn.ModuleList(_layer(target.size, features, hidden) for _ in range(layers))
        self.last = nn.Linear(features, 2 * target.size)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution over ``target``, event shape ``target.shape``."""
        features, size = self._features(given), self.target.size
        location, raw = self.last(features).chunk(2, -1)
        noise = dist.Normal(torch.zeros_like(location), torch.ones_like(location)).to_event(1)
        order = torch.arange(size - 1, -1, -1, device=given.device)
        transforms = []
        for layer in self.layers:
            transforms += [layer.condition(features), dist.transforms.Permute(order)]
        transforms.append(dist.transforms.AffineTransform(location, bounded_scale(raw, None), event_dim=1))
        if self.target.rank != 1:
            transforms.append(dist.transforms.ReshapeTransform(torch.Size([size]), torch.Size(self.target.shape)))
        return dist.TransformedDistribution(noise, transforms)

    def mean(self, given: Tensor) -> Tensor:
        """The draw at zero noise, ``(..., *target.shape)``."""
        flow = self(given)
        state = torch.zeros(len(given), self.target.size, dtype=self.dtype_for(given), device=given.device)
        for transform in flow.transforms:
            state = transform(state)
        return state

    @property
    def representative(self) -> Representative:
        """What :meth:`mean` returns: the draw at zero noise."""
        return "draw at fixed noise"

    def _features(self, given: Tensor) -> Tensor:
        out = self.call_network(self.network, given)
        if out.numel() != len(given) * self.features:
            raise ValueError(
                f"the network of {self} gives {tuple(out.shape)} for a batch of {len(given)}; "
                f"the flow needs {self.features} features per sample"
            )
        return at_least_single(out.to(self.dtype_for(given))).reshape(len(given), self.features)
