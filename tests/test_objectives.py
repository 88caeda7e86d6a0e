"""Objectives as functions of logits: directions, values, symmetries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from halikit.objectives import OBJECTIVES, jensen_shannon, least_squares, relativistic

F64 = torch.float64
every = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
batches = (
    st.integers(1, 6)
    .flatmap(lambda n: st.tuples(*[st.lists(st.floats(-30, 30), min_size=n, max_size=n)] * 2))
    .map(lambda pair: tuple(torch.tensor(s, dtype=F64) for s in pair))
)


def derivatives(objective, s_q, s_p):
    """``∂L/∂s`` of both losses, as (discriminator on q, on p, generator on q, on p)."""
    leaves = [s.clone().requires_grad_() for s in (s_q, s_p)]
    losses = objective(*leaves)
    return [gradient for loss in losses for gradient in torch.autograd.grad(loss, leaves, retain_graph=True)]


# The sign of each derivative. Descent on L_d raises the logits of the encoder's joint and lowers those of the
# decoder's; descent on L_g does the opposite.
TRUTH_TABLE = [("discriminator", "q", -1), ("discriminator", "p", +1), ("generator", "q", +1), ("generator", "p", -1)]


@every
@pytest.mark.parametrize("row", range(4), ids=[f"{player} on {joint}" for player, joint, _ in TRUTH_TABLE])
def test_the_truth_table_of_signs(objective, row):
    """At logits between the labels 0 and 1, where every objective agrees on the direction."""
    s_q, s_p = 0.05 + 0.9 * torch.rand(2, 8, dtype=F64)
    assert (derivatives(objective, s_q, s_p)[row].sign() == TRUTH_TABLE[row][2]).all()


@pytest.mark.parametrize("objective", [jensen_shannon, relativistic])
@given(batches)
def test_the_signs_hold_at_any_logits(objective, batch):
    for gradient, (_, _, sign) in zip(derivatives(objective, *batch), TRUTH_TABLE, strict=True):
        assert (gradient.sign() == sign).all()


@every
def test_following_the_gradients_moves_the_logits_apart_and_together(objective):
    s_q, s_p = torch.full((4,), 0.5), torch.full((4,), 0.5)
    dq, dp, gq, gp = derivatives(objective, s_q, s_p)
    assert ((s_q - dq) - (s_p - dp) > 0).all()
    assert ((s_q - gq) - (s_p - gp) < 0).all()


@pytest.mark.parametrize(
    ("objective", "discriminator", "generator"),
    [
        (jensen_shannon, 2 * math.log(2), 2 * math.log(2)),
        (least_squares, 0.5, 0.5),
        (relativistic, math.log(2), math.log(2)),
    ],
)
def test_losses_at_logits_of_zero(objective, discriminator, generator):
    losses = objective(torch.zeros(5), torch.zeros(5))
    assert losses.discriminator.item() == pytest.approx(discriminator)
    assert losses.generator.item() == pytest.approx(generator)


@given(batches)
def test_jensen_shannon_is_algorithm_1(batch):
    s_q, s_p = batch
    losses = jensen_shannon(s_q, s_p)
    torch.testing.assert_close(losses.discriminator, -logsigmoid(s_q).mean() - logsigmoid(-s_p).mean())
    torch.testing.assert_close(losses.generator, -logsigmoid(-s_q).mean() - logsigmoid(s_p).mean())


@given(batches)
def test_least_squares_is_the_distance_to_the_labels(batch):
    s_q, s_p = batch
    losses = least_squares(s_q, s_p)
    n = len(s_q)
    torch.testing.assert_close(losses.discriminator, (((s_q - 1) ** 2).sum() + (s_p**2).sum()) / (2 * n))
    torch.testing.assert_close(losses.generator, ((s_q**2).sum() + ((s_p - 1) ** 2).sum()) / (2 * n))


@given(batches, st.floats(-1000, 1000))
def test_relativistic_sees_differences_alone(batch, shift):
    s_q, s_p = batch
    one, other = relativistic(s_q, s_p), relativistic(s_q + shift, s_p + shift)
    torch.testing.assert_close(one.discriminator, other.discriminator)
    torch.testing.assert_close(one.generator, other.generator)
    torch.testing.assert_close(one.discriminator, -logsigmoid((s_q - s_p).clamp(-40, 40)).mean())


@pytest.mark.parametrize(
    ("objective", "swap"),
    [(jensen_shannon, lambda s: -s), (relativistic, lambda s: -s), (least_squares, lambda s: 1 - s)],
)
@given(batches)
def test_the_generators_play_with_the_labels_exchanged(objective, swap, batch):
    s_q, s_p = batch
    swapped = objective(swap(s_q), swap(s_p))
    torch.testing.assert_close(objective(s_q, s_p).generator, swapped.discriminator)


def test_the_optimal_discriminator_reaches_the_jensen_shannon_divergence():
    """``log 2 − L_d/2`` is D_JS at ``s = log q/p``, below it elsewhere; on three points, each as often as likely."""
    q, p = torch.tensor([0.5, 0.25, 0.25], dtype=F64), torch.tensor([0.25, 0.25, 0.5], dtype=F64)
    m = (q + p) / 2
    divergence = 0.5 * ((q * (q / m).log()).sum() + (p * (p / m).log()).sum())
    optimal = (q / p).log()
    from_q, from_p = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2])

    def bound(s):
        return math.log(2) - jensen_shannon(s[from_q], s[from_p]).discriminator / 2

    torch.testing.assert_close(bound(optimal), divergence)
    for _ in range(20):
        assert bound(optimal + torch.randn(3, dtype=F64)) < divergence


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (jensen_shannon, lambda s_q, s_p: [-(-s_q).sigmoid(), s_p.sigmoid(), s_q.sigmoid(), -(-s_p).sigmoid()]),
        (least_squares, lambda s_q, s_p: [s_q - 1, s_p, s_q, s_p - 1]),
        (
            relativistic,
            lambda s_q, s_p: [a * (b * (s_q - s_p)).sigmoid() for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))],
        ),
    ],
)
@pytest.mark.parametrize("logits", [(200, -200), (-200, 200), (200, 190), (-200, -190), (30, -30)], ids=str)
def test_derivatives_are_exact_at_any_logits(objective, expected, logits):
    """In float32, each to 1e-6, and not zero for the objectives that a single pass divides by."""
    s_q, s_p = (torch.tensor([float(s)]) for s in logits)
    for actual, exact in zip(derivatives(objective, s_q, s_p), expected(s_q, s_p), strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-6, atol=1e-6)
        assert actual.isfinite().all()
        assert actual.abs() > 0
