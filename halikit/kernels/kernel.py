"""Markov kernels ``T_{w|v}`` (paper, section 3.1): the abstract interface, composition (Eq. 1), adjoints (Eq. 2).

In all functions ``given`` has the shape ``(..., *source.shape)`` and the result ``(..., *target.shape)``, with the same
batch dimensions. A subclass is written for one batch dimension, ``(n, *source.shape)``: the base class flattens the
batch dimensions before it calls the subclass and restores them afterwards (:mod:`halikit.kernels.contract`).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import matmul
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from halikit.kernels.contract import GUARDS, guarded_draw, guarded_loss
from halikit.kernels.paths import (
    LogProbEstimate,
    NoDensityError,
    effective_sample_size,
    log_density,
    repeated,
    weigh,
)
from halikit.spaces import Space
from halikit.utils.random import seeded
from halikit.utils.tensors import at_least_single, per_element

__all__ = ["Composite", "Kernel", "Representative", "compose", "network_takes_context"]


Representative = Literal["mean", "mode", "median", "probabilities", "draw at fixed noise"]


class Kernel(nn.Module, ABC):
    """A Markov kernel ``T_{target|source}``: a probability measure over ``target`` for each ``given``.

    Subclasses implement :meth:`sample`, and :meth:`mean` if the mean is known, for ``given`` of shape
    ``(n, *source.shape)``. All methods then take any batch dimensions, and refuse states of a wrong shape or dtype.
    Kernels compose with ``@`` as functions do: ``(b @ a)`` applies ``a`` first (Eq. 1).

    A kernel that depends on a context, such as the class of each datum, sets ``takes_context = True``. It finds the
    context, one row for each row of ``given``, in :attr:`context`, or as the argument ``context`` of its methods if
    they have one. Callers pass it as ``context=`` to any method, or bind it by :meth:`conditioned`.

    Args:
        source: Space that the measure is conditioned on.
        target: Space of the measure.

    Attributes:
        takes_context: Whether the kernel depends on a context.
        integer_draws: Whether draws are int64, as indices of classes are; otherwise they have the dtype of ``given``.
        gauge: What fixes location and scale of the draws; ``None`` for nothing. See :func:`halikit.gauged`.
        context: The context that the kernel is bound to, ``(n, …)``; ``None`` for none.
    """

    takes_context: bool = False
    integer_draws: bool = False
    gauge: str | None = None
    context: Tensor | None = None
    # The kernel that a Link pairs with this one. The tuple prevents torch from registering it as a submodule, which
    # would count its parameters twice.
    _adjoint: tuple[Kernel, ...] = ()
    # For a composition without a link: the composition of the adjoints of its factors, made at the first access.
    _mirror: tuple[Kernel, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Guard the methods that the subclass defines; see :mod:`halikit.kernels.contract`."""
        super().__init_subclass__(**options)
        for name, guard in GUARDS.items():
            if name in vars(cls):
                setattr(cls, name, guard(vars(cls)[name]))

    def __init__(self, source: Space, target: Space) -> None:
        super().__init__()
        self.source = source
        self.target = target

    @abstractmethod
    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one sample for each ``given``, reparametrised if the kernel allows it.

        Args:
            given: ``(..., *source.shape)``.
            generator: Random generator; torch's global one by default.

        Returns:
            ``(..., *target.shape)``.
        """

    @guarded_draw
    def mean(self, given: Tensor) -> Tensor:
        """The conditional mean, ``(..., *target.shape)``.

        If the mean is not known, the result is the draw at fixed noise: a sample under a seed that never changes. It is
        the same at every call with the same ``given``, as the deterministic passes through a hierarchy need.
        :attr:`representative` says which it is.
        """
        with seeded(0, given.device):
            return self.sample(given)

    @property
    def representative(self) -> Representative:
        """What :meth:`mean` returns: the mean, or what stands for it where the mean is not known."""
        return "draw at fixed noise" if type(self).mean is Kernel.mean else "mean"

    @property
    def knows_mean(self) -> bool:
        """Whether :meth:`mean` returns the conditional mean."""
        return self.representative == "mean"

    def conditioned(self, context: Tensor | None) -> Self:
        """The kernel given a context: the same parameters, and ``context`` read by every method.

        Args:
            context: ``(n, …)`` for batches of ``n`` states, or ``(1, …)`` for batches of any size. A kernel that takes
                no context does not read it.

        Returns:
            A view that is in no link yet; the kernel itself if ``context`` is ``None``.
        """
        if context is None:
            return self
        bound = copy.copy(self)
        bound._adjoint, bound._mirror, bound.context = (), (), context
        return bound

    def dtype_for(self, given: Tensor) -> torch.dtype:
        """The dtype of states of the target: that of ``given`` if these are floats, otherwise of the parameters."""
        like = given if given.is_floating_point() else next(self.parameters(), None)
        return torch.get_default_dtype() if like is None else like.dtype

    @property
    def has_sleep_loss(self) -> bool:
        """Whether :meth:`sleep_loss` is defined: the kernel has a density, a mean, or its own implementation."""
        return type(self).sleep_loss is not Kernel.sleep_loss or self.knows_mean

    @guarded_loss
    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        """The loss of the kernel in the sleep phase: its error when it predicts ``target`` from ``given``, ``(n,)``.

        It is a training objective and not a density: it is defined in training mode with a gauge too. It is a mean over
        the elements of the target. By default it is the squared error of the kernel's mean.

        Args:
            target: Samples of the decoder, ``(n, *target.shape)``.
            given: ``(n, *source.shape)``.

        Raises:
            NoDensityError: If the kernel has neither a density nor a mean.
        """
        if not self.knows_mean:
            raise NoDensityError(f"{self} is a {type(self).__name__} with neither a density nor a mean to learn by")
        return per_element((at_least_single(target) - at_least_single(self.mean(given))).square())

    def forward(self, given: Tensor) -> Any:
        """The distribution over ``target``, for a :class:`DensityKernel`.

        Raises:
            NoDensityError: For all other kernels.
        """
        raise NoDensityError(
            f"{self} is a {type(self).__name__} and has no density in closed form: it can only be sampled"
        )

    def log_prob(self, value: Tensor, given: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Exact log-density of ``value`` under ``T_{target|source = given}``, ``(...)``, in nats.

        Raises:
            NoDensityError: If the kernel has no density.
        """
        return self.conditioned(context)(given).log_prob(value)

    @property
    def adjoint(self) -> Kernel:
        """``T†``, the kernel from ``target`` back to ``source`` (Eq. 2).

        A :class:`~halikit.Link` pairs a kernel with its adjoint. The adjoint of a composition without a link is the
        composition of the adjoints of its factors, in the opposite order.

        Raises:
            RuntimeError: If the kernel, or one of its factors, belongs to no link.
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
        """The kernels of a composition, in order of application; for any other kernel the kernel itself."""
        return (self,)

    def batch_shape(self, given: Tensor) -> torch.Size:
        """The batch dimensions of ``given``, which has the shape ``(..., *source.shape)``.

        Raises:
            ValueError: If ``given`` is not a batch of states of the source.
        """
        batch = given.shape[: max(0, given.dim() - self.source.rank)]
        if given.shape[len(batch) :] != self.source.shape:
            expected = ", ".join(map(str, self.source.shape))
            raise ValueError(f"{self} takes (..., {expected}), got {tuple(given.shape)}")
        return batch

    def run_network(self, network: nn.Module, given: Tensor, outputs: int = 1) -> Tensor:
        """Run ``network`` on ``given``, and reshape the result to the target.

        Args:
            network: Module from ``(n, *source.shape)`` to ``n × outputs × target.size`` elements in any shape. Feature
                maps ``(n, outputs · C, H, W)`` are split along the channels, vectors along their only axis. If it has
                an attribute ``takes_context``, it is called with the context as its second argument.
            given: ``(n, *source.shape)``.
            outputs: Number of tensors of the target's shape that the network returns for each sample.

        Returns:
            ``(outputs, n, *target.shape)`` for several outputs, ``(n, *target.shape)`` for one.

        Raises:
            ValueError: If the output of the network does not fit the target.
        """
        target, rows = self.target, given.shape[0]
        # Latents stay in single precision where autocast computes the network in half precision.
        out = self.call_network(network, given).to(self.dtype_for(given))
        if out.numel() != rows * outputs * target.size:
            raise ValueError(
                f"the network of {self} gives {tuple(out.shape)} for a batch of {rows}; "
                f"{target} needs {outputs} × {target.size} elements per sample"
            )
        if outputs == 1:
            return out.reshape((rows, *target.shape))
        return out.reshape((rows, outputs, *target.shape)).transpose(0, 1)

    def call_network(self, network: nn.Module, given: Tensor) -> Tensor:
        """The output of ``network`` for ``(n, *source.shape)`` and, if it takes one, the context.

        Raises:
            ValueError: If the output is not a tensor.
        """
        out = network(given, self.context) if network_takes_context(network) else network(given)
        if not isinstance(out, Tensor):
            raise ValueError(f"the network of {self} gives a tensor, got {type(out).__name__}")
        return out

    def __matmul__(self, inner: Kernel) -> Kernel:
        """``self ∘ inner``: apply ``inner``, then ``self``, and marginalise over the state between them (Eq. 1)."""
        if not isinstance(inner, Kernel):
            return NotImplemented
        return Composite(inner, self)

    def __str__(self) -> str:
        return f"T_{{{self.target.name}|{self.source.name}}}"

    def extra_repr(self) -> str:
        """The formula and both spaces, for torch's print-out of the module."""
        return f"{self}: {self.source} → {self.target}"


