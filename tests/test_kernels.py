"""Every kernel class: shapes, randomness, gradients, densities that fit samples, gauges and caps."""

import itertools
import math
from functools import partial

import numpy
import pyro.distributions as dist
import pytest
import torch
from conftest import CATALOGUE, MixtureKernel, Network, cases, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import halikit as hk
from halikit.kernels import NoDensityError

V = hk.Space("v", (3,))

# Significance of every statistical test here; the seed is fixed, so each either always passes or always fails.
ALPHA = 1e-3

DISCRETE = ("bernoulli_hard", "categorical_one_hot", "categorical_index")
FINITE = [case for case in CATALOGUE if case.name.startswith(DISCRETE)]


def on(case, shape):
    """The case's kernel on a target of another shape."""
    return case.kernel(V, hk.Space("w", shape))


def states_of(support, shape):
    """Every state of a discrete space."""
    if support == "index":
        return torch.arange(5)
    if support == "one_hot":
        return torch.eye(*shape)
    size = math.prod(shape)
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size))).reshape(-1, *shape)


# --- shapes and randomness -------------------------------------------------------------------------------------------


@cases()
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 3)], ids=str)
def test_leading_batch_dimensions_pass_through(case, batch):
    kernel = case.kernel()
    given = torch.randn(*batch, *V.shape)
    assert kernel.sample(given).shape == (*batch, *kernel.target.shape)
    assert kernel.mean(given).shape[: len(batch)] == batch
    if case.density:
        distribution = kernel(given)
        assert distribution.batch_shape == batch
        assert distribution.event_shape == kernel.target.shape
        assert kernel.log_prob(distribution.sample(), given).shape == batch


@cases(density=True)
def test_batch_dimensions_do_not_mix(case):
    kernel = case.kernel()
    given = torch.randn(2, 3, *V.shape)
    value = kernel.sample(given)
    each = torch.stack([kernel.log_prob(v, g) for v, g in zip(value.flatten(0, 1), given.flatten(0, 1), strict=True)])
    torch.testing.assert_close(kernel.log_prob(value, given), each.reshape(2, 3))


@cases()
@pytest.mark.parametrize("source", [(), (2, 3), (2, 4, 4)], ids=str)
def test_the_source_may_have_any_shape(case, source):
    kernel = case.kernel(hk.Space("v", source))
    assert kernel.sample(torch.randn(5, *source)).shape == (5, *kernel.target.shape)


@cases()
def test_samples_lie_in_the_support(case):
    sample = case.kernel().sample(torch.randn(64, *V.shape))
    in_support = {
        "real": sample.isfinite(),
        "bits": (sample == 0) | (sample == 1),
        "unit": (sample > 0) & (sample < 1),
        "one_hot": ((sample == 0) | (sample == 1)) & (sample.sum(-1, keepdim=True) == 1) if sample.dim() > 1 else None,
        "simplex": (sample > 0) & ((sample.sum(-1, keepdim=True) - 1).abs() < 1e-5) if sample.dim() > 1 else None,
        "index": (sample >= 0) & (sample < 5) & (sample.dtype == torch.int64),
    }[case.support]
    assert in_support.all()


@cases()
def test_a_seed_fixes_the_sample(case):
    kernel, given = case.kernel(), torch.randn(16, *V.shape)

    def draw(seed):
        torch.manual_seed(seed)
        return kernel.sample(given)

    assert torch.equal(draw(1), draw(1))
    assert torch.equal(draw(1), draw(2)) != case.noisy


@cases()
def test_a_generator_fixes_the_sample_and_leaves_the_global_one_alone(case):
    kernel, given = case.kernel(), torch.randn(16, *V.shape)
    before = torch.get_rng_state()
    one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    first = kernel.sample(given, generator=one)
    assert torch.equal(first, kernel.sample(given, generator=two))
    assert torch.equal(first, kernel.sample(given, generator=one)) != case.noisy
    assert torch.equal(torch.get_rng_state(), before)


