"""The sleep phase: its laws, each kernel's form of it, its weights, and its place in the game and in training."""

from __future__ import annotations

import copy
import csv
import math
import tomllib
from collections.abc import Callable
from contextlib import nullcontext

import pyro.distributions as dist
import pytest
import torch
from children import _no_child_survives as _no_child_survives
from children import command
from conftest import (
    KernelCase,
    MixtureKernel,
    Network,
    UniformKernel,
    cases,
    composite,
    configured,
    gaussian,
    gradients,
    linear_gaussian,
    relative_error,
    tiny_ladder,
    without_machine_code,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import halikit as hk
from halikit.algorithm import add_both_gradients, play
from halikit.config import ConfigError, GameSettings, override
from halikit.errors import InputError
from halikit.hardware import recompute
from halikit.hardware.hardware import Hardware
from halikit.hardware.recompute import recompute_activations
from halikit.kernels import Gaussian
from halikit.presets import PRESETS, families
from halikit.training.extra_losses import StepContext
from halikit.training.game import GameMethod, penalty_weight, players_of
from halikit.training.sleep import RULE, sleep_loss, sleep_phase, sleep_weights

EXACT = 1e-10
SEED = 11
FLOOR = 0.1
DIGITS = (1, 8, 8)

modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def spaces(*sizes: int) -> list[hk.Space]:
    return [hk.Space(f"z{level}" if level else "x", (size,)) for level, size in enumerate(sizes)]


def small(levels: int = 2, shape: tuple[int, ...] = DIGITS, **settings: object) -> hk.Model:
    torch.manual_seed(0)
    conv = settings.get("model.family") == "conv"
    config = configured(
        **{"model.levels": levels, "data_shape": shape, "widths": (4,) * levels, "hidden": 4 if conv else 16},
        **{"model.depth": 1, "discriminator.width": 16, "steps": 4, "batch_size": 12},
        **{"log_every": 2, "evaluate_every": 4, "checkpoint_every": 2},
    )
    return hk.build(override(config, settings))


def batch(n: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, *DIGITS, generator=torch.Generator().manual_seed(1)).tanh().to(dtype)


# --- the laws ---------------------------------------------------------------------------------------------------------


def decoder_first(levels: int, size: int = 3) -> tuple[hk.Hierarchy, Gaussian]:
    """A random linear-Gaussian decoder under a standard normal prior, its exact posteriors as the encoder."""
    places = spaces(*range(size + levels, size - 1, -1))
    measure = Gaussian(torch.zeros(size).double(), torch.eye(size).double())
    links, top = [], measure
    for lower, upper in reversed(list(zip(places, places[1:], strict=False))):
        down = linear_gaussian(upper, lower, torch.float64)
        links.append(hk.Link(down.posterior(measure), down))
        measure = down.marginal(measure)
    return hk.Hierarchy(reversed(links)).double().eval(), top


def normalised(inputs: int, outputs: int) -> nn.Module:
    """Affine in evaluation mode."""
    return nn.Sequential(nn.Linear(inputs, 5), nn.BatchNorm1d(5), nn.Linear(5, outputs))


FORMS: dict[str, tuple[Callable[[int, int], nn.Module], dict[str, object]]] = {
    "fixed": (nn.Linear, {"scale": 0.4}),
    "fitted": (nn.Linear, {"scale": "fitted"}),
    "isotropic": (nn.Linear, {"scale": "isotropic", "max_scale": 0.8}),
    "diagonal": (nn.Linear, {}),
    "standardised": (nn.Linear, {"gauge": "standardised", "max_scale": 0.9}),
    "variance preserving": (nn.Linear, {"gauge": "variance_preserving", "max_scale": 0.9}),
    "batch norm": (normalised, {}),
}


def affine(lower: hk.Space, upper: hk.Space, form: str) -> hk.GaussianKernel:
    """In evaluation mode its mean is affine and its scales, at least 0.1, are constant."""
    make, options = FORMS[form]
    outputs = upper.size * (2 if options.get("scale", "diagonal") in ("diagonal", "isotropic") else 1)
    kernel = hk.GaussianKernel(lower, upper, make(lower.size, outputs), **options).double()
    with torch.no_grad():
        last = kernel.network[-1] if form == "batch norm" else kernel.network
        last.weight[upper.size :] = 0
        for norm in kernel.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.uniform_(-1, 1)
                norm.running_var.uniform_(0.5, 2)
    return kernel


@torch.no_grad()
def closed_form(kernel: hk.GaussianKernel) -> hk.LinearGaussianKernel:
    """The same in evaluation mode, read off where it leads."""
    kernel = copy.deepcopy(kernel).eval()
    size = kernel.source.size
    origin, *ends = kernel.mean(torch.cat([torch.zeros(1, size), torch.eye(size)]).double())
    scale = kernel.scale(torch.zeros(1, size).double())[0]
    assert scale.min() > FLOOR
    weight = torch.stack([end - origin for end in ends], 1)
    return hk.LinearGaussianKernel(kernel.source, kernel.target, weight, origin, scale.square().diag())


def encoder_first(
    levels: int, form: str, data: Gaussian | None = None, make: Callable[..., hk.GaussianKernel] = affine
) -> tuple[hk.Hierarchy, Gaussian]:
    """Gaussian kernels up from normal data, and as the decoder the exact way back."""
    places = spaces(*range(levels + 2, 1, -1))
    if data is None:
        factor = torch.randn(levels + 2, levels + 2).double()
        data = Gaussian(torch.randn(levels + 2).double(), factor @ factor.T / 4 + torch.eye(levels + 2).double())
    measure, links = data, []
    for lower, upper in zip(places, places[1:], strict=False):
        up = make(lower, upper, form)
        links.append(hk.Link(up, closed_form(up).posterior(measure)))
        measure = closed_form(up).marginal(measure)
    prior = dist.MultivariateNormal(measure.mean.detach(), measure.covariance.detach())
    h = hk.Hierarchy(links, prior).double().eval()
    return h, measure


@torch.no_grad()
def exact_draw(h: hk.Hierarchy, top: Gaussian) -> dict[str, Tensor]:
    """Points whose mean and covariance are exactly the joint's, and that are symmetric about the mean.

    The mean over them of anything quadratic is its expectation, and so is that of anything odd about the mean.
    """
    sizes = [space.size for space in reversed(h.spaces)]
    axes = math.sqrt(sum(sizes)) * torch.eye(sum(sizes), dtype=torch.float64)
    noise = dict(
        zip([space.name for space in reversed(h.spaces)], torch.cat([axes, -axes]).split(sizes, 1), strict=True)
    )
    z = top.mean + noise[h.spaces[-1].name] @ torch.linalg.cholesky(top.covariance).T
    states = {h.spaces[-1].name: z}
    for link in reversed(list(h)):
        down = link.down
        assert isinstance(down, hk.LinearGaussianKernel)
        z = down.mean(z) + noise[down.target.name] @ torch.linalg.cholesky(down.covariance).T
        states[down.target.name] = z
    return states


def encoder_gradients(h: hk.Hierarchy, states: dict[str, Tensor], weights: tuple[float, ...]) -> dict[str, Tensor]:
    parameters = {f"{i}.{name}": p for i, link in enumerate(h) for name, p in link.up.named_parameters()}
    found = torch.autograd.grad(sleep_loss(h, states, weights), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def check_stationary(h: hk.Hierarchy, top: Gaussian) -> None:
    """Where the joints agree every expected gradient is zero; wherever a parameter moves, its own is not."""
    states, weights = exact_draw(h, top), tuple(0.5 + level for level in range(len(h)))
    for name, gradient in encoder_gradients(h, states, weights).items():
        assert gradient.abs().max() < 1e-9, name
    for i, link in enumerate(h):
        for name, parameter in link.up.named_parameters():
            with torch.no_grad():
                before = parameter.clone()
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert encoder_gradients(h, states, weights)[f"{i}.{name}"].abs().max() > 1e-3, name
            with torch.no_grad():
                parameter.copy_(before)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1000))
