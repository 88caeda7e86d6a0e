"""Conditional normalising flows, made of Pyro's conditional transforms."""

from __future__ import annotations

from functools import reduce

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.density import DensityKernel
from halikit.kernels.kernel import Kernel, Representative, network_takes_context
from halikit.kernels.scales import bounded_scale
from halikit.spaces import Space
from halikit.utils.modes import evaluating
from halikit.utils.tensors import at_least_single

__all__ = ["FlowKernel"]

_BINS = 8


class FlowKernel(DensityKernel):
    """``T_{w|v}`` as a normalising flow: an invertible function of Gaussian noise that depends on ``v``.

    The network gives features of ``v``. Every layer is an affine coupling: it shifts and scales one half of the
    elements by a function of the other half and of the features (Dinh et al. 2017), so a draw and a density cost one
    pass each. The halves alternate. A target of one element has no halves: there each layer is a monotone spline
    (Durkan et al. 2019). A shift and a scale of every element, linear in the features, follow.

    The mean of a flow has no closed form. :meth:`mean` is the draw at zero noise: the mean of the noise, pushed through
    the flow.

    Args:
        source: Space of ``v``.
        target: Space of ``w``.
        network: Any module from ``(n, *source.shape)`` to features, ``n × features`` elements in any shape.
        features: Number of features for each sample; by default it is found by running the network once, on zeros. A
            network that takes a context needs it.
        layers: Number of layers, at least 1; with two or more, every element depends on every other.
        hidden: Width of the hidden layer that computes shift and scale in each layer.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        source: Space,
        target: Space,
        network: nn.Module,
        *,
        features: int | None = None,
        layers: int = 4,
        hidden: int = 64,
    ) -> None:
        super().__init__(source, target)
        features = _number_of_features(self, network) if features is None else features
        if min(features, layers, hidden) < 1:
            raise ValueError(f"{self}: features, layers and hidden are 1 or more, got {features}, {layers}, {hidden}")
        self.network, self.takes_context = network, network_takes_context(network)
        self.features = features
        self.layers = nn.ModuleList(_layer(target.size, features, hidden) for _ in range(layers))
        self.last = nn.Linear(features, 2 * target.size)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution over ``target``, event shape ``target.shape``."""
        return dist.TransformedDistribution(*self._parts(given))

    def _parts(self, given: Tensor) -> tuple[dist.TorchDistribution, list[dist.transforms.Transform]]:
        """The noise, ``(n, target.size)``, and the transforms that make a state of it."""
        features, size = self._features(given), self.target.size
        # In half precision, the way back from a draw would not lead to its noise.
        with torch.autocast(given.device.type, enabled=False):
            location, raw = self.last(features).chunk(2, -1)
        noise = dist.Normal(torch.zeros_like(location), torch.ones_like(location)).to_event(1)
        order = torch.arange(size - 1, -1, -1, device=given.device)
        transforms = []
        for layer in self.layers:
            transforms += [layer.condition(features), dist.transforms.Permute(order)]  # type: ignore[operator]
        transforms.append(dist.transforms.AffineTransform(location, bounded_scale(raw, None), event_dim=1))
        if self.target.rank != 1:
            transforms.append(dist.transforms.ReshapeTransform(torch.Size([size]), torch.Size(self.target.shape)))
        return noise, transforms

    def mean(self, given: Tensor) -> Tensor:
        """The draw at zero noise, ``(..., *target.shape)``."""
        noise, transforms = self._parts(given)
        return reduce(lambda state, transform: transform(state), transforms, noise.mean)

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


def _layer(size: int, features: int, hidden: int) -> nn.Module:
    """One conditional transform of vectors of ``size`` elements."""
    if size == 1:
        numbers = [_BINS, _BINS, _BINS - 1, _BINS]
        return dist.transforms.ConditionalSpline(_Dense(features, hidden, numbers), 1, _BINS)
    half = size // 2
    return dist.transforms.ConditionalAffineCoupling(half, _Dense(half + features, hidden, [size - half, size - half]))


def _number_of_features(kernel: Kernel, network: nn.Module) -> int:
    if network_takes_context(network):
        raise ValueError(f"{kernel}: its network takes a context, so features, the size of its output, must be given")
    like = next(network.parameters(), torch.empty(0))
    with evaluating(network), torch.no_grad():
        return kernel.call_network(network, like.new_zeros(2, *kernel.source.shape)).numel() // 2


class _Dense(nn.Module):
    """The network of a layer, from features, and for a coupling the half that it reads, to the layer's parameters.

    Args:
        inputs: Number of inputs.
        hidden: Width of the hidden layer.
        outputs: Number of elements of each parameter.
    """

    def __init__(self, inputs: int, hidden: int, outputs: list[int]) -> None:
        super().__init__()
        self.outputs = outputs
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, sum(outputs)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """The parameters; ``context`` is Pyro's name of the features where ``x`` is the half that is read."""
        if context is not None:
            x = torch.cat([x, context.expand(*x.shape[:-1], -1)], -1)
        with torch.autocast(x.device.type, enabled=False):  # as in FlowKernel
            out: Tensor = self.layers(x)
        return out.split(self.outputs, -1)
