"""log p(x): against the evidence of linear-Gaussian hierarchies, sums over classes, and Pyro's importance sampling."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, density_ladder, gaussian, linear_hierarchy, opaque, tiny_ladder
from pyro.infer import Importance
from torch import Tensor

import halikit as hk
from halikit.analysis.importance import CHUNK
from halikit.analysis.likelihood import log_likelihood
from halikit.errors import InputError
from halikit.kernels import Gaussian
from halikit.priors import make_prior
from halikit.supervision import with_classes

F64 = torch.float64
levels_1_to_3 = pytest.mark.parametrize("levels", [1, 2, 3])


def evidence(hierarchy: Iterable[hk.Link], x: Tensor) -> Tensor:
    """``log p(x)`` of a linear-Gaussian hierarchy, one level after another, ``(n,)``."""
    measure = Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    for link in reversed(list(hierarchy)):
        measure = link.down.marginal(measure)
    return torch.distributions.MultivariateNormal(measure.mean, measure.covariance).log_prob(x).detach()


@levels_1_to_3
def test_linear_gaussian_hierarchies_give_the_evidence(levels: int) -> None:
    hierarchy, x = linear_hierarchy(levels), torch.randn(5, 3, dtype=F64)
    found = log_likelihood(hierarchy, x)
    assert (found.kind, found.num_draws, found.effective_sample_sizes) == ("exact", 0, None)
    torch.testing.assert_close(found.values, evidence(hierarchy, x))
    assert "exact" in str(found)


@levels_1_to_3
@pytest.mark.parametrize("proposal", ["mixture", "encoder", "decoder"])
def test_bounds_lie_below_and_come_up(levels: int, proposal: str) -> None:
    """Means over 100 data; the mixture of 1,024 draws is within 0.3 nats of the evidence."""
    hierarchy = linear_hierarchy(levels)
    x = hierarchy.sample(100).detach()
    exact = evidence(hierarchy, x)
    few, many = (log_likelihood(opaque(hierarchy), x, num_samples=number, proposal=proposal) for number in (2, 1024))
    gaps = [float((exact - found.values).mean()) for found in (few, many)]
    errors = [float((exact - found.values).std()) / 100**0.5 for found in (few, many)]
    assert few.kind == many.kind == "lower bound"
    assert many.draws.proposal == proposal
    assert gaps[0] > 3 * errors[0]
    assert gaps[1] > -5 * errors[1]
    assert gaps[1] < gaps[0]
    if proposal == "mixture":
        assert gaps[1] < 0.3


def near_posterior(levels: int) -> hk.Hierarchy:
    """A hierarchy without closed forms, whose encoder is the posterior with twice its covariance."""
    hierarchy = linear_hierarchy(levels)
    wide = [widened(kernel, 2) for kernel in posteriors(hierarchy)]
    return opaque(hk.Hierarchy(map(hk.Link, wide, (widened(link.down, 1) for link in hierarchy)))).double()


def widened(kernel: hk.LinearGaussianKernel, factor: float) -> hk.LinearGaussianKernel:
    """A copy that is in no link, with a larger covariance."""
    return hk.LinearGaussianKernel(kernel.source, kernel.target, kernel.weight, kernel.bias, factor * kernel.covariance)


def posteriors(hierarchy: hk.Hierarchy) -> list[hk.LinearGaussianKernel]:
    """``p(z_1|x), p(z_2|z_1), …`` by Bayes' rule."""
    measure, found = Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)), []
    for link in reversed(list(hierarchy)):
        found.append(link.down.posterior(measure))
        measure = link.down.marginal(measure)
    return found[::-1]


@pytest.mark.parametrize("proposal", ["mixture", "encoder", "decoder"])
def test_the_mean_weight_is_the_density(proposal: str) -> None:
    """``E p̂ = p`` within 5 standard errors of 20,000 estimates of 4 draws each, for one datum at L = 2."""
    hierarchy = near_posterior(2)
    x = torch.tensor([[0.3, -0.5, 0.8]], dtype=F64)
    found = log_likelihood(hierarchy, x.expand(20_000, 3), num_samples=4, proposal=proposal)
    ratios = (found.values - evidence(transparent(hierarchy), x)).exp()
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / 20_000**0.5
    assert ratios.std() / 20_000**0.5 < 0.02


