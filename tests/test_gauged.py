"""The gauge for any kernel: what it draws, its density, its sleep loss, and what is refused."""

import math

import pyro.distributions as dist
import pytest
import torch
from conftest import MixtureKernel, Network, UniformKernel, gaussian
from torch import nn

import halikit as hk

V, W = hk.Space("v", (3,)), hk.Space("w", (4,))


class NormalKernel(hk.DensityKernel):
    """The Gaussian of a network of mean and raw scale, as a user would write it; its scale is below 0.5."""

    def __init__(self, source=V, target=W, network=None):
        super().__init__(source, target)
        self.network = network or Network(source, 2 * target.size)

    def forward(self, given):
        mean, raw = self.network(given).reshape(len(given), 2, *self.target.shape).transpose(0, 1)
        return dist.Normal(mean, 1e-3 + (0.5 - 1e-3) * raw.sigmoid()).to_event(self.target.rank)


class LaplaceKernel(NormalKernel):
    def forward(self, given):
        mean, _ = self.network(given).reshape(len(given), 2, *self.target.shape).transpose(0, 1)
        return dist.Laplace(mean, 0.2).to_event(self.target.rank)


class Spread(UniformKernel):
    """Knows mean and standard deviation, but no density."""

    def mean(self, given):
        return self.network(given)

    def stddev(self, given):
        return torch.full((len(given), *self.target.shape), 1 / math.sqrt(12))


def settled(kernel):
    """In evaluation mode, with running statistics of standard normal states."""
    with torch.no_grad():
        for _ in range(100):
            kernel.train().sample(torch.randn(128, *kernel.source.shape))
    return kernel.eval()


KINDS = {
    "normal vp": lambda: hk.gauged(NormalKernel(), "variance_preserving"),
    "normal standardised": lambda: hk.gauged(NormalKernel(), "standardised"),
    "laplace vp": lambda: hk.gauged(LaplaceKernel(), "variance_preserving"),
    "mixture": lambda: hk.gauged(MixtureKernel(V, W), "standardised"),
    "image": lambda: hk.gauged(LaplaceKernel(V, hk.Space("w", (2, 3, 3))), "variance_preserving"),
    "uniform": lambda: hk.gauged(UniformKernel(V, W), "standardised"),
    "uniform with mean": lambda: hk.gauged(Spread(V, W), "variance_preserving"),
    "deterministic": lambda: hk.gauged(hk.DeterministicKernel(V, W, Network(V, 4)), "standardised"),
}
DENSITIES = ("normal vp", "normal standardised", "laplace vp", "mixture", "image")


@pytest.mark.parametrize("gauge", ["standardised", "variance_preserving"])
@pytest.mark.parametrize(
    "options", [{"max_scale": 0.5}, {"scale": 0.3}, {"scale": "isotropic", "max_scale": 0.5}], ids=str
)
def test_a_gauged_gaussian_is_the_gaussian_with_that_gauge(gauge, options):
    plain = gaussian(V, W, **options)
    wrapped, given = hk.gauged(plain, gauge), torch.randn(16, 3)
    built = hk.GaussianKernel(V, W, plain.network, gauge=gauge, **options)
    for mode in (True, False):
        for a, b in zip(wrapped.train(mode).moments(given), built.train(mode).moments(given), strict=True):
            assert torch.equal(a, b)
    assert isinstance(wrapped, hk.GaussianKernel)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in plain.parameters()}


@pytest.mark.parametrize("gauge", ["standardised", "variance_preserving"])
def test_the_gauge_of_any_kernel_is_that_of_a_gaussian(gauge):
    """Mean, standard deviation, density and sleep loss of a user's normal kernel and of the built-in one agree."""
    built = gaussian(V, W, max_scale=0.5, gauge=gauge)
    wrapped = hk.gauged(NormalKernel(network=built.network), gauge)
    given, target = torch.randn(32, 3), torch.randn(32, 4)
    torch.testing.assert_close(wrapped.train().mean(given), built.train().mean(given))
    if built.scale(given).min() > 0.1:  # the floor of the built-in loss
        torch.testing.assert_close(wrapped.sleep_loss(target, given), built.sleep_loss(target, given))
    settled(wrapped), settled(built)
    built.norm.load_state_dict(wrapped.map.norm.state_dict())
    torch.testing.assert_close(wrapped.mean(given), built.mean(given))
    torch.testing.assert_close(wrapped.log_prob(target, given), built.log_prob(target, given))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_a_location_and_a_scale(kind):
    """In training: mean 0, and variance 1 where it is preserved or draws are normalised; 20,000 draws."""
    kernel = KINDS[kind]().train()
    with torch.no_grad():
        draws = kernel.sample(torch.randn(20_000, 3))
    channels = draws.reshape(len(draws), kernel.target.shape[0], -1)
    assert channels.mean((0, 2)).abs().max() < 0.03
    variance = channels.var((0, 2))
    if kind == "normal standardised":
        assert ((variance > 1) & (variance < 1.25)).all()
    else:
        assert (variance - 1).abs().max() < 0.05


