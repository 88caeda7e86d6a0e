"""Linear-Gaussian kernels: closed forms against matrix algebra, Bayes' rule and Monte Carlo."""

import math

import pytest
import torch
from conftest import linear_gaussian
from hypothesis import given
from hypothesis import strategies as st

import halikit as hk
from halikit.kernels import Gaussian, LinearGaussian

F64 = torch.float64
sizes = st.integers(1, 4)
seeds = st.integers(0, 2**31 - 1)

# Draws of every Monte Carlo check, each within 5 standard errors.
N = 20_000


def space(name, size):
    return hk.Space(name, (size,))


def random_gaussian(size):
    factor = torch.randn(size, size, dtype=F64)
    return Gaussian(torch.randn(size, dtype=F64), factor @ factor.T + torch.eye(size, dtype=F64))


def draws(measure, n=N):
    return torch.distributions.MultivariateNormal(measure.mean, measure.covariance).sample((n,))


def log_density(measure, value):
    return torch.distributions.MultivariateNormal(measure.mean, measure.covariance).log_prob(value)


def assert_average(values, expected):
    """The mean of ``(n,)`` values is what is expected, within 5 standard errors."""
    assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(values))


def assert_moments(samples, measure):
    """Mean and covariance of ``(n, d)`` samples, elementwise within 5 standard errors."""
    centred = samples - measure.mean
    products = centred[:, :, None] * centred[:, None, :]
    for values, expected in ((samples, measure.mean), (products, measure.covariance)):
        assert ((values.mean(0) - expected).abs() <= 5 * values.std(0) / math.sqrt(len(samples))).all()


@given(seeds, st.lists(sizes, min_size=3, max_size=5))
def test_composition_follows_the_formulas(seed, dims):
    torch.manual_seed(seed)
    spaces = [space(f"s{i}", d) for i, d in enumerate(dims)]
    kernels = [linear_gaussian(a, b, F64) for a, b in zip(spaces, spaces[1:], strict=False)]
    composite, weight, bias, covariance = kernels[0], kernels[0].weight, kernels[0].bias, kernels[0].covariance
    for k in kernels[1:]:
        composite = k @ composite
        weight, bias = k.weight @ weight, k.weight @ bias + k.bias
        covariance = k.weight @ covariance @ k.weight.T + k.covariance
    assert isinstance(composite, LinearGaussian)
    assert not isinstance(composite, hk.Composite)
    torch.testing.assert_close(composite.weight, weight)
    torch.testing.assert_close(composite.bias, bias)
    torch.testing.assert_close(composite.covariance, covariance)


@torch.no_grad()
def test_the_closed_form_is_what_the_factors_sample():
    a, b = linear_gaussian(space("u", 2), space("v", 3), F64), linear_gaussian(space("v", 3), space("w", 2), F64)
    u = torch.randn(2, dtype=F64)
    expected = Gaussian((b @ a).mean(u), (b @ a).covariance)
    assert_moments(hk.Composite(a, b).sample(u.expand(N, 2)), expected)
    assert_moments((b @ a).sample(u.expand(N, 2)), expected)


@given(seeds, sizes, sizes)
def test_the_density_is_the_multivariate_normal(seed, s, t):
    torch.manual_seed(seed)
    k = linear_gaussian(space("v", s), space("w", t), F64)
    v, w = torch.randn(5, s, dtype=F64), torch.randn(5, t, dtype=F64)
    difference = w - v @ k.weight.T - k.bias
    quadratic = (difference @ k.covariance.inverse() * difference).sum(1)
    expected = -0.5 * (quadratic + k.covariance.logdet() + t * math.log(2 * math.pi))
    torch.testing.assert_close(k.log_prob(w, v), expected)


@given(seeds)
def test_shapes_only_arrange_the_elements(seed):
    torch.manual_seed(seed)
    flat = linear_gaussian(space("v", 4), space("w", 6), F64)
    shaped = hk.LinearGaussianKernel(
        hk.Space("v", (2, 2)), hk.Space("w", (1, 2, 3)), flat.weight, flat.bias, flat.covariance
    )
    v, w = torch.randn(5, 4, dtype=F64), torch.randn(5, 6, dtype=F64)
    torch.testing.assert_close(shaped.log_prob(w.view(5, 1, 2, 3), v.view(5, 2, 2)), flat.log_prob(w, v))
    torch.testing.assert_close(shaped.mean(v.view(5, 2, 2)), flat.mean(v).view(5, 1, 2, 3))
    torch.manual_seed(1)
    sample = shaped.sample(v.view(5, 2, 2))
    torch.manual_seed(1)
    torch.testing.assert_close(sample, flat.sample(v).view(5, 1, 2, 3))


@torch.no_grad()
def test_marginal_and_joint_are_those_of_samples():
    prior, k = random_gaussian(2), linear_gaussian(space("v", 2), space("w", 3), F64)
    v = draws(prior)
    w = k.sample(v)
    assert_moments(w, k.marginal(prior))
    assert_moments(torch.cat([v, w], 1), k.joint(prior))


