"""Laws of draws and means, of gradients, and of composition and adjoint (section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from halikit.hierarchy import Link
from halikit.kernels import DeterministicKernel, Kernel
from halikit.testing.case import DRAWS, ERRORS, Case
from halikit.utils.random import seeded

__all__ = ["algebra", "contexts", "draws", "dtypes", "generators", "gradients", "means", "rows", "shapes", "sleep"]

_BATCHES = [(5,), (), (1,), (0,), (2, 3)]


def draws(case: Case) -> Iterator[str]:
    """A draw for a plain batch."""
    case.kernel.sample(case.rows(5))
    case.kernel.mean(case.rows(5))
    yield from ()


def shapes(case: Case) -> Iterator[str]:
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


def dtypes(case: Case) -> Iterator[str]:
    """Draws and densities in single and in double precision."""
    for dtype in (torch.float32, torch.float64):
        kernel = case.copy().to(dtype)
        given = case.rows(5).to(dtype) if case.given.is_floating_point() else case.rows(5)
        draw = kernel.sample(given)
        if not kernel.integer_draws and draw.dtype != kernel.dtype_for(given):
            yield f"a model in {dtype} draws {draw.dtype}: make new tensors in the dtype of what is given"
        if case.has_density and (found := kernel.log_prob(draw, given).dtype) != dtype:
            yield f"a model in {dtype} has log-densities in {found}: make new tensors in the dtype of what is given"


def generators(case: Case) -> Iterator[str]:
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


def means(case: Case) -> Iterator[str]:
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
        draws, mean = kernel.sample(case.same(DRAWS)).double(), kernel.mean(case.same(1)).double()[0]
    error = (draws.mean(0) - mean).abs()
    # Rounding of the draws is not an error of the mean.
    allowed = ERRORS * draws.std(0) / math.sqrt(DRAWS) + 1e-4 * (1 + mean.abs())
    if (error > allowed).any():
        worst = int((error / allowed).argmax())
        yield (
            f"mean() is not the mean of the draws: element {worst} is {float(mean.flatten()[worst]):.4g}, and "
            f"{DRAWS} draws average to {float(draws.mean(0).flatten()[worst]):.4g}. Correct mean(), or let "
            "representative say what it is"
        )


def rows(case: Case) -> Iterator[str]:
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
    if bool((shift > ERRORS * spread * math.sqrt(1.5 / (n * repeats)) + 1e-2).any()) and not bool(shared.any()):
        yield "a draw depends on the other rows of the batch: in evaluation mode each row is on its own"


def contexts(case: Case) -> Iterator[str]:
    """A context with one row for each row of what is given."""
    if case.context is None or not case.kernel.takes_context:
        return
    together = case.kernel.mean(case.given, context=case.context)
    for i in range(min(4, len(case.given))):
        one = case.kernel.mean(case.given[i : i + 1], context=case.context[i : i + 1])[0]
        if not torch.allclose(together[i].double(), one.double(), rtol=1e-3, atol=1e-4):
            yield "row i of what is given does not read row i of the context"
            return


def gradients(case: Case) -> Iterator[str]:
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


def sleep(case: Case) -> Iterator[str]:
    """The loss of the sleep phase."""
    kernel, given = case.copy(), case.rows(8)
    if not kernel.has_sleep_loss:
        return
    loss = kernel.sleep_loss(kernel.sample(given).detach(), given)
    if not loss.isfinite().all():
        yield "sleep_loss() is not finite at the kernel's own draws"
    if any(parameter.requires_grad for parameter in kernel.parameters()) and not loss.requires_grad:
        yield "sleep_loss() passes no gradient to the kernel's parameters"


class _Back(torch.nn.Module):
    """A linear network back to the source, from states of any dtype."""

    def __init__(self, kernel: Kernel, like: Tensor) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(kernel.target.size, kernel.source.size, dtype=like.dtype, device=like.device)

    def forward(self, state: Tensor) -> Tensor:
        """States of the source, flattened, for ``(n, *target.shape)``."""
        out: Tensor = self.linear(state.reshape(len(state), -1).to(self.linear.weight.dtype))
        return out


def algebra(case: Case) -> Iterator[str]:
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