def test_where_the_joints_agree_the_expected_gradient_is_zero(levels, size, seed):
    torch.manual_seed(seed)
    check_stationary(*decoder_first(levels, size))


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_of_gaussian_kernels_in_evaluation_mode(levels, form):
    check_stationary(*encoder_first(levels, form))


def test_the_points_have_the_moments_of_the_joint():
    """What the tests above rest on."""
    h, top = decoder_first(2)
    states = exact_draw(h, top)
    drawn = h.sample_states(200_000)
    everything = [torch.cat([each[space.name] for space in h.spaces], 1) for each in (states, drawn)]
    torch.testing.assert_close(everything[0].T.cov(correction=0), everything[1].T.cov(), atol=0.1, rtol=0.05)
    torch.testing.assert_close(everything[0].mean(0), everything[1].mean(0), atol=0.05, rtol=0)


def test_its_least_value_is_the_conditional_entropy():
    """``S`` where the joints agree is ``Σ w_l H(z_l|z_{l−1}) / size``, and more elsewhere."""
    h, top = decoder_first(2)
    states = exact_draw(h, top)
    entropies = [link.up.conditional_entropy() / link.up.target.size for link in h]
    least = sleep_loss(h, states, (1.0, 0.5))
    torch.testing.assert_close(least, entropies[0] + 0.5 * entropies[1], atol=1e-9, rtol=0)
    with torch.no_grad():
        for parameter in h.links[1].up.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert sleep_loss(h, states, (1.0, 0.5)) > least + 1e-5


# --- the bias of batch statistics -------------------------------------------------------------------------------------


def settled(lower: hk.Space, upper: hk.Space, form: str) -> hk.GaussianKernel:
    """An affine kernel whose running statistics are those of standard normal data."""
    kernel = affine(lower, upper, form)
    with torch.no_grad():
        if form == "batch norm":
            first, norm = kernel.network[:2]
            norm.running_mean.copy_(first.bias)
            norm.running_var.copy_(first.weight.square().sum(1))
        else:
            kernel.norm.running_mean.copy_(kernel.network.bias[: upper.size])
            kernel.norm.running_var.copy_(kernel.network.weight[: upper.size].square().sum(1))
    return kernel


def bias_of_batch_statistics(form: str, n: int, batches: int, seed: int = 0) -> tuple[float, float]:
    """How far the expected gradient in training mode is from zero, where the joints agree with running statistics.

    Statistics are those of ``x``, and the loss is quadratic in each element of ``z``: the mean of ``z = m + σ`` and
    ``z = m − σ`` is the expectation over ``p(z|x)``. That over ``x`` is sampled.

    Args:
        form: Of the encoder's kernel, from 3 elements to 2.
        n: Size of a batch.
        batches: How many.
        seed: Of kernel and batches.

    Returns:
        The norm of the mean gradient and its standard error, in units of the root mean square norm of the gradient of
        one sample.
    """
    torch.manual_seed(seed)
    h, _ = encoder_first(1, form, Gaussian(torch.zeros(3).double(), torch.eye(3).double()), settled)
    up = h.links[0].up
    parameters = list(up.parameters())

    def gradient(states: dict[str, Tensor]) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(sleep_loss(h, states, (1.0,)), parameters)])

    draws = h.sample_states(500)
    alone = [gradient({name: z[i : i + 1] for name, z in draws.items()}) for i in range(500)]
    unit = float(torch.stack(alone).square().sum(1).mean().sqrt())

    def expected(x: Tensor) -> Tensor:
        mean, scale = (moment.detach() for moment in up.eval().moments(x))
        up.train()
        return (gradient({"x": x, "z1": mean + scale}) + gradient({"x": x, "z1": mean - scale})) / 2

    found = torch.stack([expected(h.sample_states(n)["x"]) for _ in range(batches)]) / unit
    mean, variance = found.mean(0), found.var(0) / batches
    # The square of a mean is too much by its variance.
    norm = float((mean.square() - variance).sum().clamp_min(1e-24).sqrt())
    return norm, float((mean.square() * variance).sum().sqrt()) / norm


GAUGED = ["standardised", "variance preserving", "batch norm"]


def check_bias(form: str, batches: int, tolerance: float) -> None:
    (few, error_few), (many, error_many) = (bias_of_batch_statistics(form, n, batches) for n in (32, 128))
    print(f"{form}: {few:.5f} ± {error_few:.5f} at 32, {many:.5f} ± {error_many:.5f} at 128, ratio {few / many:.2f}")
    assert 10 * error_few < few < 0.1
    assert 10 * error_many < many
    assert few / many == pytest.approx(4, rel=tolerance)


