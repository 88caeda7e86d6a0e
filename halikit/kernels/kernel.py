"""Markov kernels ``T_{w|v}`` (paper, section 3.1): the abstract interface, composition (Eq. 1), adjoints (Eq. 2).

Shapes throughout: ``given`` is ``(..., *source.shape)`` and what comes back is ``(..., *target.shape)``,
with the same leading batch dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import matmul
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from halikit.spaces import Space
from halikit.utils.modes import evaluating
from halikit.utils.random import drawing_from
from halikit.utils.tensors import at_least_single, per_element

__all__ = ["Composite", "DensityKernel", "Kernel", "LogProbEstimate", "NoDensityError", "compose"]


class NoDensityError(TypeError):
    """A density was asked of a kernel that has none in closed form."""


class Kernel(nn.Module, ABC):
    """A Markov kernel ``T_{target|source}``: a probability measure over ``target`` for each ``given``.

    Subclasses implement :meth:`sample`, and :meth:`mean` where they know it. Kernels compose with ``@``
    as functions do: ``(b @ a)`` applies ``a`` first (Eq. 1).

    Args:
        source: The space conditioned on.
        target: The space measured.
    """

    # The kernel that a Link pairs this one with. Held in a tuple, so that it is no submodule and its
    # parameters are counted once.
    _adjoint: tuple[Kernel, ...] = ()
    # For a composition that is in no link, the composition of its factors' adjoints, once it has been asked for.
    _mirror: tuple[Kernel, ...] = ()

    def __init__(self, source: Space, target: Space) -> None:
        super().__init__()
        self.source = source
        self.target = target

    @abstractmethod
    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one ``target`` per ``given``, reparametrised where the kernel can be.

        Args:
            given: ``(..., *source.shape)``.
            generator: Source of randomness; torch's global one by default.

        Returns:
            ``(..., *target.shape)``.
        """

    def mean(self, given: Tensor) -> Tensor:
        """The conditional mean, ``(..., *target.shape)``.

        A kernel that does not know its mean gives one draw, which is an unbiased estimate of it.
        """
        return self.sample(given)

    @property
    def knows_mean(self) -> bool:
        """Whether :meth:`mean` is the conditional mean, rather than one draw."""
        return type(self).mean is not Kernel.mean

    @property
    def has_sleep_loss(self) -> bool:
        """Whether the kernel has a :meth:`sleep_loss`: it has a density, a mean, or a loss of its own."""
        return self.knows_mean or type(self).sleep_loss is not Kernel.sleep_loss

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The kernel's loss in the sleep phase: how badly it predicts ``target`` from ``given``, ``(n,)``.

        A training objective, not a density: it is defined in training mode under a gauge too. Every form is divided by
        the number of elements of the target. A kernel without a density takes the squared error of its mean.

        Args:
            target: ``(n, *target.shape)``, drawn by the decoder.
            given: ``(n, *source.shape)``.

        Raises:
            NoDensityError: If the kernel has neither a density nor a mean.
        """
        if not self.knows_mean:
            raise NoDensityError(f"{self} is a {type(self).__name__} with neither a density nor a mean to learn by")
        return per_element((at_least_single(target) - at_least_single(self.mean(given))).square())

    def forward(self, given: Tensor) -> Any:
        """The distribution over ``target``; only a :class:`DensityKernel` has one.

        Raises:
            NoDensityError: Always, here.
        """
        raise NoDensityError(
            f"{self} is a {type(self).__name__} and has no density in closed form: it can only be sampled"
        )

    def log_prob(self, value: Tensor, given: Tensor) -> Tensor:
        """Exact log-density of ``value`` under ``T_{target|source = given}``, ``(...)``, in nats.

        Raises:
            NoDensityError: If the kernel has no density.
        """
        return self(given).log_prob(value)

    @property
    def adjoint(self) -> Kernel:
        """``T†``, the kernel back from ``target`` to ``source`` (Eq. 2).

        A :class:`~halikit.Link` pairs a kernel with its adjoint. The adjoint of a composition that is in no link is the
        composition of the adjoints of its factors, in the opposite order.

        Raises:
            RuntimeError: If the kernel, or one of its factors, is in no link.
        """
        if self._adjoint:
            return self._adjoint[0]
        if len(self.factors) == 1:
            raise RuntimeError(f"{self} has no adjoint yet: pair it with the kernel back, as Link(up, down)")
        if not self._mirror:
            adjoint = compose(*(factor.adjoint for factor in self.factors))
            adjoint._mirror, self._mirror = (self,), (adjoint,)
        return self._mirror[0]

    def pair_with(self, other: Kernel) -> None:
        """Make ``other`` the adjoint of this kernel; a :class:`~halikit.Link` calls this for both of its kernels.

        Raises:
            ValueError: If the kernel is already paired with another one.
        """
        if self._adjoint and self._adjoint[0] is not other:
            raise ValueError(f"{self} is already linked with another {self.adjoint}; a kernel belongs to one link")
        self._adjoint = (other,)

    @property
    def factors(self) -> tuple[Kernel, ...]:
        """The kernels that this one is composed of, in order of application."""
        return (self,)

    def batch_shape(self, given: Tensor) -> torch.Size:
        """The leading dimensions of ``given``, ``(..., *source.shape)``.

        Raises:
            ValueError: If ``given`` is not a batch of states of the source.
        """
        batch = given.shape[: max(0, given.dim() - self.source.rank)]
        if given.shape[len(batch) :] != self.source.shape:
            wanted = ", ".join(map(str, self.source.shape))
            raise ValueError(f"{self} takes (..., {wanted}), got {tuple(given.shape)}")
        return batch

    def run_network(self, network: nn.Module, given: Tensor, outputs: int = 1) -> Tensor:
        """Run ``network`` on ``given`` with one batch dimension, and give the result the shape of the target.

        Args:
            network: Maps ``(n, *source.shape)`` to ``n × outputs × target.size`` elements in any shape. Feature
                maps ``(n, outputs · C, H, W)`` are split along the channels, vectors along their only axis.
            given: ``(..., *source.shape)``.
            outputs: How many tensors of the target's shape the network gives.

        Returns:
            ``(outputs, ..., *target.shape)`` for several outputs, ``(..., *target.shape)`` for one.

        Raises:
            ValueError: If ``given`` or the output of the network does not fit the spaces.
        """
        target, batch = self.target, self.batch_shape(given)
        # A product, not numel(), which would bind an exported program to one size of batch.
        rows = math.prod(batch)
        out: Tensor = network(given if len(batch) == 1 else given.reshape(-1, *self.source.shape))
        if out.numel() != rows * outputs * target.size:
            raise ValueError(
                f"the network of {self} gives {tuple(out.shape)} for a batch of {rows}; "
                f"{target} needs {outputs} × {target.size} elements per sample"
            )
        if outputs == 1:
            return out.reshape((*batch, *target.shape))
        return out.reshape(rows, outputs, *target.shape).transpose(0, 1).reshape(outputs, *batch, *target.shape)

    def __matmul__(self, inner: Kernel) -> Kernel:
        """``self ∘ inner``: apply ``inner``, then ``self``, marginalising over the space between (Eq. 1)."""
        if not isinstance(inner, Kernel):
            return NotImplemented
        return Composite(inner, self)

    def __str__(self) -> str:
        return f"T_{{{self.target.name}|{self.source.name}}}"

    def extra_repr(self) -> str:
        """The formula and both spaces, for torch's printout of the module tree."""
        return f"{self}: {self.source} → {self.target}"


