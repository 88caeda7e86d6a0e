"""Both joints as Pyro programs: trace, condition, replay, importance sampling and the evidence lower bound."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import MixtureKernel, Network, density_ladder, gaussian, linear_hierarchy, moved, tiny_ladder
from pyro import poutine
from pyro.infer import Importance, Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights

import halikit as hk
from halikit.kernels import Gaussian, NoDensityError
from halikit.supervision import with_classes

pytestmark = pytest.mark.filterwarnings("error")

levels_1_to_4 = pytest.mark.parametrize("levels", range(1, 5))
stacks = pytest.mark.parametrize(
    ("shape", "options"),
    [((5,), {}), ((1, 4, 4), {}), ((1, 8, 8), {"family": "conv"})],
    ids=["vector", "dense image", "conv image"],
)


@pytest.fixture(autouse=True)
def _the_parameter_store_stays_empty():
    pyro.clear_param_store()
    yield
    assert not list(pyro.get_param_store().keys())


def sites(trace):
    """The sampled sites without plates."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name != "batch"}


def log_prob_by_hand(h, states, joint):
    """Eq. 3 or Eq. 4 as a sum of the kernels' log-densities, ``(n,)``."""
    total = torch.zeros(len(states["x"]))
    if joint == "p":
        total = total + h.prior().log_prob(states[h.spaces[-1].name])
    for link in h:
        lower, upper = states[link.up.source.name], states[link.up.target.name]
        total = total + (link.up.log_prob(upper, lower) if joint == "q" else link.down.log_prob(lower, upper))
    return total


# --- trace ------------------------------------------------------------------------------------------------------------


@stacks
@levels_1_to_4
def test_traces_have_a_site_per_space_and_the_sum_of_the_kernels_log_densities(levels, shape, options):
    h = density_ladder(levels, shape, **options)
    x = torch.randn(3, *shape)
    names = {space.name for space in h.spaces}
    programs = {
        "q": [(h.encoder_joint, x, names), (h.guide, x, names - {"x"})],
        "p": [(h.decoder_joint, 3, names), (h.model, x, names)],
    }
    for joint, several in programs.items():
        for program, argument, expected in several:
            trace = poutine.trace(program).get_trace(argument)
            assert set(sites(trace)) == expected
            assert trace.nodes["batch"]["type"] == "sample"
            states = {"x": x} | {name: site["value"] for name, site in sites(trace).items()}
            assert all(states[space.name].shape == (3, *space.shape) for space in h.spaces)
            trace.compute_log_prob()
            assert all(site["log_prob"].shape == (3,) for site in sites(trace).values())
            by_hand = log_prob_by_hand(h, states, joint)
            torch.testing.assert_close(trace.log_prob_sum(), by_hand.sum(), rtol=1e-4, atol=1e-3)


def test_only_the_model_observes_the_data():
    h = density_ladder(2, (5,))
    x = torch.randn(3, 5)
    for program, argument in ((h.model, x), (h.guide, x), (h.encoder_joint, x), (h.decoder_joint, 3)):
        trace = poutine.trace(program).get_trace(argument)
        observed = [name for name, site in sites(trace).items() if site["is_observed"]]
        assert observed == (["x"] if program == h.model else [])


def test_programs_return_their_states_from_the_data_up():
    h = density_ladder(3, (5,))
    x = torch.randn(3, 5)
    assert list(h.encoder_joint(x)) == list(h.decoder_joint(3)) == list(h.model(x)) == ["x", "z1", "z2", "z3"]
    assert list(h.guide(x)) == ["z1", "z2", "z3"]
    assert torch.equal(h.encoder_joint(x)["x"], x)
    assert torch.equal(h.model(x)["x"], x)


def test_programs_and_methods_draw_from_the_same_joints():
    """Means and spreads of all states agree within 5 standard errors of 4,000 draws."""
    h = density_ladder(2, (5,))
    with torch.no_grad():
        for one, other in (
            (h.decoder_joint(4000), h.sample_states(4000)),
            (h.encoder_joint(torch.ones(4000, 5)), h.encode(torch.ones(4000, 5), sample=True)),
        ):
            for name in ("z1", "z2"):
                for power in (1, 2):
                    a, b = one[name] ** power, other[name] ** power
                    error = ((a.var(0) + b.var(0)) / 4000).sqrt()
                    assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()


# --- condition and replay ---------------------------------------------------------------------------------------------


@stacks
@levels_1_to_4
def test_condition_fixes_any_state(levels, shape, options):
    h = density_ladder(levels, shape, **options)
    for space in h.spaces:
        value = torch.randn(3, *space.shape)
        conditioned = poutine.condition(h.decoder_joint, {space.name: value})
        trace = poutine.trace(conditioned).get_trace(3)
        assert torch.equal(trace.nodes[space.name]["value"], value)
        assert trace.nodes[space.name]["is_observed"]
        assert trace.log_prob_sum().isfinite()