@cases(reparametrised=True)
def test_reparametrised_samples_pass_gradients(case):
    kernel = case.kernel()
    given = torch.randn(8, *V.shape, requires_grad=True)
    (kernel.sample(given) * torch.randn(8, *kernel.target.shape)).sum().backward()
    assert given.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in kernel.parameters())


@cases(reparametrised=False)
def test_indices_pass_no_gradient(case):
    given = torch.randn(8, *V.shape, requires_grad=True)
    draw = case.kernel().sample(given)
    assert not draw.requires_grad
    assert draw.dtype == torch.int64


@pytest.mark.parametrize("make", [hk.BernoulliKernel, hk.CategoricalKernel])
def test_hard_samples_pass_the_gradient_of_their_probabilities(make):
    kernel, given, weight = make(V, hk.Space("y", (4,)), Network(V, 4)), torch.randn(8, 3), torch.randn(8, 4)
    draw = kernel.sample(given)
    assert set(draw.unique().tolist()) == {0.0, 1.0}
    through = torch.autograd.grad((draw * weight).sum(), list(kernel.parameters()))
    expected = torch.autograd.grad((kernel.mean(given) * weight).sum(), list(kernel.parameters()))
    for found, right in zip(through, expected, strict=True):
        torch.testing.assert_close(found, right)


# --- relaxations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
def test_relaxed_draws_have_finite_densities_and_gradients_at_any_temperature(temperature):
    """Logits of standard deviation 3: 42 % of torch's own draws at T = 0.1 have no finite density, of ours none."""
    logits = 3 * torch.randn(5000, 10)
    theirs = dist.RelaxedOneHotCategorical(torch.tensor(temperature), logits=logits, validate_args=False)
    without = (~theirs.log_prob(theirs.rsample()).isfinite()).float().mean().item()
    if temperature == 0.1:
        assert without == pytest.approx(0.42, abs=0.03)
    fixed = Raw(*[0.0] * 10)
    fixed.out = logits.requires_grad_()
    for make in (hk.CategoricalKernel, hk.BernoulliKernel):
        kernel = make(V, hk.Space("y", (10,)), fixed, temperature=temperature)
        draws = kernel.sample(torch.zeros(5000, 3))
        log_density = kernel.log_prob(draws, torch.zeros(5000, 3))
        assert log_density.isfinite().all()
        assert (draws > 0).all()
        (gradient,) = torch.autograd.grad(log_density.sum() + draws.square().sum(), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("make", [hk.CategoricalKernel, hk.BernoulliKernel])
@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_cold_relaxations_have_the_density_of_their_draws(make, temperature):
    """``E q'(w)/q(w) = 1`` over 20,000 draws, within 5 standard errors, also where entries are at the floor."""
    here, near = 3 * torch.randn(1, 6), 0.3 * torch.randn(1, 6)
    kernels = []
    for logits in (here, here + near):
        fixed = Raw(*[0.0] * 6)
        fixed.out = logits
        kernels.append(make(V, hk.Space("y", (6,)), fixed, temperature=temperature))
    given = torch.zeros(20_000, 3)
    draws = kernels[0].sample(given)
    ratio = (kernels[1].log_prob(draws, given) - kernels[0].log_prob(draws, given)).double().exp()
    assert ratio.std() > 0.01
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(20_000)


def test_relaxations_stay_in_single_precision_under_autocast():
    for make in (hk.CategoricalKernel, hk.BernoulliKernel):
        kernel, given = make(V, hk.Space("y", (4,)), Network(V, 4), temperature=0.1), torch.randn(64, 3)
        with torch.autocast("cpu", torch.bfloat16):
            draws = kernel.sample(given)
            log_density = kernel.log_prob(draws, given)
        assert draws.dtype == log_density.dtype == torch.float32
        assert log_density.isfinite().all()


@cases(density=True)
def test_densities_pass_gradients_to_every_parameter(case):
    kernel = case.kernel()
    given = torch.randn(8, *V.shape)
    kernel.log_prob(kernel.sample(given).detach(), given).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in kernel.parameters())