@pytest.mark.parametrize("form", GAUGED[:1])
def test_the_bias_of_batch_statistics_falls_with_the_batch(form):
    check_bias(form, 300, 0.2)


@pytest.mark.soak
@pytest.mark.parametrize("form", GAUGED)
def test_the_bias_of_batch_statistics_falls_with_the_batch_measured_well(form):
    check_bias(form, 5_000, 0.15)


# --- whom it reaches, and what it leaves alone ------------------------------------------------------------------------

STACKS: dict[str, Callable[[], hk.Hierarchy]] = {
    "dense": lambda: tiny_ladder(3, (6,)),
    "convolutional": lambda: tiny_ladder(3, (1, 16, 16), family="conv"),
    "linear": lambda: decoder_first(3)[0].float(),
    "composites": lambda: of_kernels(composite),
    "classes": lambda: of_kernels(lambda lower, upper: hk.CategoricalKernel(lower, upper, Network(lower, upper.size))),
}


def of_kernels(*ups: Callable[[hk.Space, hk.Space], hk.Kernel], sizes: tuple[int, ...] = (3, 4, 2, 2)) -> hk.Hierarchy:
    """These kernels up, the last of them at all levels that follow, and Gaussian ones down."""
    places = spaces(*sizes)
    makers = [*ups, *[ups[-1]] * (len(sizes) - 1 - len(ups))]
    pairs = zip(makers, places, places[1:], strict=False)
    return hk.Hierarchy([hk.Link(make(lower, upper), gaussian(upper, lower)) for make, lower, upper in pairs])


@modes
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS.keys())
@pytest.mark.parametrize("weights", [(1.0, 2.0, 0.5), (0.0, 1.0, 0.0)], ids=["all", "the second"])
def test_it_reaches_the_encoders_weighted_levels_and_nothing_else(stack, weights, training):
    h = stack().train(training)
    states = h.sample_states(8)
    assert states["x"].requires_grad
    sleep_loss(h, states, weights).backward()
    for link, weight in zip(h, weights, strict=True):
        assert all(g is None for g in gradients(link.down))
        found = gradients(link.up)
        assert all((g is not None) == bool(weight) for g in found)
        if weight:
            assert sum(float(g.abs().sum()) for g in found) > 0


def test_it_does_not_reach_the_prior():
    h = tiny_ladder(1, (4,))
    h = hk.Hierarchy(list(h), hk.priors.Mixture(h.spaces[-1], 2))
    sleep_loss(h, h.sample_states(8), (1.0,)).backward()
    assert all(g is None for g in gradients(h.prior))
    assert all(g is not None for g in gradients(h.links[0].up))


@modes
def test_levels_add_up_with_their_weights(training):
    h = tiny_ladder(3, (6,)).double().train(training)
    states = {name: state.detach() for name, state in h.sample_states(8).items()}
    apart = [sleep_loss(h, states, [float(i == level) for i in range(3)]) for level in range(3)]
    for level, link in enumerate(h):
        own = copy.deepcopy(link.up).sleep_loss(states[link.up.target.name], states[link.up.source.name])
        assert own.shape == (8,)
        torch.testing.assert_close(apart[level], own.mean())
    together = sleep_loss(h, states, (1.0, 2.0, 0.5))
    torch.testing.assert_close(together, apart[0] + 2 * apart[1] + 0.5 * apart[2])
    assert sleep_loss(h, states, (0.0, 0.0, 0.0)) == 0


class Counting(nn.Module):
    """A user's module with buffers that every forward moves, one in place and one by another tensor."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("centre", torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
        return self.layer(x - self.centre)


def counting() -> hk.Hierarchy:
    x, z = spaces(6, 4)
    up = hk.GaussianKernel(x, z, Counting(6, 8), gauge="standardised", max_scale=0.5)
    return hk.Hierarchy([hk.Link(up, gaussian(z, x))])


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    "stack", [STACKS["dense"], STACKS["convolutional"], counting], ids=["dense", "convolutional", "a user's"]
)
def test_no_buffer_changes_and_statistics_are_those_of_the_batch(stack, again):
    h = stack().train()
    if again:
        recompute_activations(h)
    h.encode(torch.randn(8, *h.spaces[0].shape), sample=True)
    states, weights = h.sample_states(8), [1.0] * len(h)
    places = {name: buffer.data_ptr() for name, buffer in h.named_buffers()}
    before = {name: buffer.clone() for name, buffer in h.named_buffers()}
    assert any(name.endswith("num_batches_tracked") for name in before)
    loss = sleep_loss(h, states, weights)
    loss.backward()
    assert {name: buffer.data_ptr() for name, buffer in h.named_buffers()} == places
    for name, buffer in h.named_buffers():
        assert torch.equal(buffer, before[name]), name
    # What the kernels would say themselves, in the game's mode; that moves the statistics.
    with torch.no_grad():
        said = [link.up.sleep_loss(states[link.up.target.name], states[link.up.source.name]).mean() for link in h]
        assert any(not torch.equal(buffer, before[name]) for name, buffer in h.named_buffers())
        torch.testing.assert_close(loss, sum(said))
        assert abs(sleep_loss(h.eval(), states, weights) - loss) > 1e-2


def test_with_running_statistics_the_encoder_is_as_in_evaluation():
    h = tiny_ladder(2, (6,)).train()
    h.encode(torch.randn(8, 6), sample=True)
    states, weights = h.sample_states(8), (1.0, 0.5)
    step = StepContext({}, states, h, nn.Identity(), None, 0)
    own, running = (sleep_phase(weights, running_statistics=flag).function(step) for flag in (False, True))
    assert h.training
    assert abs(own - running) > 1e-3
    torch.testing.assert_close(own, sleep_loss(h, states, weights))
    torch.testing.assert_close(running, sleep_loss(h.eval(), states, weights))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_encoder_is_shown_as_much_noise_as_in_the_game(noise):
    h = tiny_ladder(2, (6,)).double().eval()
    states = {name: state.detach() for name, state in h.sample_states(8).items()}
    torch.manual_seed(SEED)
    found = sleep_loss(h, states, (1.0, 1.0), noise)
    torch.manual_seed(SEED)
    seen = states | {"x": states["x"] + noise * torch.randn_like(states["x"])}
    torch.testing.assert_close(found, sleep_loss(h, seen, (1.0, 1.0)))
    assert (found == sleep_loss(h, states, (1.0, 1.0))) == (noise == 0)


# --- each kernel's form -----------------------------------------------------------------------------------------------


def drawn(case: KernelCase | hk.Kernel, n: int = 16) -> tuple[hk.Kernel, Tensor, Tensor]:
    """A kernel, states of its target and what it is given, both constants."""
    kernel = case.kernel() if isinstance(case, KernelCase) else case
    given = torch.randn(n, *kernel.source.shape)
    return kernel, kernel.sample(given).detach(), given


@cases(density=True, exclude=("gaussian", "bernoulli_relaxed", "categorical"))
def test_a_density_is_its_negative_logarithm_for_each_element(case):
    """Linear-Gaussian kernels, hard bits and a user's own kernel."""
    kernel, target, given = drawn(case)
    torch.testing.assert_close(kernel.sleep_loss(target, given), -kernel.log_prob(target, given) / kernel.target.size)


