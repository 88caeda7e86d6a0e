"""Many linear support vector machines (SVMs) on the same features at once.

Tables 2 and 6 need one for each attribute, level and regularisation; all of them together are products of matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fit_svms", "principal_coordinates"]

# An SVM is fitted when the norm of its gradient is below this share of the norm at zero weights.
_GRADIENT = 1e-5
# Newton's equations are solved up to a residual of this share of their right side, by at most this many steps of
# conjugate gradients.
_RESIDUAL, _CONJUGATE = 0.1, 500
# The most steps of Newton's method, and the most halvings of a step.
_NEWTON, _HALVINGS = 100, 30
# Directions with less than this share of the largest variance are rounding errors.
_RANK = 1e-9


def principal_coordinates(fit: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """The features along the principal axes of the fitting part, with a last column of ones for the offset.

    The SVMs are the same as on the features themselves: their weights are in the span of the fitting part, and a
    rotation changes neither margins nor penalty. There are at most as many coordinates as images to fit, and Newton's
    equations are close to diagonal.

    Args:
        fit: Features to fit on, ``(n, D)``.
        test: Features to test on, ``(m, D)``.

    Returns:
        Float32 ``(n, min(n, D) + 1)`` and ``(m, min(n, D) + 1)``; fewer columns if features are linearly dependent.
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
    """Fit one SVM for each question: minimise ½‖w‖² + c Σ_i k_i max(0, 1 − y_i w·x_i)².

    Newton's method of Keerthi and DeCoste (2005) with conjugate gradients, for all SVMs at once. ``k_i`` gives both
    answers equal weight: n / 2n_yes and n / 2n_no.

    Args:
        x: Features ``(n, D)`` with a column of ones, whose weight is penalised like the others.
        answers: ``(n, A)`` bool.
        used: Images that each SVM is fitted on, ``(n, A)`` bool, with both answers among them.
        c: Regularisation of each SVM, ``(A,)``, above 0; a smaller one is stronger.
        start: Initial weights, ``(D, A)``; zero by default.

    Returns:
        Weights ``(D, A)``; the answer for ``x`` is yes where ``x @ w`` is above 0.
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
    """The length of each SVM's step: halved until the loss falls by 1e-4 of what the slope predicts (Armijo)."""

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
