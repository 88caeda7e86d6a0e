"""Label propagation over a graph of nearest neighbours (Zhou et al. 2004).

The paper is "Learning with Local and Global Consistency"; HALI has nothing of the kind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from halikit.errors import InputError

__all__ = ["PropagatedLabels", "propagate"]

# Share of a sample's class scores that comes from its neighbours in each iteration, and number of iterations.
_ALPHA = 0.99
_ITERATIONS = 200
# Rows of the distance matrix that are computed at once.
_ROWS = 500


def propagate(x: Tensor, index: Tensor, labels: Tensor, classes: int, neighbours: int) -> Tensor:
    """Propagate few labels to all data over a k-nearest-neighbour graph.

    Edges go both ways. In the end the scores of each class are normalised to the same total. Time is quadratic in n;
    nothing is random.

    Args:
        x: All data, ``(n, …)``, compared by Euclidean distance.
        index: Indices of the labelled data, ``(m,)`` int64.
        labels: Their labels, ``(m,)`` int64.
        classes: Number of classes K.
        neighbours: Nearest neighbours of each sample, 1 … n − 1.

    Returns:
        A label for each sample, ``(n,)`` int64, on the device of ``x``.

    Raises:
        InputError: If there are not so many neighbours.
    """
    if not 1 <= neighbours < len(x):
        raise InputError(f"each of {len(x)} samples has 1 to {len(x) - 1} neighbours, not {neighbours}")
    points = x.flatten(1)
    squares, nearest = points.square().sum(1), []
    for rows in torch.arange(len(x), device=x.device).split(_ROWS):
        # The squared distances, up to a constant in each row.
        distance = torch.addmm(squares[None], points[rows], points.T, alpha=-2)
        distance[torch.arange(len(rows), device=x.device), rows] = torch.inf
        nearest.append(distance.topk(neighbours, largest=False).indices.cpu())
    # From here on the CPU, where sums have a fixed order.
    graph = torch.cat(nearest)
    scale = (neighbours + torch.bincount(graph.flatten(), minlength=len(x))).float().rsqrt()[:, None]
    given = torch.zeros(len(x), classes)
    given[index.cpu(), labels.cpu()] = 1
    scores = given
    for _ in range(_ITERATIONS):
        sent = scale * scores
        received = sent[graph].sum(1).index_add_(0, graph.flatten(), sent.repeat_interleave(neighbours, 0))
        scores = torch.lerp(given, scale * received, _ALPHA)
    found = (scores / scores.sum(0)).argmax(1)
    found[index.cpu()] = labels.cpu()
    return found.to(x.device)


class PropagatedLabels(nn.Module):
    """Labels of the whole training set, propagated over a k-nearest-neighbour graph of the EMA latents.

    Args:
        number: Size of the training set, n.

    Attributes:
        labels: ``(n,)`` int64; -1 before the first propagation. Saved with the training.
    """

    # Nearest neighbours in the graph of the latents.
    NEIGHBOURS = 5

    def __init__(self, number: int) -> None:
        super().__init__()
        self.labels: Tensor
        self.register_buffer("labels", torch.full((number,), -1))

    @torch.no_grad()
    def update(self, z: Tensor, index: Tensor, labels: Tensor, classes: int) -> None:
        """Propagate anew.

        Args:
            z: Latents of the training set, ``(n, …)``.
            index: Indices of the labelled examples, ``(m,)`` int64.
            labels: Their labels, ``(m,)`` int64.
            classes: Number of classes.
        """
        self.labels.copy_(propagate(z, index, labels, classes, min(self.NEIGHBOURS, len(z) - 1)))

    def forward(self, index: Tensor, y: Tensor) -> Tensor:
        """Whether the propagated labels of these samples are ``y``, or not known yet, ``(n,)`` bool."""
        known = self.labels[index]
        return (known == y) | (known < 0)