OTHERS = ("mixture", "flow", "laplace", "logistic", "student_t")
gaussians = cases(density=True, exclude=("bernoulli", "categorical", "linear", "user", *OTHERS))


@gaussians
def test_a_gaussian_is_its_negative_log_density_down_to_a_scale_of_a_tenth(case):
    kernel, target, given = drawn(case)
    mean, scale = kernel.mean(given), kernel.scale(given)
    floored = dist.Normal(mean, scale.clamp_min(FLOOR)).log_prob(target).reshape(len(given), -1).mean(1)
    found = kernel.sleep_loss(target, given)
    torch.testing.assert_close(found, -floored)
    above = scale.reshape(len(given), -1).amin(1) >= FLOOR
    assert above.any()
    exact = -kernel.log_prob(target, given) / kernel.target.size
    torch.testing.assert_close(found[above], exact[above])


@given(st.floats(0.002, 3), st.sampled_from([(), (3,), (2, 2, 2)]), st.integers(0, 100))
def test_a_gaussian_of_any_scale(scale, shape, seed):
    torch.manual_seed(seed)
    kernel = gaussian(hk.Space("v", (3,)), hk.Space("w", shape), scale=scale).double()
    given, target = torch.randn(5, 3).double(), torch.randn(5, *shape).double()
    expected = dist.Normal(kernel.mean(given), max(scale, FLOOR)).log_prob(target).reshape(5, -1).mean(1)
    torch.testing.assert_close(kernel.sleep_loss(target, given), -expected)


