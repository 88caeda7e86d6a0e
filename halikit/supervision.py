"""Classes from latents, ``x → z → y`` (Eq. 9), and the supervised cost of labelled data (Eq. 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halikit.errors import InputError
from halikit.hierarchy import Hierarchy, Link
from halikit.kernels import CategoricalKernel, Gauge, GaussianKernel
from halikit.spaces import Space
from halikit.utils.tensors import at_least_single

__all__ = ["class_kernel", "classify", "supervised_cost", "with_classes"]

# Temperature of the relaxed one-hot samples: low enough to be nearly hard, high enough to pass gradients.
_TEMPERATURE = 0.5


def with_classes(
    hierarchy: Hierarchy, classes: int, *, gauge: Gauge | None = None, max_scale: float | None = None
) -> Hierarchy:
    """Put the classes on top as one more level: ``q(y|z_L)`` is a softmax (section 7.2), ``p(z_L|y)`` a Gaussian.

    The prior over the classes is uniform, so under the decoder ``z_L`` is a mixture. Samples of ``q(y|z_L)`` are
    relaxed, so that the gradient of the game reaches the encoder through them.

    At the start the logits of ``q(y|z_L)`` are an orthogonal map of ``z_L``, and the means of ``p(z_L|y)`` are its
    transpose, so both kernels give a class the same place. Labels train the encoder alone (Eq. 10). If the two kernels
    start apart, the decoder learns the classes under other names than the labels, and the game then pulls the encoder
    away from the labels.

    Args:
        hierarchy: Its links become the lower levels of the new one.
        classes: Number of classes K; the new space is ``y (K)``, one-hot.
        gauge: Gauge of ``p(z_L|y)``; see :class:`~halikit.GaussianKernel`.
        max_scale: Upper bound of its scale.
    """
    top, y = hierarchy.spaces[-1], Space("y", (classes,), "one_hot")
    shape = (2 * top.shape[0], *top.shape[1:])
    to_classes, from_classes = nn.Linear(top.size, classes), nn.Linear(classes, 2 * top.size)
    _align(to_classes, from_classes)
    up = nn.Sequential(nn.Flatten(), to_classes)
    down = nn.Sequential(from_classes, nn.Unflatten(1, shape))
    link = Link(
        CategoricalKernel(top, y, up, temperature=_TEMPERATURE),
        GaussianKernel(y, top, down, gauge=gauge, max_scale=max_scale),
    )
    return Hierarchy([*hierarchy, link])


def _align(up: nn.Linear, down: nn.Linear) -> None:
    """Make ``up`` orthogonal, and the means that ``down`` gives its transpose; the raw scales stay as they are."""
    with torch.no_grad():
        nn.init.orthogonal_(up.weight)
        down.weight[: up.in_features] = up.weight.T
        up.bias.zero_()
        down.bias[: up.in_features] = 0


def class_kernel(hierarchy: Hierarchy) -> CategoricalKernel:
    """``q(y|z_L)``, the topmost kernel of the encoder.

    Raises:
        InputError: If the top space of the hierarchy is not classes.
    """
    kernel = hierarchy.links[-1].up
    if not isinstance(kernel, CategoricalKernel):
        raise InputError(f"the top of this hierarchy is {hierarchy.spaces[-1]}, not classes: set model.classes")
    return kernel


def classify(hierarchy: Hierarchy, x: Tensor, *, sample: bool = False) -> Tensor:
    """Unnormalised log-probabilities of the classes, ``(n, K)`` (Eq. 9).

    Args:
        hierarchy: A hierarchy with classes on top.
        x: ``(n, *shape of x)``.
        sample: Draw the latents below instead of following the means.
    """
    kernel = class_kernel(hierarchy)
    z = hierarchy[:-1].encode(x, sample=sample)[kernel.source.name]
    return kernel.logits(z)


def supervised_cost(hierarchy: Hierarchy, x: Tensor, y: Tensor, *, noise: float = 0.0) -> Tensor:
    """Eq. 10 for each sample, ``(n,)``, in nats: ``−log q(y|x)``, with the minus sign that the paper leaves out.

    Args:
        hierarchy: A hierarchy with classes on top.
        x: Labelled data, ``(n, *shape of x)``.
        y: The labels, ``(n,)`` int64.
        noise: σ of Eq. 9, the standard deviation of the noise on the encoder's input, at least 0.
    """
    noisy = x.add(torch.randn_like(x), alpha=noise) if noise else x
    return cross_entropy(at_least_single(classify(hierarchy, noisy, sample=True)), y, reduction="none")