def test_the_exact_posterior_as_a_kernel_needs_no_second_draw() -> None:
    hierarchy, x = linear_hierarchy(2), torch.randn(6, 3, dtype=F64)
    found = log_likelihood(opaque(hierarchy), x, num_samples=8, proposal=hk.Composite(*posteriors(hierarchy)))
    torch.testing.assert_close(found.values, evidence(hierarchy, x))
    torch.testing.assert_close(found.effective_sample_sizes, torch.full((6,), 8.0, dtype=F64))


@levels_1_to_3
@torch.no_grad()
def test_it_agrees_with_pyros_importance_sampling(levels: int) -> None:
    """One datum, 200 draws of the encoder in Pyro and 2,048 here: within four standard errors, of ``1/√ESS`` each."""
    hierarchy, x = near_posterior(levels), torch.tensor([[0.3, -0.5, 0.8]], dtype=F64)
    posterior = Importance(hierarchy.model, hierarchy.guide, num_samples=200).run(x)
    theirs, size = posterior.get_log_normalizer().item(), posterior.get_ESS().item()
    assert size > 10
    for proposal in ("encoder", "mixture"):
        ours = log_likelihood(hierarchy, x, num_samples=2048, proposal=proposal)
        error = (1 / size + 1 / ours.draws.effective_sample_size) ** 0.5
        assert float(ours.values[0]) == pytest.approx(theirs, abs=4 * error)


def test_classes_on_top_are_summed_over() -> None:
    """``p(x) = Σ_y p(y) p(x|y)`` by the closed form, with the relaxed classes of the game in the encoder."""
    below = linear_hierarchy(1, dtype=torch.float32)
    hierarchy = with_classes(below, 3).eval()
    with torch.no_grad():
        hierarchy.links[1].down.network[0].weight.mul_(2)
        x = hierarchy.sample(20)
        down, top = hierarchy.links[0].down, hierarchy.links[1].down
        parts = []
        for y in torch.eye(3):
            law = top(y[None])
            marginal = down.marginal(Gaussian(law.mean[0], law.variance[0].diag()))
            parts.append(torch.distributions.MultivariateNormal(marginal.mean, marginal.covariance).log_prob(x))
        exact = torch.stack(parts).logsumexp(0) - math.log(3)
    found = log_likelihood(hierarchy, x, num_samples=8192)
    assert found.draws.proposal == "mixture"
    torch.testing.assert_close(found.values, exact, atol=0.15, rtol=0)


def test_the_prior_is_the_users() -> None:
    """A Laplace prior over one element: quadrature on a grid."""
    x_space, z_space = hk.Space("x", (1,)), hk.Space("z1", (1,))
    link = hk.Link(gaussian(x_space, z_space), gaussian(z_space, x_space, scale=0.5))
    hierarchy = hk.Hierarchy([link], dist.Laplace(torch.zeros(1), torch.ones(1)).to_event(1)).eval()
    x, grid = torch.tensor([[0.3], [-1.0]]), torch.linspace(-12, 12, 4801)
    with torch.no_grad():
        log_p = torch.stack([link.down.log_prob(each.expand(4801, 1), grid[:, None]) for each in x])
        exact = (log_p - grid.abs() - math.log(2)).logsumexp(1) + math.log(24 / 4800)
    torch.testing.assert_close(log_likelihood(hierarchy, x, num_samples=4096).values, exact, atol=0.1, rtol=0)


def test_a_decoder_without_densities_between_draws_alone() -> None:
    hierarchy = density_ladder(1, (4,))
    z1, z2 = hierarchy.spaces[-1], hk.Space("z2", (2,))
    blind = hk.DeterministicKernel(z2, z1, Network(z2, z1.size))
    own = hk.Hierarchy([*hierarchy, hk.Link(gaussian(z1, z2), blind)]).eval()
    found = log_likelihood(own, torch.randn(5, 4), num_samples=64)
    assert found.draws.proposal == "decoder"
    assert found.values.isfinite().all()
    with pytest.raises(hk.NoDensityError, match=r"T_\{z1\|z2\} has no density, so the encoder cannot draw"):
        log_likelihood(own, torch.randn(5, 4), proposal="encoder")


