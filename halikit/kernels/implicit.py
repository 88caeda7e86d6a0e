"""Implicit kernels: a network of what is given and of noise. They have draws, and no density."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from halikit.kernels.kernel import Kernel, Representative, network_takes_context
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single

__all__ = ["ImplicitKernel"]


class ImplicitKernel(Kernel):
    """``w = f(v, ε_1, ε_2, …)`` with standard normal noise maps ``ε_i``, for instance one for each resolution.

    The adversarial game needs draws alone, so ``f`` may be any network: it need not be invertible, and no family of
    distributions is chosen. A likelihood is not available: Eq. 5, the evidence bound and Pyro programs need a density.

    The kernel draws the noise and calls ``network(given, noise)``, where ``noise`` is a list of tensors
    ``(n, *shape)``, or ``network(given, context, noise)`` if the network has an attribute ``takes_context``.
    :meth:`mean` is the draw at zero noise. :func:`halikit.noisy_network` builds such a network.

    Args:
        source: Space of ``v``.
        target: Space of ``w``.
        network: ``f``, a module from ``(n, *source.shape)`` and the noise to ``n × target.size`` elements.
        noise: Shapes of the noise maps without the batch dimension, such as ``[(16,), (8, 4, 4)]``; by default those of
            the network's attribute ``noise``.

    Raises:
        ValueError: If there is no noise map; for a function without noise use a DeterministicKernel.
    """

    def __init__(
        self, source: Space, target: Space, network: nn.Module, *, noise: Iterable[Iterable[int]] | None = None
    ) -> None:
        super().__init__(source, target)
        shapes = getattr(network, "noise", ()) if noise is None else noise
        self.noise = tuple(tuple(shape) for shape in shapes)
        if not self.noise:
            raise ValueError(
                f"{self}: noise is the shapes of the noise maps, such as [(16,), (8, 4, 4)], or an attribute of the "
                "network; got none. For a function without noise use DeterministicKernel"
            )
        self.network, self.takes_context = network, network_takes_context(network)

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A draw, ``(..., *target.shape)``, which passes gradients."""
        return self._run(given, [noise.normal_(generator=generator) for noise in self._zeros(given)])

    def mean(self, given: Tensor) -> Tensor:
        """The draw at zero noise, ``(..., *target.shape)``."""
        return self._run(given, self._zeros(given))

    @property
    def representative(self) -> Representative:
        """What :meth:`mean` returns: the draw at zero noise."""
        return "draw at fixed noise"

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The energy score of two draws ``w`` and ``w'``, ``‖w − t‖ − ½ ‖w − w'‖``, ``(n,)``, for targets ``t``.

        The norm is the root mean square of the elements. In expectation it is smallest where the draws have the
        distribution of the targets (Gneiting and Raftery 2007), so it needs no density. It is an unbiased estimate.

        Args:
            target: ``(n, *target.shape)``.
            given: ``(n, *source.shape)``.
        """
        first, second = (self.sample(given) for _ in range(2))
        target = at_least_single(target)
        distances = [_distance(at_least_single(draw), target) for draw in (first, second)]
        return 0.5 * sum(distances) - 0.5 * _distance(at_least_single(first), at_least_single(second))

    def _zeros(self, given: Tensor) -> list[Tensor]:
        dtype = self.dtype_for(given)
        return [torch.zeros(len(given), *shape, dtype=dtype, device=given.device) for shape in self.noise]

    def _run(self, given: Tensor, noise: list[Tensor]) -> Tensor:
        return self.run_network(_WithNoise(self.network, noise), given)


class _WithNoise(nn.Module):
    """A network with its noise, as a function of what is given and of the context."""

    def __init__(self, network: nn.Module, noise: list[Tensor]) -> None:
        super().__init__()
        self.network, self.noise, self.takes_context = network, noise, network_takes_context(network)

    def forward(self, given: Tensor, *context: Tensor) -> Tensor:
        """The output for ``(n, *source.shape)`` and, if the network takes one, the context."""
        out: Tensor = self.network(given, *context, self.noise)
        return out


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference of each sample, ``(n,)``; its gradient is finite also where it is zero."""
    squares = (a - b).square().reshape(len(a), math.prod(a.shape[1:])).mean(1)
    return (squares + 1e-12).sqrt()