class DensityKernel(Kernel):
    """A kernel whose density is known: :meth:`forward` returns it as a Pyro distribution.

    A subclass needs nothing but :meth:`forward`; sampling and the mean follow from the distribution.
    """

    @abstractmethod
    def forward(self, given: Tensor) -> TorchDistributionMixin:
        """The distribution over ``target``, batch shape ``(...)``, event shape ``target.shape``.

        Args:
            given: ``(..., *source.shape)``.
        """

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw from :meth:`forward`, ``(..., *target.shape)``; gradients pass where it is reparametrised."""
        distribution = self(given)
        with drawing_from(generator, given.device):
            if distribution.has_rsample:
                return distribution.rsample()
            return distribution.sample()

    def mean(self, given: Tensor) -> Tensor:
        """The mean of :meth:`forward`, ``(..., *target.shape)``; one draw where the distribution knows none."""
        try:
            return self(given).mean
        except NotImplementedError:
            return super().mean(given)

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The negative log-density of ``target`` for each of its elements, ``(n,)``, in nats.

        Args:
            target: ``(n, *target.shape)``.
            given: ``(n, *source.shape)``.
        """
        return -at_least_single(self.log_prob(target, given)) / self.target.size

    @property
    def knows_mean(self) -> bool:
        """Whether the distribution knows its own, or the kernel has its own way to it."""
        if type(self).mean is not DensityKernel.mean:
            return True
        like = next(self.parameters(), torch.empty(0))
        with evaluating(self), torch.no_grad():
            try:
                _ = self(like.new_zeros(2, *self.source.shape)).mean
            except NotImplementedError:
                return False
        return True


class LogProbEstimate(NamedTuple):
    """A stochastic lower bound on a log-density: the log of a mean of densities.

    Attributes:
        value: ``(...)``, nats. Its expectation is at most the true log-density, and tends to it as
            ``num_samples`` grows.
        effective_sample_size: ``(...)``, between 1 and ``num_samples``: how many of the draws carry the
            mean. Near 1 the bound is loose.
        num_samples: Draws of the intermediate states per value.
    """

    value: Tensor
    effective_sample_size: Tensor
    num_samples: int