def test_without_an_observation_scale_there_is_none() -> None:
    hierarchy, x = tiny_ladder(2, (1, 4, 4)).eval(), torch.rand(20, 1, 4, 4)
    with pytest.raises(hk.NoDensityError, match="give a scale"):
        log_likelihood(hierarchy, x)
    found = log_likelihood(hierarchy, x, scale=0.3, most=128)
    assert found.values.shape == found.effective_sample_sizes.shape == (20,)
    with pytest.raises(InputError, match="mixture, encoder, decoder or a kernel, got 'prior'"):
        log_likelihood(hierarchy, x, scale=0.3, proposal="prior")


def test_draws_and_data_come_in_pieces() -> None:
    """More draws than pass through the networks at once, from the same seed: the same bound as in one piece."""
    hierarchy = opaque(linear_hierarchy(1))
    x, done = torch.randn(3, 3, dtype=F64), []
    number = CHUNK + 10
    found = log_likelihood(hierarchy, x, num_samples=number, on_progress=lambda *state: done.append(state))
    torch.testing.assert_close(found.values, evidence(transparent(hierarchy), x), atol=0.1, rtol=0)
    assert done == sorted(done)
    assert done[-1] == (3 * number, 3 * number)
    assert found.num_draws == number


def transparent(hierarchy: hk.Hierarchy) -> list[hk.Link]:
    """The links inside a hierarchy without closed forms."""
    return [hk.Link(link.up.kernel, link.down.kernel) for link in hierarchy]


@pytest.mark.parametrize("kind", ["standard_normal", "uniform", "mixture", "flow"])
def test_every_prior_that_ships_has_a_likelihood(kind: str) -> None:
    """``E p̂ = p``: the decoder's own draws and the mixture agree within 0.2 nats at 4,096 draws."""
    hierarchy = density_ladder(1, (3,), widths=[2])
    own = hk.Hierarchy(hierarchy.links, make_prior(kind, hierarchy.spaces[-1])).eval()
    x = torch.zeros(3, 3)
    found = [log_likelihood(own, x, num_samples=4096, proposal=proposal).values for proposal in ("mixture", "decoder")]
    torch.testing.assert_close(*found, atol=0.2, rtol=0)


class Around(hk.DensityKernel):
    """``N(given, 0.5²)``, from a space to another of the same shape."""

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        return dist.Normal(given, 0.5).to_event(1)


def test_the_density_outside_a_uniform_prior_is_zero() -> None:
    """Against the closed form, at data whose encodings lie outside of [−√3, √3] in part."""
    torch.manual_seed(0)
    x_space, z_space = hk.Space("x", (1,)), hk.Space("z1", (1,))
    links = [hk.Link(Around(x_space, z_space), Around(z_space, x_space))]
    hierarchy = hk.Hierarchy(links, hk.priors.Uniform(z_space)).eval()
    x, end = torch.tensor([[0.0], [1.7], [2.5]]), math.sqrt(3)
    noise = torch.distributions.Normal(0.0, 0.5)
    exact = ((noise.cdf(end - x) - noise.cdf(-end - x)) / (2 * end)).log().squeeze(1)
    for proposal in ("mixture", "encoder"):
        found = log_likelihood(hierarchy, x, num_samples=4096, proposal=proposal)
        torch.testing.assert_close(found.values, exact, atol=0.1, rtol=0)


def test_states_outside_a_support_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relaxed bits of the encoder have no density under hard bits of the prior."""
    x_space, z_space = hk.Space("x", (3,)), hk.Space("z1", (2,))
    up = hk.BernoulliKernel(x_space, z_space, Network(x_space, 2), temperature=0.5)
    prior = dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)
    hierarchy = hk.Hierarchy([hk.Link(up, gaussian(z_space, x_space))], prior).eval()
    # The first compilation of a process turns the checks of torch off.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    with pytest.raises(hk.NoDensityError, match="outside its support") as refusal:
        log_likelihood(hierarchy, torch.randn(4, 3))
    assert not torch.distributions.Distribution._validate_args
    assert "\n" not in str(refusal.value)
    assert log_likelihood(hierarchy, torch.randn(4, 3), proposal="decoder").values.isfinite().all()