@pytest.mark.parametrize("raw", [-4.0, 1.0], ids=["below", "above"])
def test_gradients_at_the_floor(raw):
    """Below it the scale feels nothing, and the mean what a scale of 0.1 gives it."""
    v, w = hk.Space("v", (1,)), hk.Space("w", (2,))
    output = torch.tensor([[0.3, -0.2, raw, raw]], requires_grad=True)

    class Given(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            return output

    kernel, target = hk.GaussianKernel(v, w, Given(), max_scale=0.5), torch.tensor([[0.5, 0.1]])
    scale = kernel.scale(torch.zeros(1, 1))[0, 0].item()
    assert (scale < FLOOR) == (raw < 0)
    kernel.sleep_loss(target, torch.zeros(1, 1)).sum().backward()
    used = max(scale, FLOOR)
    residual = target - output.detach()[:, :2]
    torch.testing.assert_close(output.grad[:, :2], -residual / used**2 / 2)
    slope = (scale - 0.001) * (1 - (scale - 0.001) / 0.499)
    expected = (1 / used - residual.square() / used**3) / 2 * slope * (scale > FLOOR)
    torch.testing.assert_close(output.grad[:, 2:], expected)


@cases(support="one_hot")
def test_a_class_is_its_cross_entropy(case):
    kernel, target, given = drawn(case)
    found = kernel.sleep_loss(target, given)
    torch.testing.assert_close(found, cross_entropy(kernel.logits(given), target.argmax(1), reduction="none"))
    torch.testing.assert_close(found, -kernel.log_prob(target, given))  # one element, of however many classes


@cases(support="index")
def test_an_index_is_its_cross_entropy(case):
    kernel, target, given = drawn(case)
    found = kernel.sleep_loss(target, given)
    torch.testing.assert_close(found, cross_entropy(kernel.logits(given), target, reduction="none"))
    torch.testing.assert_close(found, -kernel.log_prob(target, given))


@cases(support="simplex")
def test_a_relaxed_class_is_the_cross_entropy_of_the_likeliest(case):
    kernel, target, given = drawn(case)
    found = kernel.sleep_loss(target, given)
    torch.testing.assert_close(found, cross_entropy(kernel.logits(given), target.argmax(1), reduction="none"))
    corners = torch.eye(kernel.target.size)[target.argmax(1)]
    assert torch.equal(kernel.sleep_loss(corners, given), found)


@cases(support="bits")
def test_hard_bits_are_their_negative_log_probability(case):
    kernel, target, given = drawn(case)
    torch.testing.assert_close(kernel.sleep_loss(target, given), -kernel.log_prob(target, given) / kernel.target.size)


@cases(support="unit")
def test_relaxed_bits_are_finite_where_they_are_drawn_hard(case):
    kernel, target, given = drawn(case)
    p = kernel.mean(given)
    for bits in (target, target.round(), torch.zeros_like(target), torch.ones_like(target)):
        found = kernel.sleep_loss(bits, given)
        expected = -(bits * p.log() + (1 - bits) * (1 - p).log()).reshape(len(bits), -1).mean(1)
        torch.testing.assert_close(found, expected)
        kernel.zero_grad()
        found.sum().backward()
        assert all(g.isfinite().all() for g in gradients(kernel))


@cases(density=False, exclude=("user", "implicit"))
def test_without_a_density_it_is_the_squared_error_of_the_mean(case):
    """Of deterministic kernels and of compositions, along the means."""
    kernel, target, given = drawn(case)
    target = target + torch.randn_like(target)
    mean = given
    for factor in kernel.factors:
        mean = factor.mean(mean)
    expected = (target - mean).square().reshape(len(given), -1).mean(1)
    torch.testing.assert_close(kernel.sleep_loss(target, given), expected)
    assert kernel.has_sleep_loss


def test_a_composition_that_ends_in_classes_has_a_loss_or_is_left_out():
    """An index has no mean to be near to: its composition is left out, or has a loss that can be taken."""
    v, between = hk.Space("v", (3,)), hk.Space("between", (2,))
    for shape in ((4,), ()):
        w = hk.Space("w", shape)
        kernel = hk.CategoricalKernel(between, w, Network(between, 4)) @ gaussian(v, between)
        if kernel.has_sleep_loss:
            loss = kernel.sleep_loss(kernel.sample(torch.randn(8, 3)), torch.randn(8, 3))
            assert loss.shape == (8,)
            assert loss.requires_grad


def test_a_kernel_that_can_only_be_sampled_says_so():
    kernel = UniformKernel(*spaces(3, 2))
    assert not kernel.knows_mean
    assert not kernel.has_sleep_loss
    with pytest.raises(hk.NoDensityError, match="neither a density nor a mean"):
        kernel.sleep_loss(torch.zeros(4, 2), torch.zeros(4, 3))
    inner = hk.Space("between", (3,))
    assert not (gaussian(inner, hk.Space("w", (2,))) @ UniformKernel(hk.Space("x", (3,)), inner)).has_sleep_loss


def test_a_draw_is_no_mean():
    """Where the distribution knows no mean, a draw at fixed noise stands for it; so in a composition with it."""
    v, between, w = hk.Space("v", (3,)), hk.Space("between", (2,)), hk.Space("w", (2,))
    mixture = MixtureKernel(v, between)
    assert torch.equal(mixture.mean(torch.zeros(1, 3)), mixture.mean(torch.zeros(1, 3)))
    assert mixture.has_sleep_loss
    assert not mixture.knows_mean
    assert not (gaussian(between, w) @ mixture).has_sleep_loss


class Told(UniformKernel):
    """Can only be sampled, and brings a loss of its own."""

    def sleep_loss(self, target: Tensor, given: Tensor) -> Tensor:
        return (target - self.network(given)).abs().mean(1)


def test_a_users_kernel_may_bring_its_own_loss():
    h = of_kernels(Told, sizes=(3, 2))
    assert sleep_weights(h) == ((1.0,), [])
    states = h.sample_states(8)
    up = h.links[0].up
    torch.testing.assert_close(sleep_loss(h, states, (1.0,)), (states["z1"] - up.network(states["x"])).abs().mean())


@cases(exclude=("user_kernel",))
@modes
@torch.no_grad()
def test_half_precision_keeps_the_loss_single(case, training):
    """Under autocast, on states that were drawn there."""
    kernel = case.kernel().train(training)
    given = torch.randn(64, 3)
    with torch.autocast("cpu", torch.bfloat16):
        target = kernel.sample(given)
        half = kernel.sleep_loss(target, given)
    target = target.float() if target.is_floating_point() else target
    single = kernel.sleep_loss(target, given)
    assert half.dtype == single.dtype == torch.float32
    # A hundredth of a standard deviation of 0.1, which is what bfloat16 has of numbers around one.
    torch.testing.assert_close(half.mean(), single.mean(), atol=0.02, rtol=0.02)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_by_the_rule_every_level_counts_but_a_first_one_of_feature_maps():
    assert sleep_weights(tiny_ladder(3, (6,))) == ((1.0, 1.0, 1.0), [])
    assert sleep_weights(tiny_ladder(3, (1, 16, 16), family="conv")) == ((0.0, 1.0, 1.0), [])
    assert sleep_weights(tiny_ladder(2, (1, 16, 16), family="mixed")) == ((1.0, 1.0), [])
    assert RULE.startswith("1 at every level, but 0 at level 1 if z1 is feature maps")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(0.3, (0.3, 0.3)), (0, (0.0, 0.0)), ((2, 0.5), (2.0, 0.5)), ([0.0, 1.0], (0.0, 1.0))],
)
def test_weights_are_one_number_or_one_a_level(wanted, expected):
    assert sleep_weights(tiny_ladder(2, (6,)), wanted) == (expected, [])
    maps = tiny_ladder(2, (1, 16, 16), family="conv")
    assert sleep_weights(maps, wanted) == (expected, [])  # asked for, feature maps have a weight as well


@pytest.mark.parametrize("wanted", [(1.0,), (1.0, 1.0, 1.0), ()])
def test_too_few_or_too_many_weights_are_refused(wanted):
    message = f"game.sleep_weights has {len(wanted)} weights, and the hierarchy has 2 levels"
    with pytest.raises(InputError, match=message):
        sleep_weights(tiny_ladder(2, (6,)), wanted)
    with pytest.raises(InputError, match=message):
        hk.Trainer(small(sleep_weights=wanted))


@pytest.mark.parametrize("wrong", [-1.0, (1.0, -0.5), "always", math.inf])
def test_what_is_no_weight_is_refused(wrong):
    with pytest.raises(ConfigError, match="sleep"):
        configured(sleep_weights=wrong)


@pytest.mark.parametrize("wanted", ["auto", 1.0, (1.0, 2.0)])
def test_a_kernel_that_can_only_be_sampled_is_left_out_with_one_notice(wanted):
    h = of_kernels(gaussian, UniformKernel, sizes=(3, 2, 2))
    weights, said = sleep_weights(h, wanted)
    assert weights == (1.0, 0.0)
    assert said == ["no sleep phase at z2: T_{z2|z1} has neither a density nor a mean to learn by"]
    told: list[str] = []
    model = hk.Model(h, hk.build_discriminator(h, width=4))
    trainer = hk.Trainer(model, settings=configured(sleep_weights=wanted, steps=2), on_notice=told.append)
    assert told[:1] == said
    assert trainer.config.game.sleep_weights == weights
    assert trainer.step(torch.randn(8, 3))["sleep_loss"] != 0


def tied(*, by_buffers: bool = False) -> hk.Hierarchy:
    """Two levels, the upper of which has one network, or one module of buffers, both ways."""

    class Scaled(nn.Module):
        def __init__(self, scale: nn.Module) -> None:
            super().__init__()
            self.scale, self.layer = scale, nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.scale(x))

    x, z1, z2 = spaces(3, 3, 3)
    shared = nn.BatchNorm1d(3, affine=False) if by_buffers else nn.Linear(3, 3)
    up, down = (Scaled(shared), Scaled(shared)) if by_buffers else (shared, shared)
    upper = hk.Link(hk.GaussianKernel(z1, z2, up, scale=0.5), hk.GaussianKernel(z2, z1, down, scale=0.5))
    return hk.Hierarchy([hk.Link(gaussian(x, z1), gaussian(z1, x)), upper])


