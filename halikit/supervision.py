"""Classes from latents, ``x → z → y`` (Eq. 9), and what the labelled data add to the generators' loss (Eq. 10)."""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halikit.data import Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy, Link
from halikit.kernels import CategoricalKernel, Gauge, GaussianKernel
from halikit.spaces import Space

__all__ = [
    "Graph",
    "Guess",
    "Shares",
    "Supervised",
    "choose_labelled",
    "class_kernel",
    "classify",
    "guess",
    "propagate",
    "supervise",
    "with_classes",
]

# Of the relaxed one-hot draws: nearly hard, and still with a gradient.
_TEMPERATURE = 0.5
# Of label propagation: what a datum takes of its neighbours' classes in a round, and rounds.
_TAKEN = 0.99
_ROUNDS = 200
# Of the graph that a teacher's latents make: nearest neighbours of each.
_NEIGHBOURS = 5
# So many rows of distances, or images, at a time.
_ROWS = 500
# Share of the mean of what it says that is kept at each batch.
_KEPT = 0.99


class Supervised(NamedTuple):
    """What one step saw; a scalar on the device, detached.

    Attributes:
        supervised_loss: Eq. 10, the mean cross entropy of the labelled batch, nats.
    """

    supervised_loss: Tensor


def with_classes(
    hierarchy: Hierarchy, classes: int, *, gauge: Gauge | None = None, max_scale: float | None = None
) -> Hierarchy:
    """Put the classes on top, as one level more: ``q(y|z_L)`` a softmax (section 7.2), ``p(z_L|y)`` a Gaussian.

    The prior is then that over the classes, uniform: under the decoder ``z_L`` is a mixture. Draws of ``q(y|z_L)`` are
    relaxed, so that the game reaches the encoder through them.

    Args:
        hierarchy: Whose links are taken over.
        classes: Their number K; the new space is ``y (K)``, one-hot.
        gauge: Of ``p(z_L|y)``; see :class:`~halikit.GaussianKernel`.
        max_scale: Its cap.
    """
    top, y = hierarchy.spaces[-1], Space("y", (classes,))
    shape = (2 * top.shape[0], *top.shape[1:])
    up = nn.Sequential(nn.Flatten(), nn.Linear(top.size, classes))
    down = nn.Sequential(nn.Linear(classes, 2 * top.size), nn.Unflatten(1, shape))
    link = Link(
        CategoricalKernel(top, y, up, temperature=_TEMPERATURE),
        GaussianKernel(y, top, down, gauge=gauge, max_scale=max_scale),
    )
    # Validation looks at values, which a model that is planned on the meta device would not have.
    with torch.device("cpu"):
        prior = dist.OneHotCategorical(torch.full((classes,), 1 / classes))
    return Hierarchy([*hierarchy, link], prior)


def class_kernel(hierarchy: Hierarchy) -> CategoricalKernel:
    """``q(y|z_L)``, the topmost kernel of the encoder.

    Raises:
        InputError: If the hierarchy does not end in classes.
    """
    kernel = hierarchy.links[-1].up
    if not isinstance(kernel, CategoricalKernel):
        raise InputError(f"the top of this hierarchy is {hierarchy.spaces[-1]}, not classes: set model.classes")
    return kernel


def classify(hierarchy: Hierarchy, x: Tensor, *, sample: bool = False) -> Tensor:
    """Unnormalised log-probabilities of the classes, ``(n, K)`` (Eq. 9).

    Args:
        hierarchy: With classes on top.
        x: ``(n, *shape of x)``.
        sample: Draw the latents below instead of following the means.
    """
    kernel = class_kernel(hierarchy)
    z = hierarchy[:-1].encode(x, sample=sample)[kernel.source.name]
    return kernel.logits(z)


class Guess(NamedTuple):
    """Data without labels, and the classes that are asked of them.

    Attributes:
        x: ``(n, *shape of x)``.
        y: ``(n,)`` int64.
        weight: Of each one's loss, ``(n,)``; 0 where the class is not sure.
    """

    x: Tensor
    y: Tensor
    weight: Tensor


class Shares(nn.Module):
    """How often a teacher says each class: a running mean, as much a state of the training as the weights are.

    Args:
        classes: Their number K.

    Attributes:
        mean: ``(K,)``; at first the uniform prior.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.full((classes,), 1 / classes))

    @torch.no_grad()
    def update(self, said: Tensor) -> None:
        """Move the mean towards that of a batch of probabilities, ``(n, K)``."""
        self.mean.lerp_(said.mean(0), 1 - _KEPT)

    def forward(self, said: Tensor) -> Tensor:
        """The probabilities ``(n, K)`` as they were if all classes were said equally often."""
        said = said / self.mean
        return said / said.sum(1, keepdim=True)


class Graph(nn.Module):
    """What the labels say of all data when they spread over a graph of a teacher's latents; kept with the training.

    Args:
        number: Of data, n.

    Attributes:
        labels: ``(n,)`` int64; -1 as long as nothing has been spread.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.labels: Tensor
        self.register_buffer("labels", torch.full((number,), -1))

    @torch.no_grad()
    def renew(self, teacher: Hierarchy, part: Split, index: Tensor) -> None:
        """Spread the labels anew over the topmost latents below the classes, by :func:`propagate`.

        Args:
            teacher: The hierarchy with averaged weights, in evaluation mode.
            part: All data, n.
            index: Those whose labels are seen, ``(m,)`` int64.
        """
        assert part.labels is not None
        below, kernel = teacher[:-1], class_kernel(teacher)
        rows = torch.arange(len(part), device=part.device).split(_ROWS)
        z = torch.cat([below.encode(part.batch(i))[kernel.source.name] for i in rows])
        seen = part.labels[index.to(part.labels.device)]
        self.labels.copy_(propagate(z, index, seen, kernel.target.size, min(_NEIGHBOURS, len(part) - 1)))

    def forward(self, index: Tensor, y: Tensor) -> Tensor:
        """Whether it says these classes of these data, or nothing, ``(n,)`` bool."""
        said = self.labels[index]
        return (said == y) | (said < 0)