@cases(exact_mean=True)
def test_samples_average_to_the_mean(case):
    """Within 5 standard errors, elementwise, of 4,000 draws."""
    kernel, given = case.kernel(), torch.randn(*V.shape)
    with torch.no_grad():
        samples = kernel.sample(given.expand(4000, *V.shape))
        mean = kernel.mean(given)
    error = samples.std(0) / math.sqrt(4000) if case.noisy else torch.zeros(())
    assert ((samples.mean(0) - mean).abs() <= 5 * error + 1e-6).all()


def test_means_of_relaxed_and_index_kernels():
    given, network = torch.randn(7, 3), Network(V, 4)
    logits = network(given)
    y = hk.Space("y", (4,))
    torch.testing.assert_close(hk.BernoulliKernel(V, y, network, temperature=0.5).mean(given), logits.sigmoid())
    torch.testing.assert_close(hk.CategoricalKernel(V, y, network, temperature=0.5).mean(given), logits.softmax(-1))
    assert torch.equal(hk.CategoricalKernel(V, hk.Space("y", ()), network).mean(given), logits.argmax(-1))


def test_a_mean_unknown_to_the_distribution_is_the_draw_at_fixed_noise():
    kernel, given = MixtureKernel(V, hk.Space("w", (2,))), torch.randn(5, 3)
    assert kernel.representative == "draw at fixed noise"
    assert torch.equal(kernel.mean(given), kernel.mean(given))
    before = torch.get_rng_state()
    kernel.mean(given)
    assert torch.equal(torch.get_rng_state(), before)


# --- densities -------------------------------------------------------------------------------------------------------


@cases(density=False)
def test_a_kernel_without_a_density_refuses_to_give_one(case):
    kernel, given = case.kernel(), torch.randn(4, *V.shape)
    for ask in (lambda: kernel(given), lambda: kernel.log_prob(kernel.sample(given), given)):
        with pytest.raises(NoDensityError, match=f"{type(kernel).__name__} and has no density") as refused:
            ask()
        assert str(kernel) in str(refused.value)
    assert not isinstance(kernel, hk.DensityKernel)


@cases(density=True)
def test_kernels_with_a_density_say_so_in_their_type(case):
    assert isinstance(case.kernel(), hk.DensityKernel)


def _line(case, points):
    """A grid over the one free coordinate, the states on it, and its spacing."""
    if case.support == "real":
        grid = torch.linspace(-40, 40, points, dtype=torch.float64)
        return grid, grid[:, None]
    # Logistic coordinates: relaxed densities may peak at both ends.
    grid = torch.linspace(-36, 36, points, dtype=torch.float64)
    unit = grid.sigmoid()
    return grid, unit[:, None] if case.support == "unit" else torch.stack([unit, 1 - unit], 1)


def _density_on_line(case, given, points=20_001):
    """The kernel on its one-dimensional space, the states' free coordinate and the CDF there by the trapezoid rule."""
    kernel = on(case, (2,) if case.support == "simplex" else (1,)).double()
    grid, states = _line(case, points)
    with torch.no_grad():
        log_density = kernel.log_prob(states, given.double().expand(points, 3))
    if case.support != "real":
        log_density = log_density + nn.functional.logsigmoid(grid) + nn.functional.logsigmoid(-grid)
    density = log_density.exp()
    mass = torch.cumulative_trapezoid(density, grid)
    return kernel, states[:, 0], torch.cat([torch.zeros(1, dtype=torch.float64), mass])


@cases(density=True, exclude=DISCRETE)
def test_densities_integrate_to_one_on_a_line(case):
    _, _, mass = _density_on_line(case, torch.randn(3))
    assert mass[-1].item() == pytest.approx(1, abs=1e-5)