@given(seeds, sizes, sizes)
def test_bayes_rule_holds_everywhere(seed, s, t):
    """``p(v) p(w|v) = p(w) p(v|w)``."""
    torch.manual_seed(seed)
    prior, k = random_gaussian(s), linear_gaussian(space("v", s), space("w", t), F64)
    posterior = k.posterior(prior)
    v, w = torch.randn(7, s, dtype=F64), torch.randn(7, t, dtype=F64)
    left = log_density(prior, v) + k.log_prob(w, v)
    right = log_density(k.marginal(prior), w) + posterior.log_prob(v, w)
    torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)
    joint = log_density(k.joint(prior), torch.cat([v, w], 1))
    torch.testing.assert_close(joint, left, rtol=1e-7, atol=1e-7)
    assert (posterior.source, posterior.target) == (k.target, k.source)


@given(seeds, sizes, sizes)
def test_the_chain_rule_of_entropy_holds(seed, s, t):
    torch.manual_seed(seed)
    prior, k = random_gaussian(s), linear_gaussian(space("v", s), space("w", t), F64)
    joint = k.joint(prior).entropy
    torch.testing.assert_close(prior.entropy + k.conditional_entropy(), joint)
    torch.testing.assert_close(k.marginal(prior).entropy + k.conditional_entropy(prior), joint)
    torch.testing.assert_close(k.conditional_entropy(prior), k.posterior(prior).conditional_entropy())


@torch.no_grad()
def test_entropies_and_divergences_are_averages_of_log_densities():
    prior, other, k = random_gaussian(2), random_gaussian(2), linear_gaussian(space("v", 2), space("w", 3), F64)
    v = draws(prior)
    w = k.sample(v)
    assert_average(-log_density(prior, v), prior.entropy)
    assert_average(-k.log_prob(w, v), k.conditional_entropy())
    assert_average(-k.posterior(prior).log_prob(v, w), k.conditional_entropy(prior))
    assert_average(log_density(prior, v) - log_density(other, v), prior.kl(other))


@torch.no_grad()
def test_conditional_entropy_grows_along_an_encoder():
    """``H(x|z_l)`` does not decrease in ``l``: each level forgets."""
    prior = random_gaussian(4)
    encoder, entropies = None, []
    for level in range(1, 5):
        step = linear_gaussian(space(f"z{level - 1}", 4 if level == 1 else 3), space(f"z{level}", 3), F64)
        encoder = step if encoder is None else step @ encoder
        entropies.append(encoder.conditional_entropy(prior).item())
    assert entropies == sorted(entropies)
    assert entropies[-1] <= prior.entropy.item()


def test_a_composition_stays_tied_to_its_factors():
    a, b = linear_gaussian(space("u", 2), space("v", 2)), linear_gaussian(space("v", 2), space("w", 2))
    composite = b @ a
    before = composite.weight.detach().clone()
    with torch.no_grad():
        a.weight.mul_(2)
    torch.testing.assert_close(composite.weight.detach(), 2 * before)
    composite.log_prob(torch.randn(4, 2), torch.randn(4, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for k in (a, b) for p in k.parameters())
    assert len(list(composite.parameters())) == 6


def test_composed_with_another_class_it_is_a_composite():
    u, v, w = space("u", 2), space("v", 2), space("w", 2)
    linear, dirac = linear_gaussian(u, v), hk.DeterministicKernel(v, w, torch.nn.Linear(2, 2))
    assert isinstance(dirac @ linear, hk.Composite)
    assert isinstance(linear_gaussian(w, u) @ dirac, hk.Composite)


def test_kernels_made_from_one_tensor_do_not_share_it():
    weight = torch.eye(2)
    first = hk.LinearGaussianKernel(space("u", 2), space("v", 2), weight)
    second = hk.LinearGaussianKernel(space("v", 2), space("w", 2), weight)
    with torch.no_grad():
        first.weight.zero_()
    assert torch.equal(weight, torch.eye(2))
    assert torch.equal(second.weight.detach(), torch.eye(2))


def test_bias_and_covariance_default_to_the_standard_ones():
    k = hk.LinearGaussianKernel(space("u", 2), space("v", 3), torch.ones(3, 2, dtype=F64))
    assert torch.equal(k.bias.detach(), torch.zeros(3, dtype=F64))
    assert torch.equal(k.covariance.detach(), torch.eye(3, dtype=F64))


@pytest.mark.parametrize(
    ("weight", "bias", "covariance", "match"),
    [
        (torch.ones(2, 3), None, None, "weight must be"),
        (torch.ones(3, 2), torch.ones(2), None, "bias must be"),
        (torch.ones(3, 2), None, torch.eye(2), "covariance must be"),
        (torch.ones(3, 2), None, -torch.eye(3), "positive definite"),
        (torch.ones(3, 2), None, torch.zeros(3, 3), "positive definite"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(weight, bias, covariance, match):
    with pytest.raises(ValueError, match=match):
        hk.LinearGaussianKernel(space("u", 2), space("v", 3), weight, bias, covariance)
