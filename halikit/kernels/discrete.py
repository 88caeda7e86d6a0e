"""Bernoulli and categorical kernels: binary data, and classes ``y`` given ``z`` (Eq. 9).

Discrete samples pass no gradient. With a temperature, samples and density are those of the concrete relaxation
(Maddison et al. 2017; Jang et al. 2017), whose samples pass gradients.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from halikit.kernels.kernel import DensityKernel, Representative, network_takes_context
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single, per_element

__all__ = ["BernoulliKernel", "CategoricalKernel"]


class BernoulliKernel(DensityKernel):
    """Independent bits with values in {0, 1}, or in (0, 1) if relaxed.

    Args:
        source: Space that the distribution is conditioned on.
        target: Space of the bits.
        network: Module from ``(n, *source.shape)`` to logits, ``n × target.size`` elements.
        temperature: Temperature of the relaxation, positive; ``None`` for bits that are not relaxed.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, source: Space, target: Space, network: nn.Module, *, temperature: float | None = None) -> None:
        super().__init__(source, target)
        self.network, self.takes_context = network, network_takes_context(network)
        self.temperature = _checked(self, temperature)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution of the bits, event shape ``target.shape``."""
        logits = self.run_network(self.network, given)
        if self.temperature is None:
            return dist.Bernoulli(logits=logits).to_event(self.target.rank)
        return dist.RelaxedBernoulli(logits.new_tensor(self.temperature), logits=logits).to_event(self.target.rank)

    def mean(self, given: Tensor) -> Tensor:
        """The probability that each bit is 1, ``(..., *target.shape)`` in [0, 1]; the relaxation is ignored."""
        return self.run_network(self.network, given).sigmoid()

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """Mean cross entropy of the bits of each sample, ``(n,)``, in nats per bit.

        Args:
            target: Bits, or relaxed bits as soft labels, ``(n, *target.shape)`` in [0, 1].
            given: ``(n, *source.shape)``.
        """
        logits = self.run_network(self.network, given)
        # Not the density of the relaxation, which is infinite at 0 and 1.
        return per_element(nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none"))


class CategoricalKernel(DensityKernel):
    """One of K classes: a one-hot vector in a space of shape ``(K,)``, or an index in a scalar space ``()``.

    Args:
        source: Space that the distribution is conditioned on.
        target: Space of the class: ``(K,)`` for one-hot vectors, ``()`` for indices.
        network: Module from ``(n, *source.shape)`` to logits, ``(n, K)``.
        temperature: Temperature of the relaxation, positive, for one-hot vectors only; ``None`` for no relaxation.

    Raises:
        ValueError: If the target has another shape, or the temperature is not positive or is given for indices.
    """

    def __init__(self, source: Space, target: Space, network: nn.Module, *, temperature: float | None = None) -> None:
        super().__init__(source, target)
        if target.rank > 1:
            raise ValueError(f"{self}: classes live in a space (K,) as one-hot vectors or () as indices, got {target}")
        if temperature is not None and not target.rank:
            raise ValueError(f"{self}: an index cannot be relaxed; give the target the shape (K,)")
        self.integer_draws = not target.rank
        self.network, self.takes_context = network, network_takes_context(network)
        self.temperature = _checked(self, temperature)

    def logits(self, given: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the classes, ``(n, K)`` for ``n`` states, in at least single precision."""
        if self.target.rank:
            logits = self.run_network(self.network, given)
        else:
            logits = self.call_network(self.network, given).reshape(len(given), -1)
        # In bfloat16 the probabilities would not sum to one.
        return at_least_single(logits)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution of the class, event shape ``target.shape``."""
        logits = self.logits(given)
        if not self.target.rank:
            return dist.Categorical(logits=logits)
        if self.temperature is None:
            return dist.OneHotCategorical(logits=logits)
        return dist.RelaxedOneHotCategorical(logits.new_tensor(self.temperature), logits=logits)

    def mean(self, given: Tensor) -> Tensor:
        """The class probabilities ``(..., K)``; for indices, which have no mean, the most probable class ``(...)``."""
        logits = self.logits(given)
        return logits.softmax(-1) if self.target.rank else logits.argmax(-1)

    @property
    def representative(self) -> Representative:
        """The mean for one-hot vectors, the mode for indices, which have no mean."""
        return "mean" if self.target.rank else "mode"

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """Cross entropy with the class of each sample, ``(n,)``, in nats.

        Args:
            target: One-hot or relaxed vectors ``(n, K)``, whose largest entry is the class; or indices ``(n,)``.
            given: ``(n, *source.shape)``.
        """
        drawn = target.argmax(-1) if self.target.rank else target
        return nn.functional.cross_entropy(self.logits(given), drawn, reduction="none")


def _checked(kernel: DensityKernel, temperature: float | None) -> float | None:
    if temperature is not None and not temperature > 0:
        raise ValueError(f"{kernel}: the temperature must be positive, got {temperature}")
    return temperature