def test_weights_shared_with_the_decoder_are_not_trained_by_it():
    h = tied()
    weights, said = sleep_weights(h)
    assert weights == (1.0, 0.0)
    assert said == ["no sleep phase at z2: T_{z2|z1} shares weights with the decoder"]
    assert sleep_weights(h, (1.0, 0.0)) == ((1.0, 0.0), [])
    for wanted in (0.5, (1.0, 0.5)):
        with pytest.raises(
            InputError, match=r"game.sleep_weights is 0.5 at z2, but T_{z2\|z1} shares weights with the decoder"
        ):
            sleep_weights(h, wanted)
    model, told = hk.Model(h, hk.build_discriminator(h, width=4)), []
    trainer = hk.Trainer(model, settings=configured(steps=2), on_notice=told.append)
    assert trainer.config.game.sleep_weights == (1.0, 0.0)
    assert told[:1] == said
    with pytest.raises(InputError, match="has to be 0 there"):
        hk.Trainer(model, settings=configured(sleep_weights=1.0))


def test_weights_shared_with_the_decoder_of_another_level_are_not_trained_either():
    x, z1, z2 = spaces(3, 3, 3)
    shared = nn.Linear(3, 3)
    lower = hk.Link(gaussian(x, z1), hk.GaussianKernel(z1, x, shared, scale=0.5))
    h = hk.Hierarchy([lower, hk.Link(hk.GaussianKernel(z1, z2, shared, scale=0.5), gaussian(z2, z1))])
    assert sleep_weights(h)[0] == (1.0, 0.0)


def test_shared_buffers_are_no_reason():
    h = tied(by_buffers=True)
    assert sleep_weights(h) == ((1.0, 1.0), [])
    before = h.links[1].down.network.scale.running_mean.clone()
    states = {name: state.detach() for name, state in h.eval().sample_states(8).items()}
    sleep_loss(h.train(), states, (1.0, 1.0)).backward()
    assert torch.equal(h.links[1].down.network.scale.running_mean, before)
    assert all(g is None for g in gradients(h.links[1].down))


# --- in the game ------------------------------------------------------------------------------------------------------


def game(shape: tuple[int, ...] = (6,), options: dict[str, object] | None = None, **discriminator: object):
    h = tiny_ladder(2, shape, **(options or {}))
    d = hk.build_discriminator(h, **{"width": 16, **discriminator})
    return h.double(), d.double(), torch.randn(6, *shape).double()


MOVERS = {
    "both": (configured(), 0),
    "discriminator": (configured(discriminator_steps=1, generator_steps=2), 0),
    "generators": (configured(discriminator_steps=1, generator_steps=2), 1),
}


def played(
    h: hk.Hierarchy,
    d: nn.Module,
    x: Tensor,
    *,
    weights: tuple[float, ...] = (),
    single_pass: bool = True,
    players: str = "both",
    noise: float = 0.0,
):
    """One step on copies under a seed: its losses, and the gradients of encoder, decoder and discriminator."""
    h, d = copy.deepcopy((h, d))
    config, number = MOVERS[players]
    losses = [sleep_phase(weights, noise)] if weights else []
    method = GameMethod(hk.Model(h, d), override(config, {"encoder_noise": noise}), losses)
    method.single_pass = single_pass
    torch.manual_seed(SEED)
    step = method.add_gradients(x, None, number, 1)
    return step, *(gradients(part) for part in (ups(h), downs(h), d))


def ups(h: hk.Hierarchy) -> nn.ModuleList:
    return nn.ModuleList(link.up for link in h)


def downs(h: hk.Hierarchy) -> nn.ModuleList:
    return nn.ModuleList(link.down for link in h)


def alone(h: hk.Hierarchy, x: Tensor, weights: tuple[float, ...], noise: float = 0.0):
    """The sleep phase by itself under the noise of a game: its value and its gradient."""
    h = copy.deepcopy(h)
    torch.manual_seed(SEED)
    h.encode(x + noise * torch.randn_like(x) if noise else x, sample=True)
    loss = sleep_loss(h, h.sample_states(len(x)), weights, noise)
    return loss, torch.autograd.grad(loss, list(ups(h).parameters()), allow_unused=True)


def summed(a: list[Tensor | None], b: list[Tensor | None]) -> list[Tensor]:
    return [sum(g for g in pair if g is not None) for pair in zip(a, b, strict=True)]


@modes
@pytest.mark.parametrize("single_pass", [True, False], ids=["one pass", "two passes"])
@pytest.mark.parametrize("games", ["joint", "pairwise"])
@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.0, 0.3)], ids=["all", "the second"])
def test_its_gradient_is_added_to_the_encoders_and_to_no_other(training, single_pass, games, noise, weights):
    # Under noise the sleep phase draws some of its own: the discriminator's would be another one.
    quiet = {"dropout": 0.0, "input_noise": 0.0} if noise else {}
    h, d, x = game(games=games, **quiet)
    h.train(training)
    options = {"single_pass": single_pass, "noise": noise}
    step, of_q, of_p, of_d = played(h, d, x, **options, weights=weights)
    without, q, p, of_d_without = played(h, d, x, **options)
    loss, asleep = alone(h, x, weights, noise)
    assert relative_error(of_q, summed(q, asleep)) < EXACT
    assert relative_error(of_q, q) > 1e-2
    assert relative_error(of_p, p) < EXACT
    assert relative_error(of_d, of_d_without) < EXACT
    torch.testing.assert_close(step.pop("sleep_loss"), loss.detach().float())
    assert step == without
    assert list(without) == ["d_loss", "g_loss", "rho_q", "rho_p"]


def test_on_feature_maps_as_well():
    h, d, x = game((1, 16, 16), {"family": "conv"})
    _, of_q, of_p, of_d = played(h, d, x, weights=(1.0, 1.0))
    _, q, p, of_d_without = played(h, d, x)
    assert relative_error(of_q, summed(q, alone(h, x, (1.0, 1.0))[1])) < EXACT
    assert relative_error(of_p, p) < EXACT
    assert relative_error(of_d, of_d_without) < EXACT