# The grid is too coarse for the kink of a Laplace.
@cases(density=True, support="real", exclude=["laplace"])
def test_densities_integrate_to_one_on_a_plane(case):
    kernel = on(case, (2,)).double()
    grid = torch.linspace(-30, 30, 401, dtype=torch.float64)
    plane = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        density = kernel.log_prob(plane, torch.randn(3).double().expand(len(plane), 3)).exp()
    assert (density.sum() * (grid[1] - grid[0]) ** 2).item() == pytest.approx(1, abs=1e-4)


@cases(density=True, exclude=DISCRETE)
def test_samples_follow_their_densities_on_a_line(case):
    """Kolmogorov–Smirnov on 2,000 draws against the integrated density."""
    kernel, coordinate, mass = _density_on_line(case, torch.zeros(3))
    with torch.no_grad():
        samples = kernel.sample(torch.zeros(2000, 3, dtype=torch.float64))[:, 0].numpy()
    cdf = partial(numpy.interp, xp=coordinate.numpy(), fp=mass.numpy())
    assert stats.kstest(samples, cdf).pvalue > ALPHA


@pytest.mark.parametrize("case", FINITE, ids=str)
def test_probabilities_sum_to_one_and_samples_have_them(case):
    """Chi-square on 4,000 draws, on a discrete space small enough to list."""
    shape = {"bits": (3,), "one_hot": (4,), "index": ()}[case.support]
    kernel, given = on(case, shape), torch.randn(3)
    states = states_of(case.support, shape)
    with torch.no_grad():
        probabilities = kernel.log_prob(states, given.expand(len(states), 3)).exp()
        samples = kernel.sample(given.expand(4000, 3))
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    counts = (samples.reshape(4000, 1, -1) == states.reshape(1, len(states), -1)).all(-1).sum(0)
    assert counts.sum() == 4000
    expected = 4000 * probabilities.double() / probabilities.double().sum()
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > ALPHA


@cases(density=True, support="real")
def test_samples_fit_densities_in_any_shape(case):
    """``E exp(log q'(w) − log q(w)) = 1`` for samples of q and a neighbouring density q', within 5 standard errors."""
    kernel = case.kernel().double()
    here, near = torch.zeros(3).double(), torch.full((3,), 0.02).double()
    with torch.no_grad():
        samples = kernel.sample(here.expand(4000, 3))
        ratio = (kernel.log_prob(samples, near.expand(4000, 3)) - kernel.log_prob(samples, here.expand(4000, 3))).exp()
    assert ratio.std() > 0
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(4000)


# --- Gaussian kernels: scales and gauges ------------------------------------------------------------------------------


raw_scales = st.floats(allow_nan=False, width=32)


class Raw(nn.Module):
    """Gives the means and raw scales that it is told to."""

    def __init__(self, *columns):
        super().__init__()
        self.out = torch.tensor([columns], dtype=torch.float32)

    def forward(self, given):
        return self.out.expand(len(given), -1)


@given(raw_scales, st.floats(0.01, 10))
def test_the_cap_holds_for_any_raw_scale(raw, cap):
    kernel = hk.GaussianKernel(V, hk.Space("w", (1,)), Raw(0.0, raw), max_scale=cap)
    scale = kernel.scale(torch.zeros(2, 3))
    assert (scale > 0).all()
    assert (scale <= cap * (1 + 1e-6)).all()


@given(raw_scales)
def test_scales_without_a_cap_are_bounded_too(raw):
    kernel = hk.GaussianKernel(V, hk.Space("w", (1,)), Raw(0.0, raw))
    scale = kernel.scale(torch.zeros(2, 3))
    assert (scale >= math.exp(-3) * (1 - 1e-6)).all()
    assert (scale <= math.exp(3) * (1 + 1e-6)).all()


