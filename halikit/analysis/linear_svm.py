"""Many linear support vector machines on the same features at once.

Tables 2 and 6 want one per attribute, level and regularisation; together they are products of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fit_svms", "principal_coordinates"]

# A machine is fitted when its gradient is this small beside that of no weights at all.
_GRADIENT = 1e-5
# Newton's equations are solved to this share of their right side, by at most so many steps of conjugate gradients.
_RESIDUAL, _CONJUGATE = 0.1, 500
_NEWTON, _HALVINGS = 100, 30
# Directions whose variance is this far below the largest are rounding errors.
_RANK = 1e-9


def principal_coordinates(fit: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """The same features in the principal axes of the fitting part, with a last column of ones for the offset.

    A linear machine's weights lie in what the fitting part spans, and rotations change neither its margins nor its
    penalty, so the machines are the same. There are no more coordinates than images to fit, and Newton's equations are
    close to diagonal.

    Args:
        fit: ``(n, D)``, the part to fit on.
        test: ``(m, D)``.

    Returns:
        Float32 ``(n, min(n, D) + 1)`` and ``(m, min(n, D) + 1)``, or with fewer columns where features repeat.
    """
    fit, test = fit.double(), test.double()
    wide = fit.shape[0] < fit.shape[1]
    variances, axes = torch.linalg.eigh(fit @ fit.T if wide else fit.T @ fit)
    kept = variances > _RANK * variances[-1]
    axes = axes[:, kept]
    if wide:
        axes = fit.T @ (axes / variances[kept].sqrt())
    fit, test = ((part @ axes).float() for part in (fit, test))
    return torch.cat([fit, fit.new_ones(len(fit), 1)], 1), torch.cat([test, test.new_ones(len(test), 1)], 1)


def fit_svms(x: Tensor, answers: Tensor, used: Tensor, c: Tensor, start: Tensor | None = None) -> Tensor:
    """Fit one machine per question: ½‖w‖² + c Σ_i k_i max(0, 1 − y_i w·x_i)² at its least.

    Newton's method of Keerthi and DeCoste (2005) with conjugate gradients, all machines in step. ``k_i`` weighs the
    answers yes and no alike, as n / 2n_yes and n / 2n_no.

    Args:
        x: ``(n, D)``, with a column of ones; its weight is penalised as the others are.
        answers: ``(n, A)`` bool.
        used: Which images each machine is fitted on, ``(n, A)`` bool, with both answers among them.
        c: Of each machine, ``(A,)``, above 0.
        start: Weights to begin at, ``(D, A)``.

    Returns:
        Weights ``(D, A)``; the answer to ``x`` is yes where ``x @ w`` is above 0.
    """
    signs = torch.where(answers, 1.0, -1.0).to(x)
    counts = used.sum(0) / 2
    balance = torch.where(answers, counts / (used & answers).sum(0), counts / (used & ~answers).sum(0))
    costs = 2 * c.to(x) * balance.to(x) * used
    squares = x.square().T
    w = x.new_zeros(x.shape[1], signs.shape[1]) if start is None else start.clone()
    margins = x @ w
    enough = _GRADIENT * (x.T @ (costs * signs)).norm(dim=0)
    for _ in range(_NEWTON):
        gradient = w - x.T @ (costs * signs * (1 - signs * margins).relu())
        live = (gradient.norm(dim=0) > enough).nonzero()[:, 0]
        if not len(live):
            break
        gradient, y, k = gradient[:, live], signs[:, live], costs[:, live]
        curvature = k * (y * margins[:, live] < 1)
        step = _newton_step(x, gradient, curvature, 1 + squares @ curvature)
        moved = x @ step
        length = _line_search(w[:, live], step, margins[:, live], moved, y, k, (gradient * step).sum(0))
        w[:, live] += length * step
        margins[:, live] += length * moved
    return w


def _newton_step(x: Tensor, gradient: Tensor, curvature: Tensor, diagonal: Tensor) -> Tensor:
    """Solve (1 + xᵀ curvature x) step = −gradient, column by column; preconditioned by the diagonal."""
    step, residual = torch.zeros_like(gradient), -gradient
    direction = residual / diagonal
    size = (residual * direction).sum(0)
    enough = _RESIDUAL**2 * size
    for _ in range(_CONJUGATE):
        if not (size > enough).any():
            break
        image = direction + x.T @ (curvature * (x @ direction))
        length = torch.where(size > enough, size / (direction * image).sum(0), 0)
        step += length * direction
        residual -= length * image
        conditioned = residual / diagonal
        last, size = size, (residual * conditioned).sum(0)
        direction = conditioned + torch.where(last > 0, size / last, 0) * direction
    return step


def _line_search(
    w: Tensor, step: Tensor, margins: Tensor, moved: Tensor, signs: Tensor, costs: Tensor, slope: Tensor
) -> Tensor:
    """Halve each machine's step until it brings a ten-thousandth of what its slope promises."""

    def value(length: Tensor) -> Tensor:
        slack = (1 - signs * (margins + length * moved)).relu()
        return ((w + length * step).square().sum(0) + (costs * slack.square()).sum(0)) / 2

    length = torch.ones_like(slope)
    before = value(torch.zeros_like(slope))
    for _ in range(_HALVINGS):
        short = value(length) > before + 1e-4 * length * slope
        if not short.any():
            break
        length = torch.where(short, length / 2, length)
    return length
