"""Two sets of samples told apart by a classifier (Lopez-Paz & Oquab 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from halikit.analysis.quantity import Quantity
from halikit.utils.random import seeded

__all__ = ["TwoSampleTest", "two_sample_test"]

_HIDDEN, _STEPS, _BATCH, _CHECKED_EVERY = 64, 300, 256, 20


@dataclass(frozen=True)
class TwoSampleTest:
    """How well two sets are told apart, on samples that the classifier has not seen.

    Attributes:
        accuracy: Share of them that it puts right, an estimate; 0.5 if the sets are alike.
        p_value: Of such an accuracy or a higher one if both are from one distribution; normal approximation.
        js_bound: ``D_JS`` of the two distributions, a stochastic lower bound in nats, at most log 2 = 0.693. A better
            classifier might prove more.
    """

    accuracy: Quantity
    p_value: float
    js_bound: Quantity


def two_sample_test(a: Tensor, b: Tensor, *, seed: int = 0) -> TwoSampleTest:
    """Fit a small network on one half of two sets and ask it about the other.

    Args:
        a: ``(n, …)``, flattened; eight samples or more.
        b: ``(m, …)``, elements as many; only as many samples count as the smaller set has.
        seed: Of the halves and the network.

    Raises:
        ValueError: If the sets have states of different sizes, or too few.
    """
    n = min(len(a), len(b))
    a, b = a[torch.randperm(len(a), generator=_generator(seed))[:n]], b[:n]
    a, b = (x.detach().flatten(1).float().cpu() for x in (a, b))
    if n < 8 or a.shape != b.shape:
        raise ValueError(f"two samples need one size and 8 or more each, got {tuple(a.shape)} and {tuple(b.shape)}")
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
    """A network with positive logits on ``a``, as it did best on a fifth that it is not fitted on."""
    kept = max(1, len(a) // 5)
    with seeded(seed):
        logit = nn.Linear(_HIDDEN, 1)
        # It begins by saying nothing, so that its bound on like sets is 0.
        nn.init.zeros_(logit.weight)
        nn.init.zeros_(logit.bias)
        hidden = nn.Linear(a.shape[1], _HIDDEN), nn.LeakyReLU(0.1), nn.Linear(_HIDDEN, _HIDDEN), nn.LeakyReLU(0.1)
        network = nn.Sequential(*hidden, logit)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.1)
        best, lowest = {name: tensor.clone() for name, tensor in network.state_dict().items()}, 2 * math.log(2)
        for step in range(1, _STEPS + 1):
            rows = torch.randint(kept, len(a), (min(_BATCH, len(a) - kept),))
            loss = softplus(-network(a[rows])).mean() + softplus(network(b[rows])).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % _CHECKED_EVERY == 0:
                with torch.no_grad():
                    seen = float(softplus(-network(a[:kept])).mean() + softplus(network(b[:kept])).mean())
                if seen < lowest:
                    best, lowest = {name: tensor.clone() for name, tensor in network.state_dict().items()}, seen
    network.load_state_dict(best)
    return network


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