def test_it_acts_where_the_generators_move():
    h, d, x = game()
    step, of_q, of_p, of_d = played(h, d, x, players="discriminator", weights=(1.0, 1.0))
    assert "sleep_loss" not in step
    assert all(g is None for g in of_q + of_p)
    assert relative_error(of_d, played(h, d, x)[3]) < EXACT
    step, of_q, of_p, of_d = played(h, d, x, players="generators", weights=(1.0, 1.0))
    both, q, p, _ = played(h, d, x, weights=(1.0, 1.0))
    assert relative_error(of_q, q) < EXACT
    assert relative_error(of_p, p) < EXACT
    assert all(g is None for g in of_d)
    assert step["sleep_loss"] == both["sleep_loss"] != 0


@pytest.mark.parametrize("single_pass", [True, False])
def test_a_frozen_encoder_is_left_alone(single_pass):
    h, d, x = game()
    ups(h).requires_grad_(False)
    step, of_q, of_p, of_d = played(h, d, x, single_pass=single_pass, weights=(1.0, 1.0))
    assert all(g is None for g in of_q)
    assert all(g is not None for g in of_p)
    assert any(g is not None for g in of_d)
    assert step["sleep_loss"].isfinite()


def test_statistics_are_those_of_the_game():
    h, d, x = game()
    found = []
    for losses in ([], [sleep_phase((1.0, 1.0))]):
        model = hk.Model(*copy.deepcopy((h, d)))
        torch.manual_seed(SEED)
        GameMethod(model, configured(), losses).add_gradients(x, None, 0, 1)
        found.append(dict(model.hierarchy.named_buffers()))
    for name, buffer in found[0].items():
        assert torch.equal(found[1][name], buffer), name


# --- in training ------------------------------------------------------------------------------------------------------


def weights_of(trainer: hk.Trainer) -> dict[str, Tensor]:
    modules = trainer.model.parts | {"averaged": trainer.averaged}
    return {f"{name}.{key}": value.clone() for name, m in modules.items() for key, value in m.state_dict().items()}


def assert_same(actual: hk.Trainer, expected: hk.Trainer) -> None:
    theirs = weights_of(expected)
    for name, value in weights_of(actual).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_micro_batches_average(noise, monkeypatch):
    """The gradient of a step of two parts is the mean of theirs, under the noise that they draw one after the other."""
    # Steps draw from the generator as it is.
    monkeypatch.setattr("halikit.training.stepper.seeded", lambda *_: nullcontext())
    reference, x = small(), batch()
    hierarchy = reference.hierarchy
    torch.manual_seed(SEED)
    losses = []
    for part in x.chunk(2):
        step = play(hierarchy, reference.discriminator, part, encoder_noise=noise)
        add_both_gradients(step)
        losses.append(sleep_loss(hierarchy, step.decoder_states, (1.0, 0.5), noise))
        losses[-1].backward()
    trainer = hk.Trainer(small(accumulate=2, encoder_noise=noise, sleep_weights=(1.0, 0.5)))
    torch.manual_seed(SEED)
    outcome = trainer.step(x)
    of_both = [g for part in trainer.model.parts.values() for g in gradients(part)]
    expected = [g / 2 for part in reference.parts.values() for g in gradients(part)]
    assert relative_error(of_both, expected) < 1e-6
    torch.testing.assert_close(outcome["sleep_loss"], torch.stack(losses).mean().detach())
    assert outcome["sleep_loss"] > 0


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "options",
    [
        {"encoder_noise": 0.1},
        {"discriminator_steps": 2, "gradient_penalty": 0.1},
        {"model.family": "conv", "sleep_weights": 1.0, "objective": "least_squares"},
        {"sleep_statistics": "running"},
    ],
    ids=["one pass", "rounds", "two passes, on maps", "running statistics"],
)
def test_a_captured_step_is_the_eager_one(options, monkeypatch):
    without_machine_code(monkeypatch)
    options = {"sleep_weights": (1.0, 0.5)} | options
    trainers = [hk.Trainer(small(**options, compile=mode)) for mode in (None, "default")]
    losses = [[float(trainer.step(batch()).get("sleep_loss", 0)) for _ in range(3)] for trainer in trainers]
    assert_same(*reversed(trainers))
    assert losses[0] == losses[1]
    assert max(losses[0]) > 0
    other = hk.Trainer(small(**options | {"sleep_weights": 0.0}))
    for _ in range(3):
        other.step(batch())
    with pytest.raises(AssertionError):
        assert_same(other, trainers[0])


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_captured_step_in_parts_is_the_eager_one(monkeypatch):
    """Up to rounding: a graph adds up the losses of a micro-batch before it adds to those of the other ones."""
    without_machine_code(monkeypatch)
    options = {"accumulate": 2, "encoder_noise": 0.1, "sleep_weights": (1.0, 0.5)}
    trainers = [hk.Trainer(small(**options, compile=mode)) for mode in (None, "default")]
    losses = [trainer.step(batch()) for trainer in trainers]
    assert losses[0] == losses[1]
    eager, captured = ([g for part in t.model.parts.values() for g in gradients(part)] for t in trainers)
    assert relative_error(captured, eager) < 1e-6


