"""Bernoulli and categorical kernels: binary data, and classes ``y`` given ``z`` (Eq. 9).

Drawn hard they pass no gradient. With a temperature the kernel is the concrete relaxation instead, density and
samples alike (Maddison et al. 2017; Jang et al. 2017), which does.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from halikit.kernels.kernel import DensityKernel
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single, per_element

__all__ = ["BernoulliKernel", "CategoricalKernel"]


class BernoulliKernel(DensityKernel):
    """Independent bits, values in {0, 1}; in (0, 1) when relaxed.

    Args:
        source: Space conditioned on.
        target: Space measured.
        network: Gives the logits, ``n × target.size`` elements.
        temperature: ``None`` for hard bits, or the positive temperature of the relaxation.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, source: Space, target: Space, network: nn.Module, *, temperature: float | None = None) -> None:
        super().__init__(source, target)
        self.network = network
        self.temperature = _checked(self, temperature)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution of the bits, event shape ``target.shape``."""
        logits = self.run_network(self.network, given)
        if self.temperature is None:
            return dist.Bernoulli(logits=logits).to_event(self.target.rank)
        return dist.RelaxedBernoulli(logits.new_tensor(self.temperature), logits=logits).to_event(self.target.rank)

    def mean(self, given: Tensor) -> Tensor:
        """The probabilities, ``(..., *target.shape)`` in [0, 1]; those of the hard bits also when relaxed."""
        return self.run_network(self.network, given).sigmoid()

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """Cross entropy with the bits for each of them, ``(n,)``, in nats; relaxed bits count in their proportion.

        Args:
            target: ``(n, *target.shape)`` in [0, 1].
            given: ``(n, *source.shape)``.
        """
        logits = self.run_network(self.network, given)
        # No density of relaxed bits is finite where they are drawn hard.
        return per_element(nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none"))


class CategoricalKernel(DensityKernel):
    """One class of K: a one-hot vector on a space of shape ``(K,)``, an index on a scalar space ``()``.

    Args:
        source: Space conditioned on.
        target: ``(K,)`` for one-hot states, ``()`` for indices.
        network: Gives the logits, ``(n, K)``.
        temperature: ``None`` to draw hard, or the positive temperature of the relaxation (one-hot only).

    Raises:
        ValueError: If the target is neither, or the temperature is not positive or given for indices.
    """

    def __init__(self, source: Space, target: Space, network: nn.Module, *, temperature: float | None = None) -> None:
        super().__init__(source, target)
        if target.rank > 1:
            raise ValueError(f"{self}: classes live in a space (K,) as one-hot vectors or () as indices, got {target}")
        if temperature is not None and not target.rank:
            raise ValueError(f"{self}: an index cannot be relaxed; give the target the shape (K,)")
        self.network = network
        self.temperature = _checked(self, temperature)

    def logits(self, given: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the classes, ``(..., K)``, in single precision at least."""
        if self.target.rank:
            logits = self.run_network(self.network, given)
        else:
            batch = self.batch_shape(given)
            logits = self.network(given.reshape(-1, *self.source.shape)).reshape(*batch, -1)
        # What bfloat16 makes of probabilities does not sum to one.
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
        """Class probabilities ``(..., K)`` for one-hot states; for indices, without a mean, the likeliest ``(...)``."""
        logits = self.logits(given)
        return logits.softmax(-1) if self.target.rank else logits.argmax(-1)

    @property
    def knows_mean(self) -> bool:
        """Whether states are one-hot: an index has none."""
        return bool(self.target.rank)

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """Cross entropy with the class that was drawn, the likeliest of a relaxed one, ``(n,)``, in nats.

        Args:
            target: ``(n, K)`` or ``(n,)``.
            given: ``(n, *source.shape)``.
        """
        drawn = target.argmax(-1) if self.target.rank else target
        return nn.functional.cross_entropy(self.logits(given), drawn, reduction="none")


def _checked(kernel: DensityKernel, temperature: float | None) -> float | None:
    if temperature is not None and not temperature > 0:
        raise ValueError(f"{kernel}: the temperature must be positive, got {temperature}")
    return temperature
