"""Markov kernels ``T_{w|v}``: the abstract interface (paper, section 3.1).

Shapes throughout: ``given`` is ``(..., *source.shape)`` and what comes back is ``(..., *target.shape)``,
with the same leading batch dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from halikit import recompute
from halikit.modes import evaluating
from halikit.random import drawing_from
from halikit.spaces import Space

__all__ = ["DensityKernel", "Kernel", "NoDensityError", "apply_network", "batch_shape", "per_element"]


class NoDensityError(TypeError):
    """A density was asked of a kernel that has none in closed form."""


class Kernel(nn.Module, ABC):
    """A Markov kernel ``T_{target|source}``: a probability measure over ``target`` for each ``given``.

    Subclasses implement :meth:`sample`, and :meth:`mean` where they know it. Kernels compose with ``@``
    as functions do: ``(b @ a)`` applies ``a`` first (Eq. 1).

    Args:
        source: The space conditioned on.
        target: The space measured.

    Attributes:
        recomputes: Whether what its network keeps for the backward pass is computed again there, to save memory; of
            kernels that run it by :func:`apply_network`.
    """

    recomputes = False
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
        """``T†``, the kernel back from ``target`` to ``source`` (Eq. 2), as a :class:`~halikit.Link` pairs them.

        Raises:
            RuntimeError: If the kernel is in no link.
        """
        if not self._adjoint:
            raise RuntimeError(f"{self} has no adjoint yet: pair it with the kernel back, as Link(up, down)")
        return self._adjoint[0]

    @property
    def factors(self) -> tuple[Kernel, ...]:
        """The kernels that this one is composed of, in order of application."""
        return (self,)

    def __matmul__(self, inner: Kernel) -> Kernel:
        """``self ∘ inner``: apply ``inner``, then ``self``, marginalising over the space between (Eq. 1)."""
        if not isinstance(inner, Kernel):
            return NotImplemented
        from halikit.kernels.composition import Composite

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


def at_least_single(x: Tensor) -> Tensor:
    """In single precision at least: means over many elements have no place in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_element(loss: Tensor) -> Tensor:
    """The mean over the elements of each sample, ``(n, ...)`` to ``(n,)``."""
    return loss.reshape(len(loss), -1).mean(1)


def batch_shape(kernel: Kernel, given: Tensor) -> torch.Size:
    """The leading dimensions of ``given``, ``(..., *source.shape)``.

    Raises:
        ValueError: If ``given`` is no batch of states of the source.
    """
    batch = given.shape[: max(0, given.dim() - kernel.source.rank)]
    if given.shape[len(batch) :] != kernel.source.shape:
        raise ValueError(f"{kernel} takes (..., {', '.join(map(str, kernel.source.shape))}), got {tuple(given.shape)}")
    return batch


def apply_network(kernel: Kernel, network: nn.Module, given: Tensor, outputs: int) -> Tensor:
    """Run ``network`` on ``given`` with one batch dimension, and shape what comes out.

    Args:
        kernel: Whose spaces apply.
        network: Maps ``(n, *source.shape)`` to ``n × outputs × target.size`` elements in any shape. Feature
            maps ``(n, outputs · C, H, W)`` thus split along the channels, vectors along their only axis.
        given: ``(..., *source.shape)``.
        outputs: How many tensors of the target's shape the network gives.

    Returns:
        ``(outputs, ..., *target.shape)`` for several outputs, without the first axis for one.

    Raises:
        ValueError: If ``given`` or what the network returns does not fit the spaces.
    """
    source, target = kernel.source, kernel.target
    batch = batch_shape(kernel, given)
    # A product, not numel(), which would bind an exported program to one size of batch.
    rows = math.prod(batch)
    flat = given if len(batch) == 1 else given.reshape(-1, *source.shape)
    out: Tensor = recompute.run(network, flat, again=kernel.recomputes)
    if out.numel() != rows * outputs * target.size:
        raise ValueError(
            f"the network of {kernel} gives {tuple(out.shape)} for a batch of {rows}; "
            f"{target} needs {outputs} × {target.size} elements per sample"
        )
    if outputs == 1:
        return out.reshape((*batch, *target.shape))
    return out.reshape(rows, outputs, *target.shape).transpose(0, 1).reshape(outputs, *batch, *target.shape)