@stacks
@levels_1_to_4
def test_replay_runs_one_joint_through_the_states_of_the_other(levels, shape, options):
    h = density_ladder(levels, shape, **options)
    x = torch.randn(3, *shape)
    guide = poutine.trace(h.guide).get_trace(x)
    model = poutine.trace(poutine.replay(h.model, trace=guide)).get_trace(x)
    for space in h.spaces[1:]:
        assert torch.equal(model.nodes[space.name]["value"], guide.nodes[space.name]["value"])
    encoded = poutine.trace(h.encoder_joint).get_trace(x)
    decoded = poutine.trace(poutine.replay(h.decoder_joint, trace=encoded)).get_trace(3)
    assert torch.equal(decoded.nodes["x"]["value"], x)
    ratio = decoded.log_prob_sum() - encoded.log_prob_sum()
    states = {name: site["value"] for name, site in sites(encoded).items()}
    expected = (log_prob_by_hand(h, states, "p") - log_prob_by_hand(h, states, "q")).sum()
    torch.testing.assert_close(ratio, expected, rtol=1e-4, atol=1e-3)


# --- the evidence lower bound -----------------------------------------------------------------------------------------


@stacks
@levels_1_to_4
@pytest.mark.parametrize(
    "elbo", [Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True)], ids=["one particle", "vectorised"]
)
def test_the_evidence_lower_bound_differentiates_every_parameter(levels, shape, options, elbo):
    h = moved(density_ladder(levels, shape, **options))
    loss = elbo.differentiable_loss(h.model, h.guide, torch.randn(4, *shape))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in h.parameters())


@levels_1_to_4
def test_the_bound_is_the_mean_log_ratio(levels):
    h = density_ladder(levels, (5,))
    x = torch.randn(6, 5)
    torch.manual_seed(1)
    loss = Trace_ELBO().differentiable_loss(h.model, h.guide, x)
    torch.manual_seed(1)
    states = {"x": x, **h.guide(x)}
    expected = (log_prob_by_hand(h, states, "q") - log_prob_by_hand(h, states, "p")).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)


@levels_1_to_4
def test_a_torch_optimiser_reduces_the_loss(levels):
    """A VAE of any depth: the loss falls by a tenth of its size at least in 150 steps."""
    h = density_ladder(levels, (5,), gauge=None, max_scale=None)
    x = torch.randn(64, 2) @ torch.randn(2, 5)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True)
    optimiser = torch.optim.Adam(h.parameters(), lr=5e-3)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = elbo.differentiable_loss(h.model, h.guide, x)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_exact_posterior_as_guide_gives_the_exact_evidence():
    """With ``q(z|x) = p(z|x)`` every draw of the bound is the evidence itself."""
    x_space, z_space = hk.Space("x", (3,)), hk.Space("z1", (2,))
    down = hk.LinearGaussianKernel(z_space, x_space, torch.randn(3, 2), torch.randn(3), 0.5 * torch.eye(3))
    prior = Gaussian(torch.zeros(2), torch.eye(2))
    h = hk.Hierarchy([hk.Link(down.posterior(prior), down)])
    x = torch.randn(4, 3)
    loss = Trace_ELBO().differentiable_loss(h.model, h.guide, x)
    marginal = down.marginal(prior)
    torch.testing.assert_close(-loss, dist.MultivariateNormal(marginal.mean, marginal.covariance).log_prob(x).sum())


# --- importance sampling ----------------------------------------------------------------------------------------------