@pytest.mark.parametrize("kind", DENSITIES)
def test_densities_fit_draws_in_evaluation(kind):
    """``E exp(log q'(w) − log q(w)) = 1`` for draws of q and a neighbour q', within 5 standard errors of 20,000."""
    kernel = settled(KINDS[kind]())
    here, near = torch.zeros(20_000, 3), torch.full((20_000, 3), 0.03)
    with torch.no_grad():
        draws = kernel.sample(here)
        ratio = (kernel.log_prob(draws, near) - kernel.log_prob(draws, here)).exp()
        distribution = kernel(here)
    assert ratio.std() > 0
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))
    torch.testing.assert_close(distribution.log_prob(draws), kernel.log_prob(draws, here))


@pytest.mark.parametrize("kind", DENSITIES)
def test_densities_need_evaluation_mode_and_training_needs_a_batch(kind):
    kernel = KINDS[kind]()
    with pytest.raises(RuntimeError, match="couple the samples and no density of one sample exists"):
        kernel.train()(torch.randn(4, 3))
    with pytest.raises(ValueError, match="cannot train on a batch of one"):
        kernel.sample(torch.randn(1, 3))
    assert kernel.eval().sample(torch.randn(1, 3)).isfinite().all()
    assert kernel.sample(torch.randn(0, 3)).shape == (0, *kernel.target.shape)


@pytest.mark.parametrize("kind", DENSITIES)
def test_the_sleep_loss_is_the_density_under_the_statistics_of_the_batch(kind):
    """In evaluation mode it is the negative log-density per element; in training it is defined and trains."""
    kernel, given = settled(KINDS[kind]()), torch.randn(64, 3)
    target = kernel.sample(given).detach()
    expected = -kernel.log_prob(target, given) / kernel.target.size
    torch.testing.assert_close(kernel.sleep_loss(target, given), expected, rtol=1e-4, atol=1e-4)
    kernel.train().sleep_loss(target, given).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in kernel.parameters())
    assert any(p.grad.abs().sum() > 0 for p in kernel.parameters())


def test_the_sleep_loss_without_a_density_is_the_squared_error_of_the_mean():
    kernel, given = hk.gauged(Spread(V, W), "variance_preserving").train(), torch.randn(64, 3)
    target = torch.randn(64, 4)
    torch.testing.assert_close(kernel.sleep_loss(target, given), (target - kernel.mean(given)).square().mean(1))
    assert not hk.gauged(UniformKernel(V, W), "standardised").has_sleep_loss


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_for_the_mean_is_deterministic(kind):
    for kernel in (KINDS[kind]().train(), settled(KINDS[kind]())):
        given = torch.randn(16, 3)
        before = [buffer.clone() for buffer in kernel.buffers()]
        assert torch.equal(kernel.mean(given), kernel.mean(given))
        if not kernel.knows_mean or not kernel.training:
            assert all(torch.equal(a, b) for a, b in zip(before, kernel.buffers(), strict=True))


def test_a_gauged_kernel_is_saved_and_cast():
    kernel = settled(KINDS["laplace vp"]())
    other = KINDS["laplace vp"]().eval()
    other.load_state_dict(kernel.state_dict())
    given = torch.randn(5, 3)
    assert torch.equal(other.mean(given), kernel.mean(given))
    assert kernel.double().sample(given.double()).dtype == torch.float64


class Logistic(UniformKernel):
    def sample(self, given, *, generator=None):
        return self.network(given)


def wide(out):
    return dist.Laplace(out, 1.0).to_event(1)


@pytest.mark.parametrize(
    ("make", "gauge", "words"),
    [
        (lambda: MixtureKernel(V, W), "variance_preserving", "does not know its mean.*use the standardised gauge"),
        (
            lambda: hk.DeterministicKernel(V, W, nn.Linear(3, 4)),
            "variance_preserving",
            r"neither a density nor a method stddev",
        ),
        (
            lambda: hk.LinearGaussianKernel(V, W, torch.ones(4, 3), covariance=2 * torch.eye(4)),
            "variance_preserving",
            r"standard deviation below 1, and T_\{w\|v\} has 1.41",
        ),
        (lambda: hk.BernoulliKernel(V, W, nn.Linear(3, 4)), "standardised", "discrete states.*needs no gauge"),
        (lambda: hk.CategoricalKernel(V, hk.Space("w", ()), nn.Linear(3, 4)), "standardised", "needs no gauge"),
        (lambda: gaussian(V, W), "variance_preserving", "needs a scale bounded below 1"),
        (lambda: gaussian(V, W, gauge="standardised"), "standardised", "has a standardised gauge already"),
        (lambda: NormalKernel(), "whitened", "gauge is None, 'standardised' or 'variance_preserving', got 'whitened'"),
    ],
)
def test_what_cannot_have_a_gauge_is_refused(make, gauge, words):
    with pytest.raises(ValueError, match=words) as refused:
        hk.gauged(make(), gauge)
    assert "\n" not in str(refused.value)
