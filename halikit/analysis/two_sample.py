"""Tests of whether two sets of samples have one distribution, by a classifier (Lopez-Paz & Oquab 2017)."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from halikit.analysis.quantity import Quantity
from halikit.utils.random import seeded

__all__ = ["TwoSampleTest", "two_sample_test"]

# Width of the classifier, steps of its training, batch size, and steps between its validations.
_HIDDEN, _STEPS, _BATCH, _CHECKED_EVERY = 64, 300, 256, 20


@dataclass(frozen=True)
class TwoSampleTest:
    """How well a classifier separates two sets, on samples that it was not trained on.

    Attributes:
        accuracy: Share of samples assigned to the right set, an estimate; 0.5 if the distributions are equal.
        p_value: Probability of this accuracy or a higher one if both distributions are equal; normal approximation.
        js_bound: Stochastic lower bound on ``D_JS`` of the two distributions in nats, at most log 2 = 0.693. A better
            classifier may give a higher bound.
    """

    accuracy: Quantity
    p_value: float
    js_bound: Quantity


def two_sample_test(a: Tensor, b: Tensor, *, seed: int = 0) -> TwoSampleTest:
    """Fit a small network on one half of two sets, and test it on the other half.

    Gradients are enabled for the fit, whether or not they are outside.

    Args:
        a: ``(n, …)``, eight samples or more; each is flattened.
        b: ``(m, …)``, with as many elements in a sample. The larger set is cut to the size of the smaller one.
        seed: Seed of the halves and of the network.

    Raises:
        ValueError: If the samples of the two sets differ in size, or there are too few.
    """
    n = min(len(a), len(b))
    a, b = a[torch.randperm(len(a), generator=_generator(seed))[:n]], b[:n]
    a, b = (x.detach().flatten(1).float().cpu() for x in (a, b))
    if n < 8 or a.shape != b.shape:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"both sets need samples of one size, 8 or more each, got {shapes}")
    half = n // 2
    centre, scale = torch.cat([a[:half], b[:half]]).mean(0), torch.cat([a[:half], b[:half]]).std(0).clamp_min(1e-6)
    a, b = (a - centre) / scale, (b - centre) / scale
    network = _fitted(a[:half], b[:half], seed)
    with torch.no_grad():
        s_a, s_b = network(a[half:]).squeeze(1), network(b[half:]).squeeze(1)
    # A tie is half a success.
    right = torch.cat([(s_a.sign() + 1) / 2, (1 - s_b.sign()) / 2])
    accuracy = Quantity.mean(right, "estimate")
    deviations = (accuracy.value - 0.5) / (0.5 / len(right) ** 0.5)
    js = math.log(2) - 0.5 * (softplus(-s_a) + softplus(s_b))
    return TwoSampleTest(accuracy, 0.5 * math.erfc(deviations / math.sqrt(2)), Quantity.mean(js, "lower bound", "nats"))


def _fitted(a: Tensor, b: Tensor, seed: int) -> nn.Module:
    """A network with positive logits on ``a``: the one of all steps with the lowest loss on a fifth for validation."""
    validated = max(1, len(a) // 5)
    with seeded(seed), torch.enable_grad():
        logit = nn.Linear(_HIDDEN, 1)
        # All logits are 0 at first, so that the bound for equal distributions is 0.
        nn.init.zeros_(logit.weight)
        nn.init.zeros_(logit.bias)
        hidden = nn.Linear(a.shape[1], _HIDDEN), nn.LeakyReLU(0.1), nn.Linear(_HIDDEN, _HIDDEN), nn.LeakyReLU(0.1)
        network = nn.Sequential(*hidden, logit)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.1)
        best, lowest = deepcopy(network.state_dict()), 2 * math.log(2)

        def loss(rows: Tensor | slice) -> Tensor:
            return softplus(-network(a[rows])).mean() + softplus(network(b[rows])).mean()

        for step in range(1, _STEPS + 1):
            optimiser.zero_grad()
            loss(torch.randint(validated, len(a), (min(_BATCH, len(a) - validated),))).backward()
            optimiser.step()
            if step % _CHECKED_EVERY == 0:
                with torch.no_grad():
                    validation_loss = float(loss(slice(validated)))
                if validation_loss < lowest:
                    best, lowest = deepcopy(network.state_dict()), validation_loss
    network.load_state_dict(best)
    return network


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
