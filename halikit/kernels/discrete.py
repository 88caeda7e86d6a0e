"""Bernoulli and categorical kernels: binary data, and classes ``y`` given ``z`` (Eq. 9).

Hard draws pass a straight-through gradient: that of the probabilities (Bengio et al. 2013), which is biased. Their
density is that of the discrete distribution, so a Pyro program uses the score function there, which is not. With a
temperature, draws and density are those of the concrete relaxation (Maddison et al. 2017; Jang et al. 2017), whose
gradient is that of its own draws. Everything is in single precision at least, also under autocast.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from halikit.kernels.density import DensityKernel
from halikit.kernels.kernel import Representative, network_takes_context
from halikit.kernels.relaxed import RelaxedBits, RelaxedOneHot
from halikit.spaces import Space
from halikit.utils.random import drawing_from
from halikit.utils.tensors import at_least_single, per_element

__all__ = ["BernoulliKernel", "CategoricalKernel"]


class BernoulliKernel(DensityKernel):
    """Independent bits with values in {0, 1}, or in (0, 1) if relaxed.

    Args:
        source: Space that the distribution is conditioned on.
        target: Space of the bits.
        network: Module from ``(n, *source.shape)`` to logits, ``n × target.size`` elements.
        temperature: Temperature of the relaxation, positive; ``None`` for hard bits with a straight-through gradient.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, source: Space, target: Space, network: nn.Module, *, temperature: float | None = None) -> None:
        super().__init__(source, target)
        self.network, self.takes_context = network, network_takes_context(network)
        self.temperature = _checked(self, temperature)

    def logits(self, given: Tensor) -> Tensor:
        """Log-odds of 1, ``(n, *target.shape)`` for ``n`` states, in at least single precision."""
        return at_least_single(self.run_network(self.network, given))

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        """The distribution of the bits, event shape ``target.shape``."""
        logits = self.logits(given)
        if self.temperature is None:
            return dist.Bernoulli(logits=logits).to_event(self.target.rank)
        return RelaxedBits(self.temperature, logits).to_event(self.target.rank)  # type: ignore[no-untyped-call]

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Bits, ``(..., *target.shape)``; hard ones pass the gradient of their probabilities."""
        if self.temperature is not None:
            return super().sample(given, generator=generator)
        probabilities = self.logits(given).sigmoid()
        bits = torch.bernoulli(probabilities.detach(), generator=generator)
        return _straight_through(bits, probabilities)

    def mean(self, given: Tensor) -> Tensor:
        """The probability that each bit is 1, ``(..., *target.shape)`` in [0, 1]; the relaxation is ignored."""
        return self.logits(given).sigmoid()

    @property
    def representative(self) -> Representative:
        """The mean of hard bits; the probabilities of relaxed ones, whose mean has no closed form."""
        return "mean" if self.temperature is None else "probabilities"

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """Mean cross entropy of the bits of each sample, ``(n,)``, in nats per bit.

        Args:
            target: Bits, or relaxed bits as soft labels, ``(n, *target.shape)`` in [0, 1].
            given: ``(n, *source.shape)``.
        """
        # Not the density of the relaxation, of which hard bits are no states.
        losses = nn.functional.binary_cross_entropy_with_logits(self.logits(given), target, reduction="none")
        return per_element(losses)


class CategoricalKernel(DensityKernel):
    """One of K classes: a one-hot vector in a space of shape ``(K,)``, or an index in a scalar space ``()``.

    Args:
        source: Space that the distribution is conditioned on.
        target: Space of the class: ``(K,)`` for one-hot vectors, ``()`` for indices.
        network: Module from ``(n, *source.shape)`` to logits, ``(n, K)``.
        temperature: Temperature of the relaxation, positive, for one-hot vectors only; ``None`` for hard draws. Hard
            one-hot vectors pass a straight-through gradient; indices are integers and pass none.

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
        return RelaxedOneHot(self.temperature, logits)

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One-hot vectors ``(..., K)``, of which hard ones pass the gradient of their probabilities; or indices."""
        if self.temperature is not None or not self.target.rank:
            return super().sample(given, generator=generator)
        hard = self(given)
        with drawing_from(generator, given.device):
            return _straight_through(hard.sample(), hard.mean)

    def mean(self, given: Tensor) -> Tensor:
        """The class probabilities ``(..., K)``; for indices, which have no mean, the most probable class ``(...)``."""
        logits = self.logits(given)
        return logits.softmax(-1) if self.target.rank else logits.argmax(-1)

    @property
    def representative(self) -> Representative:
        """The mean of hard one-hot vectors, the probabilities of relaxed ones, the mode of indices."""
        if not self.target.rank:
            return "mode"
        return "mean" if self.temperature is None else "probabilities"

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """Cross entropy with the class of each sample, ``(n,)``, in nats.

        Args:
            target: One-hot or relaxed vectors ``(n, K)``, whose largest entry is the class; or indices ``(n,)``.
            given: ``(n, *source.shape)``.
        """
        drawn = target.argmax(-1) if self.target.rank else target
        return nn.functional.cross_entropy(self.logits(given), drawn, reduction="none")


def _straight_through(draw: Tensor, probabilities: Tensor) -> Tensor:
    """The draw, exactly, with the gradient of the probabilities."""
    return draw + (probabilities - probabilities.detach())


def _checked(kernel: DensityKernel, temperature: float | None) -> float | None:
    if temperature is not None and not temperature > 0:
        raise ValueError(f"{kernel}: the temperature must be positive, got {temperature}")
    return temperature