def network_takes_context(network: nn.Module) -> bool:
    """Whether a network takes a context as its second argument: it says so by an attribute ``takes_context``."""
    return bool(getattr(network, "takes_context", False))


class Composite(Kernel):
    """``T_{w|v} ∘ T_{v|u}``: kernels applied one after another, with the states between marginalised out (Eq. 1).

    The density is an expectation over these states and has no closed form; :meth:`estimate_log_prob` bounds it from
    below. A composite is a sequence of its factors. A factor that is a composite is replaced by its own factors.

    Args:
        factors: Two kernels or more, in order of application.

    Raises:
        ValueError: If there are fewer than two, or the target of one is not the source of the next.
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
        """The factors, in order of application."""
        return tuple(self)

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._factors)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._factors)

    def __getitem__(self, index: int | slice) -> Kernel:
        """The factor at ``index``, or the composition of a slice of the factors."""
        if isinstance(index, slice):
            return compose(*reversed(self.factors[index]))
        return self.factors[index]

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Sample from one factor after the other, ``(..., *target.shape)``."""
        state = given
        for factor in self:
            state = factor.sample(state, generator=generator)
        return state

    def mean(self, given: Tensor) -> Tensor:
        """Apply the means of the factors one after the other, ``(..., *target.shape)``.

        This is the conditional mean if the means of all factors but the first are affine.
        """
        state = given
        for factor in self:
            state = factor.mean(state)
        return state

    @property
    def representative(self) -> Representative:
        """``"mean"`` if every factor knows its mean; otherwise what stands for it in the first factor that does not."""
        found = (factor.representative for factor in self)
        return next((representative for representative in found if representative != "mean"), "mean")

    @property
    def takes_context(self) -> bool:  # type: ignore[override]
        """Whether a factor depends on a context."""
        return any(factor.takes_context for factor in self)

    @property
    def integer_draws(self) -> bool:  # type: ignore[override]
        """Whether the last factor draws integers."""
        return self[-1].integer_draws

    def conditioned(self, context: Tensor | None) -> Self:
        """The composite of the factors given a context."""
        if context is None:
            return self
        bound = type(self)(*(factor.conditioned(context) for factor in self))
        bound.context = context
        return bound

    def estimate_log_prob(
        self,
        value: Tensor,
        given: Tensor,
        *,
        num_samples: int = 64,
        proposal: Kernel | None = None,
        mixed: bool = False,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> LogProbEstimate:
        r"""Bound :math:`\log T_{w|u}(w)` from below, by importance sampling of the intermediate states.

        See :meth:`log_weights` for the arguments and the errors.

        Returns:
            The bound, its effective sample size and the number of samples.
        """
        log_weights = self.log_weights(
            value,
            given,
            num_samples=num_samples,
            proposal=proposal,
            mixed=mixed,
            generator=generator,
            context=context,
        )
        log_sum = log_weights.logsumexp(0)
        ess = effective_sample_size(log_sum, (2 * log_weights).logsumexp(0))
        return LogProbEstimate(log_sum - math.log(num_samples), ess, num_samples)

    def log_weights(
        self,
        value: Tensor,
        given: Tensor,
        *,
        num_samples: int,
        proposal: Kernel | None = None,
        mixed: bool = False,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Logarithms of importance weights; the mean of the weights is an unbiased estimate of the density.

        A path is one draw of all intermediate states. Without a proposal, the factors themselves draw paths from
        ``given``, and a weight is the density of ``value`` under the last factor. A proposal draws paths from ``value``
        instead; the natural proposal is the adjoint, which samples ``z1 ~ q(z1|x)`` to estimate ``p(x|z2)``. A weight
        is then the density of path and value, divided by the density with which the path was drawn.

        With ``mixed``, the proposal draws half of the paths and the factors draw the others. Whole paths of both halves
        are weighted by the density of the mixture (the balance heuristic; Veach and Guibas 1995). No weight is then
        larger than twice the density under the last factor, however poor the proposal is.

        Args:
            value: ``(..., *target.shape)``.
            given: ``(..., *source.shape)``, with the same batch dimensions.
            num_samples: Number of paths for each value, at least 1. If it is odd, the proposal draws the smaller half.
            proposal: A kernel from ``target`` whose factors go through the intermediate spaces in reverse order. A
                last factor that goes to ``source`` is not used.
            mixed: Whether the factors draw half of the paths beside the proposal.
            generator: Random generator; torch's global one by default.
            context: The context, if kernels take one.

        Returns:
            ``(num_samples, ...)``, in nats, in at least single precision.

        Raises:
            NoDensityError: If a kernel has no density where one is needed.
            ValueError: If ``num_samples`` is not positive, there is no proposal to mix, or the proposal goes through
                other spaces.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if mixed and proposal is None:
            raise ValueError("a mixture needs a proposal beside the factors themselves")
        factors = self.conditioned(context)
        if proposal is None:
            values, givens = repeated(value, num_samples), repeated(given, num_samples)
            return log_density(factors[-1], values, factors[:-1].sample(givens, generator=generator))
        back = self._way_back(proposal.conditioned(context))
        own = num_samples - num_samples // 2 if mixed else 0
        return weigh(factors.factors, back, value, given, num_samples - own, own, generator)

    def _way_back(self, proposal: Kernel) -> tuple[Kernel, ...]:
        """The factors of the proposal that draw the intermediate states from a value."""
        back = proposal.factors[: len(self) - 1]
        expected = [factor.source for factor in reversed(self.factors[1:])]
        if proposal.source != self.target or [kernel.target for kernel in back] != expected:
            raise ValueError(
                f"the proposal {proposal} does not lead from {self.target} back through {', '.join(map(str, expected))}"
            )
        return back

    def __str__(self) -> str:
        return " ∘ ".join(str(factor) for factor in reversed(self.factors))


def compose(*kernels: Kernel) -> Kernel:
    """``kernels[0] ∘ kernels[1] ∘ …``: the last kernel is applied first. A single kernel is returned as it is.

    Raises:
        ValueError: If there is no kernel, or the spaces of two adjacent kernels do not fit.
    """
    if not kernels:
        raise ValueError("nothing to compose")
    return reduce(matmul, kernels)


def _check_fit(outer: Kernel, inner: Kernel) -> None:
    if inner.target != outer.source:
        raise ValueError(
            f"cannot compose {outer} ∘ {inner}: {inner} leads to {inner.target}, but {outer} starts from {outer.source}"
        )
