"""What the test of a user's kernel calls: :func:`check_kernel`.

Example:
    >>> import halikit as hk
    >>> from torch import nn
    >>> v, w = hk.Space("v", (3,)), hk.Space("w", (2,))
    >>> hk.testing.check_kernel(hk.GaussianKernel(v, w, nn.Linear(3, 4)))
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from halikit.hierarchy import Link
from halikit.kernels import DensityKernel, DeterministicKernel, Kernel
from halikit.spaces import Space
from halikit.utils.random import seeded

__all__ = ["check_kernel"]

# A statistical check fails at this many standard errors. The seed is fixed, so a kernel always passes or always fails.
_ERRORS = 5.0
# Deviations that no statistical check reports, however small its standard error.
_TOLERANCE = 0.02
_DRAWS = 4000
_BATCHES = [(5,), (), (1,), (0,), (2, 3)]
# Rows of what is given if the caller gives none.
_ROWS = 16


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
        case = _prepared(kernel, given, context)
        faults = list(_run(_draws, case))
        if not faults:
            faults = [fault for check in _CHECKS for fault in _run(check, case)]
    if faults:
        lines = "".join(f"\n- {fault}" for fault in dict.fromkeys(faults))
        raise AssertionError(f"{kernel} ({type(kernel).__name__}) is not what a kernel has to be:{lines}")


@dataclass(frozen=True)
class _Case:
    """A kernel under test.

    Attributes:
        kernel: A copy in evaluation mode, bound to one row of the context if it takes one.
        given: ``(n, *source.shape)``.
        context: ``(n, …)``, or ``None``.
    """

    kernel: Kernel
    given: Tensor
    context: Tensor | None

    def rows(self, *batch: int) -> Tensor:
        """What is given with other batch dimensions."""
        rows = math.prod(batch)
        repeated = self.given.repeat(rows // len(self.given) + 1, *[1] * self.kernel.source.rank)
        return repeated[:rows].reshape((*batch, *self.kernel.source.shape))

    def same(self, n: int, row: int = 0) -> Tensor:
        """One row of what is given, ``n`` times."""
        return self.given[row].expand(n, *self.kernel.source.shape)

    @property
    def has_density(self) -> bool:
        """Whether the kernel has a density."""
        return isinstance(self.kernel, DensityKernel)

    def copy(self) -> Kernel:
        """Another copy of the kernel, whose parameters and gradients may be changed."""
        return copy.deepcopy(self.kernel)


def _prepared(kernel: Kernel, given: Tensor | None, context: Tensor | None) -> _Case:
    checked = copy.deepcopy(kernel).eval()
    if kernel.takes_context and kernel.context is None:
        if context is None:
            raise ValueError(f"{kernel} takes a context: give check_kernel context=, one row for each row of given=")
        checked = checked.conditioned(context[:1])
    like = next(kernel.parameters(), torch.empty(0))
    if given is None:
        given = _states(kernel.source, _ROWS if context is None else len(context), like)
    if len(given) < 2 or (context is not None and len(context) != len(given)):
        raise ValueError("check_kernel needs two rows of given= or more, and as many rows of context=")
    return _Case(checked, given.detach(), context)


def _states(space: Space, n: int, like: Tensor) -> Tensor:
    """Draws that fit the support of a space, ``(n, *shape)``."""
    if space.support == "index":
        raise ValueError(f"the states of {space} are indices: give check_kernel given=, a tensor of some of them")
    normal = torch.randn(n, *space.shape, dtype=like.dtype, device=like.device)
    if space.support == "unit":
        return normal.sigmoid()
    if space.support == "bits":
        return (normal > 0).to(normal)
    if space.support == "simplex":
        return normal.softmax(-1)
    if space.support == "one_hot":
        return torch.nn.functional.one_hot(normal.argmax(-1), space.shape[-1]).to(normal)
    return normal


def _run(check: Callable[[_Case], Iterator[str]], case: _Case) -> Iterator[str]:
    """The faults that a check finds; an error that the kernel raises is one too."""
    try:
        yield from check(case)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield f"{(check.__doc__ or '').rstrip('.')}: {reason}"


# --- shapes, dtypes, randomness ---------------------------------------------------------------------------------------


def _draws(case: _Case) -> Iterator[str]:
    """A draw for a plain batch."""
    case.kernel.sample(case.rows(5))
    case.kernel.mean(case.rows(5))
    yield from ()


def _shapes(case: _Case) -> Iterator[str]:
    """Draws and means for any batch dimensions."""
    kernel = case.kernel
    for batch in _BATCHES:
        for name in ("sample", "mean"):
            try:
                states = getattr(kernel, name)(case.rows(*batch))
            except Exception as error:
                yield f"{name}() for batch dimensions {batch} fails: {str(error).strip().splitlines()[0]}"
                continue
            if states.shape != (*batch, *kernel.target.shape):
                yield f"{name}() for batch dimensions {batch} has the shape {tuple(states.shape)}"
    kernel.train()
    try:
        kernel.sample(case.rows(8))
    finally:
        kernel.eval()


def _dtypes(case: _Case) -> Iterator[str]:
    """Draws and densities in single and in double precision."""
    for dtype in (torch.float32, torch.float64):
        kernel = case.copy().to(dtype)
        given = case.rows(5).to(dtype) if case.given.is_floating_point() else case.rows(5)
        draw = kernel.sample(given)
        if not kernel.integer_draws and draw.dtype != kernel.dtype_for(given):
            yield f"a model in {dtype} draws {draw.dtype}: make new tensors in the dtype of what is given"
        if case.has_density and (found := kernel.log_prob(draw, given).dtype) != dtype:
            yield f"a model in {dtype} has log-densities in {found}: make new tensors in the dtype of what is given"


def _generators(case: _Case) -> Iterator[str]:
    """Seeds and generators."""
    kernel, given = case.kernel, case.rows(8)

    def draw(seed: int, generator: torch.Generator | None = None) -> Tensor:
        with seeded(seed, given.device):
            return kernel.sample(given, generator=generator)

    def fresh() -> torch.Generator:
        return torch.Generator(given.device).manual_seed(1)

    if not torch.equal(draw(1), draw(1)):
        yield "two draws under the same seed differ: draw all noise from torch's generators"
    elif not torch.equal(draw(1, fresh()), draw(2, fresh())):
        yield (
            "sample() ignores its generator: pass generator= to all that draws, or draw from a distribution within "
            "halikit.utils.random.drawing_from(generator, given.device)"
        )
    else:
        before = torch.get_rng_state()
        kernel.sample(given, generator=fresh())
        if not torch.equal(before, torch.get_rng_state()):
            yield "sample() moves torch's global generator although it was given another one"


# --- means and rows ---------------------------------------------------------------------------------------------------


def _means(case: _Case) -> Iterator[str]:
    """The mean, or what stands for it."""
    kernel, given = case.kernel, case.rows(8)
    if not torch.equal(kernel.mean(given), kernel.mean(given)):
        yield (
            "mean() is random: two calls with the same states differ. Give the mean, the mode, the median or the draw "
            "at fixed noise, or define no mean(), which then is the draw at fixed noise"
        )
        return
    if not kernel.knows_mean or kernel.integer_draws:
        return
    with torch.no_grad():
        draws, mean = kernel.sample(case.same(_DRAWS)).double(), kernel.mean(case.same(1)).double()[0]
    error = (draws.mean(0) - mean).abs()
    # Rounding of the draws is not an error of the mean.
    allowed = _ERRORS * draws.std(0) / math.sqrt(_DRAWS) + 1e-4 * (1 + mean.abs())
    if (error > allowed).any():
        worst = int((error / allowed).argmax())
        yield (
            f"mean() is not the mean of the draws: element {worst} is {float(mean.flatten()[worst]):.4g}, and "
            f"{_DRAWS} draws average to {float(draws.mean(0).flatten()[worst]):.4g}. Correct mean(), or let "
            "representative say what it is"
        )


def _rows(case: _Case) -> Iterator[str]:
    """Rows of a batch that do not depend on each other."""
    kernel, n, repeats = case.kernel, 64, 16
    own, other = case.same(n), case.same(n, 1)
    with torch.no_grad():
        alone, together = (kernel.mean(torch.cat([own[:1], others]))[0] for others in (own, other))
        if not torch.allclose(alone.double(), together.double(), rtol=1e-3, atol=1e-4):
            yield "mean() of a row depends on the other rows of the batch: in evaluation mode each row is on its own"
        # Means over the rows of one call, (repeats, elements): they vary more than independent rows do if noise is
        # shared, and are shifted if other rows matter.
        calls = torch.stack([kernel.sample(torch.cat([own, own])).double() for _ in range(repeats)])
        mixed = torch.stack([kernel.sample(torch.cat([own, other])).double()[:n] for _ in range(repeats)])
    draws, mixed = calls.reshape(repeats, 2 * n, -1), mixed.reshape(repeats, n, -1)
    # Squashed by ranges that half of the draws are in, because noise may have no variance.
    low, centre, high = draws.flatten(0, 1).quantile(draws.new_tensor([0.25, 0.5, 0.75]), dim=0)
    draws, mixed = (((states - centre) / (high - low).clamp(min=1e-2)).atan() for states in (draws, mixed))
    spread = draws.std((0, 1))
    noisy = spread > 1e-2
    shared = noisy & (2 * n * draws.mean(1).var(0) > 6 * spread.square())
    if bool(shared.any()):
        yield "rows of a batch share their noise: draw it with the batch dimension, as torch.randn(n, ...)"
    shift = (mixed.mean((0, 1)) - draws.mean((0, 1))).abs()
    if bool((shift > _ERRORS * spread * math.sqrt(1.5 / (n * repeats)) + 1e-2).any()) and not bool(shared.any()):
        yield "a draw depends on the other rows of the batch: in evaluation mode each row is on its own"


def _contexts(case: _Case) -> Iterator[str]:
    """A context with one row for each row of what is given."""
    if case.context is None or not case.kernel.takes_context:
        return
    together = case.kernel.mean(case.given, context=case.context)
    for i in range(min(4, len(case.given))):
        one = case.kernel.mean(case.given[i : i + 1], context=case.context[i : i + 1])[0]
        if not torch.allclose(together[i].double(), one.double(), rtol=1e-3, atol=1e-4):
            yield "row i of what is given does not read row i of the context"
            return


# --- gradients --------------------------------------------------------------------------------------------------------


def _gradients(case: _Case) -> Iterator[str]:
    """Gradients of draws and densities."""
    kernel = case.copy()
    with torch.no_grad():
        # Away from a start at which the last layer is zero, and with it the gradient of all layers before it.
        for parameter in kernel.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    given = case.rows(64).clone()
    if given.is_floating_point():
        given.requires_grad_()
    draw = kernel.sample(given)
    if not kernel.integer_draws:
        if not draw.requires_grad:
            yield (
                "its draws pass no gradient, so the networks before it do not learn: use rsample() and no detach(); "
                "for discrete states a straight-through gradient, draw + p - p.detach()"
            )
        else:
            (draw * torch.randn_like(draw)).sum().backward()
            yield from _missing(kernel, given, "the draws")
    if case.has_density:
        kernel.zero_grad()
        given.grad = None
        kernel.log_prob(draw.detach(), given).sum().backward()
        yield from _missing(kernel, given, "the log-density")


def _missing(kernel: Kernel, given: Tensor, source: str) -> Iterator[str]:
    """What a gradient does not reach."""
    if given.requires_grad and not _reached(given):
        yield f"no finite gradient of {source} reaches what is given"
    trained = [(name, parameter) for name, parameter in kernel.named_parameters() if parameter.requires_grad]
    without = [name for name, parameter in trained if not _reached(parameter)]
    if without:
        yield f"no finite gradient of {source} reaches {', '.join(without)}: use these parameters, or freeze them"


def _reached(tensor: Tensor) -> bool:
    gradient = tensor.grad
    return gradient is not None and bool(gradient.isfinite().all()) and bool((gradient != 0).any())


def _sleep(case: _Case) -> Iterator[str]:
    """The loss of the sleep phase."""
    kernel, given = case.copy(), case.rows(8)
    if not kernel.has_sleep_loss:
        return
    loss = kernel.sleep_loss(kernel.sample(given).detach(), given)
    if not loss.isfinite().all():
        yield "sleep_loss() is not finite at the kernel's own draws"
    if any(parameter.requires_grad for parameter in kernel.parameters()) and not loss.requires_grad:
        yield "sleep_loss() passes no gradient to the kernel's parameters"


# --- densities --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _densities(case: _Case) -> Iterator[str]:
    """Densities that agree with draws."""
    if not case.has_density:
        return
    kernel, given = case.kernel, case.same(_DRAWS)
    others, draws = kernel.sample(given), kernel.sample(given)
    log_density = kernel.log_prob(draws, given).double()
    if log_density.shape != (_DRAWS,):
        yield f"log_prob() has the shape {tuple(log_density.shape)} for {_DRAWS} states: one number for each"
        return
    if not log_density.isfinite().all():
        share = 1 - float(log_density.isfinite().double().mean())
        yield f"{share:.1%} of the draws have no finite log-density: every draw has one"
        return
    flat, earlier = draws.reshape(_DRAWS, -1).double(), others.reshape(_DRAWS, -1).double()
    states, counts = flat.unique(dim=0, return_counts=True)
    if len(states) < _DRAWS / 10:
        faults = list(_frequencies(case, states.reshape(-1, *kernel.target.shape).to(draws), counts))
    elif max(_ties(column) for column in flat.T) < 0.01:
        faults = list(_histogram(kernel, given, earlier, flat, log_density))
    else:
        faults = []  # Atoms: neither a histogram nor counts fit.
    yield from faults or _neighbour(case, others, draws, log_density)


def _frequencies(case: _Case, states: Tensor, counts: Tensor) -> Iterator[str]:
    """Discrete states: their probabilities against how often they are drawn."""
    probabilities = case.kernel.log_prob(states, case.same(len(states))).double().exp()
    total = float(probabilities.sum())
    if total > 1.001:
        yield f"the probabilities of the states that it draws sum to {total:.4g}, more than 1"
        return
    often = probabilities * _DRAWS >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]]).double()
    expected = torch.cat([probabilities[often], (1 - probabilities[often].sum()).clamp(min=1e-9)[None]]) * _DRAWS
    statistic = ((observed - expected).square() / expected.clamp(min=1)).sum()
    freedom = torch.tensor(max(1.0, len(observed) - 1.0)).double()
    if torch.special.gammaincc(freedom / 2, statistic / 2) < 1e-5:
        worst = int(((observed - expected).abs() / expected.clamp(min=1).sqrt()).argmax())
        yield (
            f"its density does not fit its draws: a state of probability {float(expected[worst]) / _DRAWS:.3g} makes "
            f"{float(observed[worst]) / _DRAWS:.3g} of {_DRAWS} draws"
        )


def _ties(column: Tensor) -> float:
    """The share of values that occur more than once."""
    return 1 - len(column.unique()) / len(column)


def _histogram(kernel: Kernel, given: Tensor, earlier: Tensor, draws: Tensor, log_density: Tensor) -> Iterator[str]:
    """The mean of ``r(w)/q(w)`` over draws, where ``r`` has the histograms of earlier draws as its marginals."""
    if draws.shape[1] > 1 and bool((draws > 0).all()) and bool(((draws.sum(1) - 1).abs() < 1e-3).all()):
        # A simplex, where a product of histograms would leave the support: in log-ratios, it does not.
        log_density = log_density + draws.log().sum(1)
        earlier, draws, support = _log_ratios(earlier), _log_ratios(draws), 1.0
    else:
        support = None
    levels = torch.linspace(0.005, 0.995, 31, dtype=torch.float64)
    edges = earlier.quantile(levels, dim=0).T.contiguous()
    bins = torch.searchsorted(edges, draws.T.contiguous())
    inside = ((bins > 0) & (bins < len(levels))).all(0)
    widths = edges.diff(dim=1).clamp(min=1e-300)
    log_r = -(widths * widths.shape[1]).log().gather(1, (bins - 1).clamp(0, widths.shape[1] - 1)).sum(0)
    if support is None:
        support = _share_inside(kernel, given, edges)
    fault = _not_one(torch.where(inside, log_r, -math.inf) - log_density, support)
    if fault:
        yield (
            f"its density does not fit its draws: the mean of r(w)/q(w) over draws is {fault}, and {support:.3g} is "
            "right (q is the density, r a histogram of other draws). Check its normalisation, and that log_prob() and "
            "sample() use the same distribution"
        )


def _log_ratios(simplex: Tensor) -> Tensor:
    """``log w_k − log w_K``, ``(n, K − 1)``."""
    return simplex[:, :-1].log() - simplex[:, -1:].log()


def _share_inside(kernel: Kernel, given: Tensor, edges: Tensor) -> float:
    """The probability under histograms with these edges, ``(elements, bins + 1)``, to be where the density is positive.

    It is below 1 where the support is no box. It is 1 if the density is not defined outside the support.
    """
    elements, n = len(edges), len(given)
    bins = torch.randint(edges.shape[1] - 1, (elements, n))
    low, high = edges.gather(1, bins), edges.gather(1, bins + 1)
    states = (low + (high - low) * torch.rand_like(low)).T.reshape(n, *kernel.target.shape)
    try:
        found = kernel.log_prob(states.to(kernel.dtype_for(given)), given)
    except ValueError:
        return 1.0
    return float((found > -math.inf).double().mean())


def _neighbour(case: _Case, others: Tensor, draws: Tensor, log_density: Tensor) -> Iterator[str]:
    """The mean of ``q(w|v')/q(w|v)`` over draws given ``v``, at a ``v'`` whose distribution differs moderately."""
    kernel, given = case.kernel, case.same(_DRAWS)

    def log_ratio(near: Tensor, states: Tensor, log_density: Tensor) -> Tensor:
        return kernel.log_prob(states, near.expand_as(given)).double() - log_density

    if given.is_floating_point() and case.kernel.source.support in (None, "real"):
        step, direction = 0.1, case.given[1] - case.given[0]
        before = kernel.log_prob(others, given).double()
        for _ in range(12):
            spread = float(log_ratio(case.given[0] + step * direction, others, before).std())
            if 0.2 < spread < 0.6:
                break
            step = step * 2 if spread <= 0.2 else step / 2
        near = case.given[0] + step * direction
    else:
        near = case.given[1]
    fault = _not_one(log_ratio(near, draws, log_density))
    if fault:
        yield (
            f"its density does not fit its draws: the mean of q(w|v')/q(w|v) over draws given v is {fault}, and 1 is "
            "right. Check that log_prob() and sample() depend on what is given in the same way"
        )


def _not_one(log_ratios: Tensor, right: float = 1.0) -> str | None:
    """The mean of ratios in words, if it is certainly not what is right; ``None`` if it may be."""
    ratios = log_ratios.clamp(max=300).exp()
    mean, error = float(ratios.mean()), float(ratios.std()) / math.sqrt(len(ratios))
    if mean > 1000:  # By Markov's inequality it is that large in one case of 1,000.
        return f"{mean:.3g}"
    effective = float(ratios.sum().square() / ratios.square().sum().clamp(min=1e-300))
    # A few large ratios dominate the mean: nothing can be said.
    if effective < len(ratios) / 50 or abs(mean - right) <= max(_ERRORS * error, _TOLERANCE):
        return None
    return f"{mean:.3g} (± {error:.2g})"


# --- algebra ----------------------------------------------------------------------------------------------------------


class _Back(torch.nn.Module):
    """A linear network back to the source, from states of any dtype."""

    def __init__(self, kernel: Kernel, like: Tensor) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(kernel.target.size, kernel.source.size, dtype=like.dtype, device=like.device)

    def forward(self, state: Tensor) -> Tensor:
        out: Tensor = self.linear(state.reshape(len(state), -1).to(self.linear.weight.dtype))
        return out


def _algebra(case: _Case) -> Iterator[str]:
    """Composition and adjoint."""
    kernel = case.kernel
    like = next(kernel.parameters(), torch.empty(0))
    back = DeterministicKernel(kernel.target, kernel.source, _Back(kernel, like))
    round_trip = back @ kernel
    if round_trip.factors != (*kernel.factors, back):
        yield f"{round_trip} has other factors than the two kernels that it is made of"
    if round_trip.conditioned(kernel.context).sample(case.rows(2, 3)).shape != (2, 3, *kernel.source.shape):
        yield "composed with a kernel back, it does not lead to states of its source"
    if len(kernel.factors) > 1:
        return
    try:
        adjoint = kernel.adjoint
    except RuntimeError:
        adjoint = Link(kernel, back).down
    if kernel.adjoint is not adjoint or adjoint.adjoint is not kernel:
        yield "the adjoint of its adjoint is not the kernel itself"


_CHECKS = [
    _shapes,
    _dtypes,
    _generators,
    _means,
    _rows,
    _contexts,
    _gradients,
    _sleep,
    _densities,
    _algebra,
]