@given(st.floats(-1e3, 1e3, width=32), st.floats(-30, 30, width=32), st.floats(0.01, 0.99))
def test_variance_preserving_means_shrink_as_the_scale_grows(mean, raw, cap):
    kernel = hk.GaussianKernel(
        V, hk.Space("w", (1,)), Raw(mean, raw), gauge="variance_preserving", max_scale=cap
    ).eval()
    moments = kernel.moments(torch.zeros(2, 3))
    expected = mean / math.sqrt(1 + kernel.norm.eps) * (1 - moments.scale.square()).sqrt()
    torch.testing.assert_close(moments.mean, expected, rtol=1e-4, atol=1e-6)


def test_isotropic_kernels_have_one_scale_per_sample():
    kernel = gaussian(V, hk.Space("w", (2, 4, 4)), scale="isotropic")
    scale = kernel.scale(torch.randn(5, 3)).flatten(1)
    assert scale.shape == (5, 32)
    assert torch.equal(scale, scale[:, :1].expand(5, 32))
    assert len(scale[:, 0].unique()) == 5


def test_diagonal_kernels_have_one_scale_per_element():
    scale = gaussian(V, hk.Space("w", (4,))).scale(torch.randn(5, 3))
    assert len(scale.unique()) == 20


def test_a_fixed_scale_is_the_scale():
    kernel = gaussian(V, hk.Space("w", (2, 3)), scale=0.3)
    assert torch.equal(kernel.scale(torch.randn(5, 3)), torch.full((5, 2, 3), 0.3))
    assert kernel(torch.randn(5, 3)).variance.allclose(torch.tensor(0.09))


def test_maps_split_into_means_and_scales_along_the_channels():
    space = hk.Space("x", (1, 4, 4))
    network = nn.Conv2d(1, 4, 3, padding=1)
    kernel = hk.GaussianKernel(space, hk.Space("w", (2, 4, 4)), network)
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(kernel.mean(x), network(x)[:, :2])


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4), (2, 3), ()], ids=str)
def test_a_standardised_gauge_standardises_each_batch(shape):
    kernel = gaussian(V, hk.Space("w", shape), gauge="standardised", max_scale=0.5).train()
    mean = kernel.mean(torch.randn(256, 3))
    channels = mean.reshape(256, shape[0] if shape else 1, -1)
    assert channels.mean((0, 2)).abs().max() < 1e-5
    assert (channels.var((0, 2), unbiased=False) - 1).abs().max() < 1e-2


def test_a_variance_preserving_gauge_keeps_unit_variance():
    """Exactly so where the scale is the same for all; 20,000 draws, 3 %."""
    kernel = gaussian(V, hk.Space("w", (4,)), scale=0.6, gauge="variance_preserving").train()
    with torch.no_grad():
        sample = kernel.sample(torch.randn(20_000, 3))
    assert (sample.var(0) - 1).abs().max() < 0.03
    assert sample.mean(0).abs().max() < 0.03


@cases(gauge=True)
def test_a_gauge_has_no_density_in_training_mode(case):
    kernel, given = case.kernel(), torch.randn(4, 3)
    value = kernel.sample(given)
    assert kernel.log_prob(value, given).isfinite().all()
    kernel.train()
    with pytest.raises(RuntimeError, match="eval"):
        kernel.log_prob(value, given)
    assert kernel.sample(given).shape == value.shape


@cases(gauge=True)
def test_a_gauge_refuses_a_training_batch_of_one(case):
    kernel = case.kernel().train()
    with pytest.raises(ValueError, match="batch of one"):
        kernel.sample(torch.randn(1, 3))
    assert kernel.eval().sample(torch.randn(1, 3)).isfinite().all()


@cases(gauge=True)
def test_a_gauge_couples_a_batch_in_training_only(case):
    kernel, given = case.kernel(), torch.randn(4, 3)
    changed = torch.cat([given[:1] + 1, given[1:]])
    assert torch.equal(kernel.mean(given)[1:], kernel.mean(changed)[1:])
    kernel.train()
    assert not torch.equal(kernel.mean(given)[1:], kernel.mean(changed)[1:])


