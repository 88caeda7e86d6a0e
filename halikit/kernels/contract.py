"""The contract of a kernel: one batch dimension in, states of the target out, checked at every call.

:class:`~halikit.Kernel` applies these functions to the methods of every subclass. So a subclass is written for
``given`` of shape ``(n, *source.shape)`` alone, and a wrong result is refused where it comes from.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from halikit.kernels.rebatched import Rebatched
from halikit.spaces import Space

__all__ = ["GUARDS", "guarded_draw", "guarded_loss"]

# What torch says of a network that cannot read its input.
_UNREADABLE = re.compile(
    r"same dtype|scalar type|should be the same|shapes cannot be multiplied|must match the size|expected input|"
    r"invalid for input of size|Expected \dD|should contain \d+ elements"
)

# What Python and torch say where a network's tuple is used as a tensor.
_TUPLE = re.compile(r"'tuple' object|not tuple|concatenate tuple|'tuple'|instances of Number, torch\.Tensor")


class Kernel(Protocol):
    """What the guards read of a kernel; see :class:`halikit.Kernel`."""

    source: Space
    target: Space
    takes_context: bool
    integer_draws: bool
    context: Tensor | None

    def batch_shape(self, given: Tensor) -> torch.Size:
        """The batch dimensions of ``given``."""

    def conditioned(self, context: Tensor | None) -> Self:
        """The kernel given a context."""

    def dtype_for(self, given: Tensor) -> torch.dtype:
        """The dtype of states of the target."""


def _flattened(kernel: Kernel, given: Tensor) -> tuple[Kernel, Tensor, torch.Size]:
    """The states that are given in one batch dimension, the kernel with its context to match, and the batch shape.

    Raises:
        ValueError: If ``given`` is not a batch of states of the source, or the context does not fit its rows.
    """
    batch = kernel.batch_shape(given)
    if kernel.takes_context:
        kernel = kernel.conditioned(_rows(kernel, batch))
    # With numel(), an exported program would accept one batch size only.
    return kernel, given if len(batch) == 1 else given.reshape(math.prod(batch), *kernel.source.shape), batch


def _rows(kernel: Kernel, batch: torch.Size) -> Tensor:
    """The context with one row for each state."""
    context = kernel.context
    if context is None:
        raise ValueError(f"{kernel} takes a context, and none was given: pass context=, a tensor (n, …) or (1, …)")
    if not isinstance(context, Tensor) or not context.dim():
        got = "()" if isinstance(context, Tensor) else type(context).__name__
        raise ValueError(f"{kernel}: a context is a tensor (n, …) or (1, …), got {got}")
    # With len(), an exported program would accept one batch size only.
    if len(batch) == 1 and context.shape[0] == batch[0]:
        return context
    rows = batch[-1] if batch else 1
    if len(context) not in (1, rows):
        raise ValueError(f"{kernel}: a context has as many rows as states are given, {rows}; got {len(context)}")
    if not batch:
        return context
    return context.expand(*batch, *context.shape[1:]).reshape(math.prod(batch), *context.shape[1:])


def guarded_draw(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Guard a method that gives states of the target: draws or means, ``(..., *target.shape)``.

    Raises:
        ValueError: When the method is called, if states, context or ``given`` have a wrong shape or dtype.
    """
    takes_context = _takes_context(method)

    @wraps(method)
    def guarded(self: Kernel, given: Tensor, *args: Any, context: Tensor | None = None, **options: Any) -> Tensor:
        kernel, rows, batch = _flattened(self if context is None else self.conditioned(context), given)
        if not rows.shape[0]:
            return given.new_empty(batch + kernel.target.shape, dtype=_dtype_of_draws(kernel, given))
        if takes_context:
            options["context"] = kernel.context
        with _explained(kernel, rows):
            states = method(kernel, rows, *args, **options)
        states = _checked_states(kernel, states, rows)
        return states if len(batch) == 1 else states.reshape(batch + kernel.target.shape)

    return guarded