class Composite(Kernel):
    """``T_{w|v} ∘ T_{v|u}``: kernels applied one after another, the states between marginalised out (Eq. 1).

    Its density is an expectation over those states, so it has no exact one: :meth:`estimate_log_prob` bounds
    it from below. Nested composites flatten; a composite iterates over, and indexes as, its factors.

    Args:
        factors: Two kernels or more, in order of application.

    Raises:
        ValueError: If a kernel's target is not the next one's source.
    """

    def __init__(self, *factors: Kernel) -> None:
        flat = [leaf for factor in factors for leaf in factor.factors]
        if len(flat) < 2:
            raise ValueError("a composite takes two kernels or more")
        for inner, outer in pairwise(flat):
            _check_fit(outer, inner)
        super().__init__(flat[0].source, flat[-1].target)
        self._factors = nn.ModuleList(flat)

    @property
    def factors(self) -> tuple[Kernel, ...]:
        """The kernels composed, in order of application."""
        return tuple(self)

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._factors)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._factors)

    def __getitem__(self, index: int | slice) -> Kernel:
        """The factor at ``index``, or the composition of a slice of them."""
        if isinstance(index, slice):
            return compose(*reversed(self.factors[index]))
        return self.factors[index]

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw through every factor in turn, ``(..., *target.shape)``."""
        state = given
        for factor in self:
            state = factor.sample(state, generator=generator)
        return state

    def mean(self, given: Tensor) -> Tensor:
        """Follow the factors' means, ``(..., *target.shape)``; the mean itself if the outer factors are affine."""
        state = given
        for factor in self:
            state = factor.mean(state)
        return state

    @property
    def knows_mean(self) -> bool:
        """Whether every factor knows its own."""
        return all(factor.knows_mean for factor in self)

    def estimate_log_prob(
        self,
        value: Tensor,
        given: Tensor,
        *,
        num_samples: int = 64,
        proposal: Kernel | None = None,
        generator: torch.Generator | None = None,
    ) -> LogProbEstimate:
        r"""Bound :math:`\log T_{w|u}(w)` from below by importance sampling of the states between.

        Without a proposal the states are drawn by the inner factors, given ``given``, and the outermost density
        is averaged. A proposal draws them backwards from ``value`` instead; the adjoint is the natural one
        (draw ``z1 ~ q(z1|x)`` to estimate ``p(x|z2)``), and tightens the bound by much.

        Args:
            value: ``(..., *target.shape)``.
            given: ``(..., *source.shape)``, the same batch dimensions.
            num_samples: Draws per value, at least 1.
            proposal: A kernel from ``target`` whose factors lead back through the states between; a last
                factor that leads to ``source`` is not used.
            generator: Source of randomness.

        Returns:
            The bound, its effective sample size and the number of samples.

        Raises:
            NoDensityError: If a density that is needed does not exist.
            ValueError: If ``num_samples`` is not positive or the proposal leads elsewhere.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        values = value.expand(num_samples, *value.shape)
        givens = given.expand(num_samples, *given.shape)
        if proposal is None:
            between = self[:-1].sample(givens, generator=generator)
            log_weights = _density(self[-1]).log_prob(values, between)
        else:
            log_weights = self._proposed_log_weights(values, givens, proposal, generator)
        log_sum = log_weights.logsumexp(0)
        # Where no draw has any weight, none is more effective than another.
        ess = (2 * log_sum - (2 * log_weights).logsumexp(0)).exp().nan_to_num(nan=1.0)
        return LogProbEstimate(log_sum - math.log(num_samples), ess, num_samples)

    def _proposed_log_weights(
        self, values: Tensor, givens: Tensor, proposal: Kernel, generator: torch.Generator | None
    ) -> Tensor:
        back = proposal.factors[: len(self) - 1]
        expected = [factor.source for factor in reversed(self.factors[1:])]
        if proposal.source != self.target or [kernel.target for kernel in back] != expected:
            raise ValueError(
                f"the proposal {proposal} does not lead from {self.target} back through {', '.join(map(str, expected))}"
            )
        states = [values]
        log_weights = torch.zeros((), device=values.device)
        for kernel in back:
            states.append(kernel.sample(states[-1], generator=generator))
            log_weights = log_weights - _density(kernel).log_prob(states[-1], states[-2])
        states.append(givens)
        for factor, target, source in zip(reversed(self.factors), states, states[1:], strict=False):
            log_weights = log_weights + _density(factor).log_prob(target, source)
        return log_weights

    def __str__(self) -> str:
        return " ∘ ".join(str(factor) for factor in reversed(self.factors))


def compose(*kernels: Kernel) -> Kernel:
    """``kernels[0] ∘ kernels[1] ∘ …``, the outermost first, as one writes it; one kernel alone is itself.

    Raises:
        ValueError: If no kernel is given, or two neighbours' spaces do not fit.
    """
    if not kernels:
        raise ValueError("nothing to compose")
    return reduce(matmul, kernels)


def _check_fit(outer: Kernel, inner: Kernel) -> None:
    if inner.target != outer.source:
        raise ValueError(
            f"cannot compose {outer} ∘ {inner}: {inner} leads to {inner.target}, but {outer} starts from {outer.source}"
        )


def _density(kernel: Kernel) -> DensityKernel:
    if not isinstance(kernel, DensityKernel):
        raise NoDensityError(
            f"{kernel} is a {type(kernel).__name__} without a density, so no log-density can be estimated"
        )
    return kernel