@torch.no_grad()
def guess(
    teacher: Hierarchy, x: Tensor, moved: Tensor, shares: Shares, *, threshold: float = 0.95, weight: float = 1.0
) -> Guess:
    """Ask of changed data the classes that a teacher is sure of.

    The paper has nothing of the kind: it is the consistency of FixMatch (Sohn et al. 2020), the teacher the averaged
    weights. All classes are as frequent as the prior has it: what the teacher says is divided by how often it has said
    so of late (the distribution alignment of Berthelot et al. 2020).

    Args:
        teacher: The hierarchy with averaged weights, in evaluation mode.
        x: Data without labels, ``(n, *shape of x)``, for the teacher.
        moved: The same, augmented, ``(n, *shape of x)``.
        shares: Of what the teacher says; moved on.
        threshold: Probability of a class from which on the teacher counts as sure, in [0, 1).
        weight: Of the loss beside that of labelled data.
    """
    said = classify(teacher, x).float().softmax(1)
    shares.update(said)
    sure, y = shares(said).max(1)
    return Guess(moved, y, weight * (sure > threshold))


def supervise(
    hierarchy: Hierarchy,
    x: Tensor,
    y: Tensor,
    guessed: Guess | None = None,
    *,
    noise: float = 0.0,
    weight: float = 1.0,
) -> Supervised:
    """Eq. 10 up to the gradients, which are added to ``.grad``: the minus sign that it lacks is there.

    Args:
        hierarchy: With classes on top.
        x: Labelled data, ``(n, *shape of x)``.
        y: Their labels, ``(n,)`` int64.
        guessed: Other data to be put into classes beside them.
        noise: σ of Eq. 9, the standard deviation of the noise on the encoder's input, at least 0.
        weight: Of this loss beside the game's.
    """
    # In one batch, so that batch statistics are the same for both.
    seen = x if guessed is None else torch.cat([x, guessed.x])
    noisy = seen.add(torch.randn_like(seen), alpha=noise) if noise else seen
    logits = classify(hierarchy, noisy, sample=True).float()
    loss = total = cross_entropy(logits[: len(x)], y)
    if guessed is not None:
        total = loss + (guessed.weight * cross_entropy(logits[len(x) :], guessed.y, reduction="none")).mean()
    (weight * total).backward()
    return Supervised(loss.detach())


def propagate(x: Tensor, index: Tensor, labels: Tensor, classes: int, neighbours: int) -> Tensor:
    """Spread few labels over the graph of nearest neighbours, as Zhou et al. (2004) do.

    Each datum is joined to its nearest ones, both ways, and all classes weigh the same in the end. The paper has
    nothing of the kind. Time is quadratic in n; nothing is random.

    Args:
        x: All data, ``(n, …)``, compared by Euclidean distance.
        index: Those that have labels, ``(m,)`` int64.
        labels: Theirs, ``(m,)`` int64.
        classes: Their number K.
        neighbours: Nearest data that each one is joined to, 1 … n − 1.

    Returns:
        A label of each datum, ``(n,)`` int64, on the device of ``x``.

    Raises:
        InputError: If there are not so many neighbours.
    """
    if not 1 <= neighbours < len(x):
        raise InputError(f"of {len(x)} data each has 1 to {len(x) - 1} neighbours, not {neighbours}")
    points = x.flatten(1)
    squares, nearest = points.square().sum(1), []
    for rows in torch.arange(len(x), device=x.device).split(_ROWS):
        # Up to what is the same in a row, the squared distances.
        distance = torch.addmm(squares[None], points[rows], points.T, alpha=-2)
        distance[torch.arange(len(rows), device=x.device), rows] = torch.inf
        nearest.append(distance.topk(neighbours, largest=False).indices.cpu())
    # From here on the CPU, where sums come in one order.
    graph = torch.cat(nearest)
    share = (neighbours + torch.bincount(graph.flatten(), minlength=len(x))).float().rsqrt()[:, None]
    given = torch.zeros(len(x), classes)
    given[index.cpu(), labels.cpu()] = 1
    belief = given
    for _ in range(_ROUNDS):
        sent = share * belief
        received = sent[graph].sum(1).index_add_(0, graph.flatten(), sent.repeat_interleave(neighbours, 0))
        belief = torch.lerp(given, share * received, _TAKEN)
    found = (belief / belief.sum(0)).argmax(1)
    found[index.cpu()] = labels.cpu()
    return found.to(x.device)


def choose_labelled(labels: Tensor, number: int, classes: int, seed: int) -> Tensor:
    """Draw the data whose labels may be seen, evenly over the classes.

    Args:
        labels: ``(n,)`` int64.
        number: How many, a multiple of the classes' number.
        classes: Their number.
        seed: What the draw depends on, and nothing else.

    Returns:
        Indices into ``labels``, ``(number,)`` int64, ascending.

    Raises:
        InputError: If the number is no such multiple, or a class has too few.
    """
    each, rest = divmod(number, classes)
    if rest or not each:
        raise InputError(f"{number} labels cannot be even over {classes} classes: take a multiple of {classes}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    chosen = [order[shuffled == label][:each] for label in range(classes)]
    for label, index in enumerate(chosen):
        if len(index) < each:
            raise InputError(f"{number} labels want {each} of each class, and class {label} has {len(index)}")
    return torch.cat(chosen).sort().values