def _guarded_distribution(method: Callable[..., Any]) -> Callable[..., Any]:
    """Guard the method that gives the distribution over the target.

    Raises:
        ValueError: When the method is called, if the event or batch shape is wrong, or the result is not a Pyro
            distribution.
    """
    takes_context = _takes_context(method)

    @wraps(method)
    def guarded(self: Kernel, given: Tensor, *, context: Tensor | None = None) -> Any:
        kernel, rows, batch = _flattened(self if context is None else self.conditioned(context), given)
        if not rows.shape[0]:
            # Networks and torch's densities often fail on an empty batch, so neither is called.
            like = given.new_zeros((0, *kernel.target.shape), dtype=kernel.dtype_for(given))
            return Rebatched(dist.Normal(like, 1.0).to_event(kernel.target.rank), batch)
        options = {"context": kernel.context} if takes_context else {}
        with _explained(kernel, rows):
            distribution = method(kernel, rows, **options)
        distribution = _checked_distribution(kernel, distribution, rows.shape[0])
        return distribution if len(batch) == 1 else Rebatched(distribution, batch)

    return guarded


def guarded_loss(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Guard a method that gives one loss for each state, ``(n,)``.

    Raises:
        ValueError: When the method is called, if losses, context or ``given`` have a wrong shape.
    """
    takes_context = _takes_context(method)

    @wraps(method)
    def guarded(self: Kernel, target: Tensor, given: Tensor, *, context: Tensor | None = None) -> Tensor:
        kernel, rows, _ = _flattened(self if context is None else self.conditioned(context), given)
        if not rows.shape[0]:
            return target.new_zeros(0)
        with _explained(kernel, rows):
            loss = method(kernel, target, rows, **({"context": kernel.context} if takes_context else {}))
        if loss.shape != rows.shape[:1]:
            raise ValueError(f"{kernel}: sleep_loss gives ({len(rows)},), one number a sample; got {tuple(loss.shape)}")
        return loss

    return guarded


# What guards each method that a subclass may define.
GUARDS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "sample": guarded_draw,
    "mean": guarded_draw,
    "forward": _guarded_distribution,
    "sleep_loss": guarded_loss,
}


def _takes_context(method: Callable[..., Any]) -> bool:
    return "context" in inspect.signature(method).parameters


class _explained:
    """Within the context, a network that cannot read its input or gives a tuple is an error that names the kernel."""

    def __init__(self, kernel: Kernel, given: Tensor) -> None:
        self._kernel, self._given = kernel, given

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        reason = str(error).strip().partition("\n")[0]
        if kind is RuntimeError and _UNREADABLE.search(str(error)):
            states = f"{tuple(self._given.shape)} of {self._given.dtype}"
            raise ValueError(f"a network of {self._kernel} cannot read states {states}: {reason}") from error
        is_explained = reason.startswith("a network of")
        if kind in (TypeError, ValueError, AttributeError) and _TUPLE.search(reason) and not is_explained:
            raise ValueError(f"a network of {self._kernel} gives a tuple where a tensor is needed: {reason}") from error


def _checked_states(kernel: Kernel, states: Any, given: Tensor) -> Tensor:
    expected = (given.shape[0], *kernel.target.shape)
    if not isinstance(states, Tensor):
        raise ValueError(f"{kernel}: a draw is a tensor {expected}, got {type(states).__name__}")
    if states.shape != expected:
        raise ValueError(f"{kernel}: a draw has the shape {expected}, got {tuple(states.shape)}")
    dtype = _dtype_of_draws(kernel, given)
    if states.dtype == dtype or (kernel.integer_draws and states.is_floating_point()):
        return states
    if states.is_floating_point() and torch.is_autocast_enabled(given.device.type):
        # Latents stay in single precision: rounded to half precision, they would lose what densities need.
        return states.to(dtype)
    raise ValueError(f"{kernel}: a draw is of {dtype}, got {states.dtype}")


def _dtype_of_draws(kernel: Kernel, given: Tensor) -> torch.dtype:
    return torch.int64 if kernel.integer_draws else kernel.dtype_for(given)


def _checked_distribution(kernel: Kernel, distribution: Any, n: int) -> Any:
    expected = kernel.target.shape
    if not isinstance(distribution, TorchDistributionMixin):
        got = type(distribution)
        module = "torch.distributions." if isinstance(distribution, torch.distributions.Distribution) else ""
        raise ValueError(f"{kernel}: forward gives a distribution of pyro.distributions, got {module}{got.__name__}")
    batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    if event != expected:
        hint = f"; add .to_event({len(expected)})" if (batch + event)[-len(expected) :] == expected and expected else ""
        raise ValueError(f"{kernel}: the event shape of its distribution is {expected}, got {event} in {batch}{hint}")
    if batch in ((), (1,)):
        return distribution.expand((n,))
    if batch != (n,):
        raise ValueError(f"{kernel}: the batch shape of its distribution is ({n},), got {batch}")
    return distribution
