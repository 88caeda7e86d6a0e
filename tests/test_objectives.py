"""Objectives as functions of logits: directions, values, symmetries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from halikit.errors import InputError
from halikit.objectives import (
    OBJECTIVES,
    Losses,
    chi2,
    hellinger,
    hinge,
    is_never_flat,
    jensen_shannon,
    kl,
    least_squares,
    losses_of,
    never_flat,
    relativistic,
    reverse_kl,
    setting_of,
    wasserstein,
)

F64 = torch.float64
every = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
declared = pytest.mark.parametrize("objective", [o for o in OBJECTIVES.values() if is_never_flat(o)])
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


@declared
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
        (hinge, 2, 0),
        *((objective, 0, 0) for objective in (wasserstein, kl, reverse_kl, chi2, hellinger)),
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


@declared
@pytest.mark.parametrize("logits", [(200, -200), (-200, 200), (1e9, 1e9), (-1e9, -1e9), (30, -30)], ids=str)
def test_a_declared_objective_has_finite_derivatives_that_are_not_zero(objective, logits):
    """In float32, with ratios and squares that are finite too: the single pass divides by them, and Adam squares."""
    s_q, s_p = (torch.tensor([float(s)]) for s in logits)
    of_d, of_g = torch.stack(derivatives(objective, s_q, s_p)).chunk(2)
    assert (of_d != 0).all()
    assert (of_g / of_d).isfinite().all()
    assert of_d.square().isfinite().all()
    assert all(loss.isfinite() for loss in objective(s_q, s_p))


@every
def test_what_is_declared_is_so(objective):
    """Over logits that meet the labels and pass the margins; what is not declared has a flat place among them."""
    s = torch.linspace(-25, 25, 101, dtype=F64)
    of_d = torch.stack(derivatives(objective, s, s)[:2])
    assert bool((of_d != 0).all()) == is_never_flat(objective)


@pytest.mark.parametrize("objective", [wasserstein, kl, reverse_kl, chi2, hellinger])
@given(batches)
def test_bounds_are_played_as_zero_sum_games(objective, batch):
    losses = objective(*batch)
    assert losses.generator == -losses.discriminator


@given(batches)
def test_hinge_is_the_distance_to_the_margins(batch):
    s_q, s_p = batch
    losses = hinge(s_q, s_p)
    torch.testing.assert_close(losses.discriminator, (1 - s_q).clamp(min=0).mean() + (1 + s_p).clamp(min=0).mean())
    torch.testing.assert_close(losses.generator, s_q.mean() - s_p.mean())


# --- f-divergences ----------------------------------------------------------------------------------------------------

# By the definition D_f = E_p f(u), u = q/p.
F = {
    kl: lambda u: u * u.log(),
    reverse_kl: lambda u: -u.log(),
    chi2: lambda u: (u - 1) ** 2,
    hellinger: lambda u: (u.sqrt() - 1) ** 2,
}
divergences = pytest.mark.parametrize("objective", F)


@divergences
def test_the_optimal_logits_reach_the_divergence(objective):
    """The bound equals D_f at ``s = log q/p`` and is below it elsewhere; on three points, each as often as likely."""
    q, p = torch.tensor([0.5, 0.25, 0.25], dtype=F64), torch.tensor([0.125, 0.25, 0.625], dtype=F64)
    from_q, from_p = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    divergence, optimal = (p * F[objective](q / p)).sum(), (q / p).log()

    def bound(s):
        return objective(s[from_q], s[from_p]).generator

    torch.testing.assert_close(bound(optimal), divergence)
    for _ in range(20):
        assert bound(optimal + torch.randn(3, dtype=F64)) < divergence


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (kl, math.log(1 / 0.8) + (0.8**2 + 0.5**2) / 2 - 0.5),
        (reverse_kl, math.log(0.8) + (1 + 0.5**2) / (2 * 0.8**2) - 0.5),
        (hellinger, 2 - 2 * math.sqrt(2 * 0.8 / 1.64) * math.exp(-(0.5**2) / (4 * 1.64))),
        (chi2, math.exp(0.25 / (2 - 0.64)) / (0.8 * math.sqrt(2 - 0.64)) - 1),
    ],
)
def test_the_divergences_of_two_gaussians(objective, expected):
    """q = N(0.5, 0.8²) is the encoder's joint, p = N(0, 1) the decoder's; on 200,000 quantiles, to 1e-3."""
    q, p = torch.distributions.Normal(0.5, 0.8), torch.distributions.Normal(0.0, 1.0)
    quantiles = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    s_q, s_p = (q.log_prob(x) - p.log_prob(x) for x in (q.icdf(quantiles), p.icdf(quantiles)))
    assert objective(s_q, s_p).generator.item() == pytest.approx(expected, abs=1e-3)


# --- objectives of the user's -----------------------------------------------------------------------------------------


def test_an_objective_is_flat_until_it_is_declared():
    def mine(s_q, s_p):
        return wasserstein(s_q, s_p)

    assert not is_never_flat(mine)
    assert is_never_flat(never_flat(mine))


@pytest.mark.parametrize(
    ("returned", "gives"),
    [
        (lambda q, p: (q.mean(),), r"mine gives \[\(\)\]"),
        (lambda q, p: (q, p), r"\[\(3,\), \(3,\)\]"),
        (lambda q, p: q.mean(), r"\[\(\)\]"),
        (lambda q, p: (1.0, p.mean()), r"\['float', \(\)\]"),
    ],
    ids=["one", "vectors", "no pair", "a float"],
)
def test_what_is_no_pair_of_losses_is_refused(returned, gives):
    def mine(s_q, s_p):
        return returned(s_q, s_p)

    with pytest.raises(InputError, match=f"an objective returns two losses.*{gives}"):
        losses_of(mine, torch.zeros(3), torch.zeros(3))


def test_a_plain_pair_is_two_losses():
    assert losses_of(lambda q, p: (q.sum(), p.sum()), torch.ones(2), torch.zeros(2)) == Losses(
        torch.tensor(2.0), torch.tensor(0.0)
    )


def test_settings_name_objectives():
    assert [setting_of(objective) for objective in OBJECTIVES.values()] == list(OBJECTIVES)
    assert setting_of(lambda q, p: hinge(q, p)) == "custom:lambda"