@cases(gauge=False)
def test_without_a_gauge_training_mode_changes_nothing(case):
    kernel, given = case.kernel(), torch.randn(4, 3)
    torch.manual_seed(1)
    expected = kernel.sample(given)
    torch.manual_seed(1)
    assert torch.equal(kernel.train().sample(given), expected)
    assert kernel.sample(given[:1]).shape == expected[:1].shape


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": float("nan")},
        {"scale": "full"},
        {"gauge": "whitened"},
        {"max_scale": 0.0},
        {"scale": 0.3, "max_scale": 0.5},
        {"gauge": "variance_preserving"},
        {"gauge": "variance_preserving", "max_scale": 1.0},
        {"gauge": "variance_preserving", "scale": 1.5},
    ],
    ids=str,
)
def test_scales_and_gauges_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"T_\{w\|v\}"):
        hk.GaussianKernel(V, hk.Space("w", (2,)), Network(V, 4), **options)


# --- the other classes -----------------------------------------------------------------------------------------------


def test_a_deterministic_kernel_with_noise_has_a_density_on_the_same_network():
    dirac = hk.DeterministicKernel(V, hk.Space("x", (2, 3)), Network(V, 6)).eval()
    noisy = dirac.with_noise(0.5)
    given = torch.randn(4, 3)
    assert noisy.network is dirac.network
    assert not noisy.training
    assert torch.equal(noisy.mean(given), dirac.sample(given))
    expected = -0.5 * (0.7 / 0.5) ** 2 * 6 - 6 * math.log(0.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(noisy.log_prob(dirac.sample(given) + 0.7, given), torch.full((4,), expected))


@pytest.mark.parametrize("make", [hk.BernoulliKernel, hk.CategoricalKernel])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(make, temperature):
    with pytest.raises(ValueError, match="temperature"):
        make(V, hk.Space("y", (4,)), Network(V, 4), temperature=temperature)


def test_classes_live_in_vectors_or_scalars():
    with pytest.raises(ValueError, match="one-hot"):
        hk.CategoricalKernel(V, hk.Space("y", (2, 2)), Network(V, 4))
    with pytest.raises(ValueError, match="index cannot be relaxed"):
        hk.CategoricalKernel(V, hk.Space("y", ()), Network(V, 4), temperature=0.5)


@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1))
def test_cold_relaxations_draw_what_hard_kernels_would(seed):
    torch.manual_seed(seed)
    network, given = Network(V, 4), torch.randn(8, 3)
    y = hk.Space("y", (4,))
    cold = hk.CategoricalKernel(V, y, network, temperature=1e-3).sample(given)
    assert (cold.max(-1).values > 0.5).all()
    assert ((cold.max(-1).values > 0.99).float().mean()) >= 0.5


@cases(exclude=["user"])
@pytest.mark.parametrize("shape", [(6, 4), (4,), ()], ids=str)
def test_what_does_not_fit_the_source_is_refused(case, shape):
    with pytest.raises(ValueError, match=r"takes \(\.\.\., 3\)"):
        case.kernel().sample(torch.randn(shape))


def test_a_network_of_the_wrong_width_is_refused_with_both_numbers():
    kernel = hk.GaussianKernel(V, hk.Space("w", (4,)), Network(V, 4))
    with pytest.raises(ValueError, match=r"\(5, 4\).*2 × 4"):
        kernel.sample(torch.randn(5, 3))


def test_a_subclass_of_density_kernel_needs_forward_and_one_of_kernel_needs_sample():
    with pytest.raises(TypeError, match="forward"):
        type("Incomplete", (hk.DensityKernel,), {})(V, V)
    with pytest.raises(TypeError, match="sample"):
        type("Incomplete", (hk.Kernel,), {})(V, V)