@levels_1_to_4
@torch.no_grad()
def test_importance_sampling_recovers_the_evidence(levels):
    """``log p(x)`` of a linear-Gaussian hierarchy, with an encoder near the posterior.

    Within 4 relative standard errors, ``1/√ESS``, of 300 draws one by one and of 20,000 vectorised.
    """
    h = linear_hierarchy(levels)
    measure = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    posteriors = []
    for link in reversed(list(h)):
        posteriors.append(link.down.posterior(measure))
        measure = link.down.marginal(measure)
    near = hk.Hierarchy(
        hk.Link(widened(q, 1.5), widened(link.down, 1.0)) for q, link in zip(reversed(posteriors), h, strict=True)
    ).double()
    x = torch.randn(1, 3, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(measure.mean, measure.covariance).log_prob(x).sum()
    posterior = Importance(near.model, near.guide, num_samples=300).run(x)
    ess = posterior.get_ESS().item()
    assert 50 < ess < 300
    assert posterior.get_log_normalizer().item() == pytest.approx(exact.item(), abs=4 / math.sqrt(ess))
    log_weights, *_ = vectorized_importance_weights(
        near.model, near.guide, x, num_samples=20_000, max_plate_nesting=1, normalized=False
    )
    estimate = log_weights.logsumexp(0) - math.log(20_000)
    assert estimate.item() == pytest.approx(exact.item(), abs=4 * math.sqrt(300 / ess / 20_000))


def widened(kernel, factor):
    """A free copy of the kernel with a larger covariance: of a posterior, one that still covers it."""
    return hk.LinearGaussianKernel(kernel.source, kernel.target, kernel.weight, kernel.bias, factor * kernel.covariance)


# --- other kernels and what has no density ----------------------------------------------------------------------------


def test_users_kernels_and_bits_work_in_pyro():
    x, z1, z2 = hk.Space("x", (2, 3)), hk.Space("z1", (3,)), hk.Space("z2", (2,))
    h = hk.Hierarchy(
        [
            hk.Link(MixtureKernel(x, z1), hk.BernoulliKernel(z1, x, Network(z1, 6))),
            hk.Link(gaussian(z1, z2), MixtureKernel(z2, z1)),
        ]
    )
    x = torch.randint(0, 2, (4, 2, 3)).float()
    loss = Trace_ELBO(num_particles=2, vectorize_particles=True).differentiable_loss(h.model, h.guide, x)
    loss.backward()
    assert all(p.grad is not None for p in h.parameters())
    assert Importance(h.model, h.guide, num_samples=5).run(x).get_log_normalizer().isfinite()


def test_a_kernel_without_a_density_says_so_and_a_gauge_in_training_too():
    h = tiny_ladder(2, (5,)).eval()
    x = torch.randn(3, 5)
    with pytest.raises(NoDensityError, match=r"T_\{x\|z1\}"):
        h.model(x)
    assert set(h.guide(x)) == {"z1", "z2"}
    with pytest.raises(RuntimeError, match="eval"):
        density_ladder(2, (5,)).train().guide(x)


def with_relaxed_classes(levels=1, classes=4):
    """Classes on top, relaxed as the game needs them, over Gaussian levels without a gauge."""
    return moved(with_classes(density_ladder(levels, (5,), gauge=None, max_scale=None), classes)).eval()


def test_classes_on_top_are_sites_of_every_program():
    h, x = with_relaxed_classes(2), torch.randn(6, 5)
    encoded = poutine.trace(h.encoder_joint).get_trace(x)
    for trace in (encoded, *(poutine.trace(program).get_trace(x) for program in (h.guide, h.model))):
        y = trace.nodes["y"]["value"]
        assert torch.equal(y, torch.nn.functional.one_hot(y.argmax(1), 4).float())
    decoded = poutine.trace(poutine.replay(h.decoder_joint, trace=encoded)).get_trace(6)
    decoded.compute_log_prob()
    torch.testing.assert_close(decoded.nodes["y"]["log_prob"], torch.full((6,), -math.log(4)))
    encoded.compute_log_prob()
    logits = h.links[-1].up.logits(encoded.nodes["z2"]["value"])
    expected = (logits.log_softmax(1) * encoded.nodes["y"]["value"]).sum(1)
    torch.testing.assert_close(encoded.nodes["y"]["log_prob"], expected)
    # The game still draws relaxed classes.
    assert not torch.equal(h.encode(x, sample=True)["y"], h.encode(x, sample=True)["y"].round())


@torch.no_grad()
def test_importance_sampling_with_classes_recovers_the_evidence():
    """Against a sum over classes and a mean over 20,000 draws of z1: within 0.1 nats, for one datum."""
    h, x = with_relaxed_classes(), torch.zeros(1, 5)
    top, down = h.links[1].down, h.links[0].down
    y = torch.eye(4).repeat_interleave(20_000, 0)
    exact = down.log_prob(x.expand(80_000, 5), top.sample(y)).logsumexp(0) - math.log(80_000)
    log_weights, *_ = vectorized_importance_weights(
        h.model, h.guide, x, num_samples=50_000, max_plate_nesting=1, normalized=False
    )
    assert (log_weights.logsumexp(0) - math.log(50_000)).item() == pytest.approx(exact.item(), abs=0.1)
    assert Importance(h.model, h.guide, num_samples=5).run(x).get_log_normalizer().isfinite()


@pytest.mark.parametrize(
    "elbo", [Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True)], ids=["one particle", "vectorised"]
)
def test_the_evidence_bound_reaches_the_classes(elbo):
    h, x = with_relaxed_classes(), torch.randn(6, 5)
    elbo.differentiable_loss(h.model, h.guide, x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in h.parameters())


def test_a_prior_of_the_users_is_the_top_site():
    h = density_ladder(1, (5,))
    prior = dist.Laplace(torch.zeros(3), torch.ones(3)).to_event(1)
    own = hk.Hierarchy(h.links, prior)
    trace = poutine.trace(own.decoder_joint).get_trace(4)
    z = trace.nodes["z1"]["value"]
    trace.compute_log_prob()
    expected = -z.abs().sum(1) - 3 * math.log(2)
    torch.testing.assert_close(trace.nodes["z1"]["log_prob"], expected)