@pytest.mark.parametrize("single_pass", [True, False])
def test_two_processes_have_the_gradients_of_one(tmp_path, single_pass, monkeypatch):
    from test_processes import check_against_the_double_batch, in_evaluation
    from test_resume import config

    x = torch.linspace(-1, 1, 8 * 64).reshape(8, *DIGITS)

    def gradients(hardware: Hardware, rows: slice) -> list[Tensor]:
        model = in_evaluation(config(2), rows, hardware.processes.world, monkeypatch)
        method = GameMethod(model, configured(), [sleep_phase((1.0, 0.5))])
        method.single_pass = single_pass
        losses = method.add_gradients(x[rows], None, 0, 1)["sleep_loss"]
        parameters = [p for part in model.parts.values() for p in part.parameters()]
        hardware.processes.average_gradients(parameters)
        found = [p.grad for p in parameters if p.grad is not None]
        assert losses > 0
        hardware.processes.average([losses])
        return [*found, losses]

    check_against_the_double_batch(gradients, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"sleep_weights": 0.5},
        {"sleep_weights": (0.3, 1.0), "discriminator_steps": 2, "encoder_noise": 0.1, "accumulate": 2},
    ],
    ids=["one weight", "two, in rounds, under noise, in parts"],
)
def test_a_resumed_run_is_the_undisturbed_one(changes, tmp_path):
    from test_resume import config, cut_at, fingerprint, trainer

    settings = config(2, **changes)
    trainer(settings, tmp_path / "whole").fit()
    cut_at(trainer(settings, tmp_path / "cut"), 7)
    trainer(settings, tmp_path / "cut", resume=True).fit()
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        assert any(float(row["sleep_loss"]) > 0 for row in csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:this CPU has no units")
@pytest.mark.parametrize("family", ["dense", "conv"])
def test_half_precision_trains_by_it(family):
    options = {"model.family": family, "sleep_weights": 1.0, "discriminator.dropout": 0.0, "input_noise": 0.0}
    single, half = (hk.Trainer(small(**options, precision=precision)) for precision in ("32", "bf16"))
    outcomes = [trainer.step(batch(96)) for trainer in (single, half)]
    losses = [outcome["sleep_loss"] for outcome in outcomes]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], atol=0.02, rtol=0.02)
    found = [torch.cat([g.flatten() for g in gradients(ups(t.model.hierarchy))]) for t in (single, half)]
    assert torch.nn.functional.cosine_similarity(*found, 0) > 0.98
    assert all(value.isfinite().all() for value in weights_of(half).values())


def test_activations_are_computed_again_with_the_same_result(monkeypatch):
    runs = []
    checkpoint = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **k: runs.append(a) or checkpoint(*a, **k))
    kept, again = (hk.Trainer(small(recompute=recomputes)) for recomputes in (False, True))
    for trainer in (kept, again):
        for _ in range(2):
            trainer.step(batch())
    assert runs
    for name, value in weights_of(again).items():
        torch.testing.assert_close(value, weights_of(kept)[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("asked", "written"), [("auto", [1.0, 1.0]), (0.5, [0.5, 0.5]), ((0.0, 2.0), [0.0, 2.0]), (0.0, 0.0)]
)
def test_a_run_names_the_weights_it_was_trained_with(asked, written, tmp_path):
    hk.Trainer(small(sleep_weights=asked), "digits", out=tmp_path / "run", on_notice=lambda _: None).fit(2)
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["game"]["sleep_weights"] == written
    again = hk.load(tmp_path / "run").config.game.sleep_weights
    assert again == (tuple(written) if isinstance(written, list) else written)


def test_a_run_of_users_kernels_names_them_too(tmp_path):
    h = of_kernels(gaussian, UniformKernel, sizes=(3, 2, 2))
    model, settings = hk.Model(h, hk.build_discriminator(h, width=4)), configured(batch_size=8, steps=2)
    hk.Trainer(model, torch.randn(40, 3), settings=settings, out=tmp_path / "run", on_notice=lambda _: None).fit()
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["game"]["sleep_weights"] == [1.0, 0.0]


def test_the_papers_presets_have_none_and_the_dense_family_has_it_everywhere():
    of_paper = [config for make in PRESETS.values() if (config := make()).model.family == "paper"]
    playing = [config for config in of_paper if config.training.method == "adversarial"]
    assert len(playing) >= 10
    assert {config.game.sleep_weights for config in playing} == {0.0}
    assert families.dense(3).game.sleep_weights == "auto"


def test_the_command_line_says_the_weights_and_writes_them(tmp_path, halikit):
    sizes = ["--batch-size", "16", "--set", "model.hidden=16", "--set", "discriminator.width=16", "--steps", "3"]

    def written(out: str) -> dict[str, object]:
        return tomllib.loads((tmp_path / out / "config.toml").read_text())["game"]["sleep_weights"]

    done = command("train", "--levels", "2", "--out", "rule", *sizes, cwd=tmp_path)
    assert f"sleep    weights z1 1 · z2 1: {RULE}" in done.stdout
    assert written("rule") == [1.0, 1.0]
    said = halikit("train", "--levels", "3", "--set", "sleep_weights=[0, 0.5, 1]", "--out", tmp_path / "asked", *sizes)
    assert "sleep    weights z1 0 · z2 0.5 · z3 1\n" in said
    assert written("asked") == [0.0, 0.5, 1.0]


# --- gradient penalties that come lazily ------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.floats(0.01, 10))
def test_a_lazy_penalty_is_the_penalty_on_average(every, d_steps, g_steps, weight):
    """``k γ`` at every k-th step of the discriminator, whatever the rounds."""
    settings = GameSettings(
        penalty_every=every, gradient_penalty=weight, discriminator_steps=d_steps, generator_steps=g_steps
    )
    steps = [step for step in range(10 * every * (d_steps + g_steps)) if players_of(settings, step) != "generators"]
    found = [penalty_weight(settings, step) for step in steps]
    assert found == [every * weight if i % every == 0 else 0.0 for i in range(len(steps))]
    whole = found[: len(found) // every * every]
    assert sum(whole) / len(whole) == pytest.approx(weight)


def test_a_lazy_penalty_is_played(monkeypatch):
    """At the first step twice the weight, at the second one none."""
    # Steps draw from the generator as it is.
    monkeypatch.setattr("halikit.training.stepper.seeded", lambda *_: nullcontext())
    options = {"gradient_penalty": 0.5, "penalised_joint": "both"}
    lazy = hk.Trainer(small(**options, penalty_every=2))
    for step, weight in enumerate((1.0, 0.0)):
        before = copy.deepcopy(lazy.model)
        settings = override(before.config, {"penalty_every": 1, "gradient_penalty": weight})
        plain = hk.Trainer(before, settings=settings)
        for trainer in (lazy, plain):
            torch.manual_seed(SEED + step)
            trainer.step(batch())
        found, expected = (gradients(trainer.model.discriminator) for trainer in (lazy, plain))
        assert relative_error(found, expected) < 1e-6


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_lazy_penalty_makes_no_graph_too_many(monkeypatch):
    """Of the discriminator's steps with it and without it, and of the generators'."""
    graphs = without_machine_code(monkeypatch)
    options = {"discriminator_steps": 1, "generator_steps": 2, "gradient_penalty": 0.1, "penalty_every": 2}
    trainer = hk.Trainer(small(1, **options, compile="default"))
    for _ in range(9):
        trainer.step(batch())
    assert len(graphs) == 3
