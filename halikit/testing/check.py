"""The check of a kernel against the contract and the laws of section 3.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from halikit.kernels import Kernel
from halikit.testing import behaviour
from halikit.testing.case import Case, prepared
from halikit.testing.densities import densities
from halikit.utils.random import seeded

__all__ = ["check_kernel"]


_CHECKS: list[Callable[[Case], Iterator[str]]] = [
    behaviour.shapes,
    behaviour.dtypes,
    behaviour.generators,
    behaviour.means,
    behaviour.rows,
    behaviour.contexts,
    behaviour.gradients,
    behaviour.sleep,
    densities,
    behaviour.algebra,
]


def check_kernel(kernel: Kernel, *, given: Tensor | None = None, context: Tensor | None = None, seed: int = 0) -> None:
    """Check a kernel against all that halikit expects of one. It is checked in evaluation mode, on a copy.

    The checks: shapes and dtypes of draws and means for any batch dimensions, in single and in double precision; seeds
    and generators; a mean that is the same at each call, and that the draws have if the kernel claims to know it; rows
    of a batch that do not depend on each other; gradients to what is given and to each trained parameter; densities
    that are finite and agree with the draws; the loss of the sleep phase; composition and adjoint.

    Agreement of density and draws is tested by two means of 1. The mean of ``r(w)/q(w)`` over draws ``w``, where ``q``
    is the density and ``r`` a histogram of other draws, finds a wrong normalisation or a wrong shape. The mean of
    ``q(w|v')/q(w|v)`` over draws given ``v`` finds a wrong dependence on ``v``. Discrete states are counted instead.
    All means are estimates; the seed is fixed.

    Args:
        kernel: The kernel; it is not changed.
        given: States of the source to check it on, ``(n, *source.shape)`` with ``n ≥ 2``; by default draws that fit
            the support of the source.
        context: One context for each row of ``given``, for a kernel that takes one.
        seed: Seed of all draws.

    Raises:
        AssertionError: With one line for each law that the kernel breaks: what is wrong, and what would be right.
        ValueError: If ``given`` or ``context`` is needed and missing, or has too few rows.
    """
    with seeded(seed):
        case = prepared(kernel, given, context)
        faults = list(_run(behaviour.draws, case))
        if not faults:
            faults = [fault for check in _CHECKS for fault in _run(check, case)]
    if faults:
        lines = "".join(f"\n- {fault}" for fault in dict.fromkeys(faults))
        raise AssertionError(f"{kernel} ({type(kernel).__name__}) is not what a kernel has to be:{lines}")


def _run(check: Callable[[Case], Iterator[str]], case: Case) -> Iterator[str]:
    """The faults that a check finds; an error that the kernel raises is one too."""
    try:
        yield from check(case)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield f"{(check.__doc__ or '').rstrip('.')}: {reason}"
