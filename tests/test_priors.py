"""Priors: densities agree with draws, parameters get gradients and are saved, moved and cast with the hierarchy."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, Shell, gaussian, gradients, tiny_ladder
from torch import nn

import halikit as hk
from halikit.algorithm import add_both_gradients, add_generator_gradients, play
from halikit.config import ConfigError, override
from halikit.elbo import check_trains_by_elbo, negative_elbo
from halikit.errors import InputError
from halikit.kernels import GaussianMixture

Make = Callable[[hk.Space], hk.priors.Prior]


def space(*shape: int, support: str | None = None) -> hk.Space:
    return hk.Space("z", shape, support)


def uneven(prior: hk.priors.Prior) -> hk.priors.Prior:
    """The prior with every parameter a little away from its start, where last layers are zero."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return prior


class Shifted(hk.priors.Prior):
    """A user's prior: a Gaussian with a trained mean."""

    def __init__(self, over: hk.Space) -> None:
        super().__init__(over)
        self.loc = nn.Parameter(torch.zeros(over.shape))

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, 1.0).to_event(self.space.rank)


CONTINUOUS = {
    "standard_normal": lambda: hk.priors.StandardNormal(space(2)),
    "uniform": lambda: hk.priors.Uniform(space(2)),
    "unit": lambda: hk.priors.Uniform(space(1, 2, support="unit")),
    "mixture": lambda: hk.priors.Mixture(space(2), 3),
    "mixture_map": lambda: hk.priors.Mixture(space(2, 1, 1), 3),
    "mixture_scalar": lambda: hk.priors.Mixture(space(), 3),
    "flow": lambda: hk.priors.Flow(space(2), 3),
    "flow_map": lambda: hk.priors.Flow(space(1, 2, 1), 2, hidden=8),
    "fixed": lambda: hk.priors.Fixed(space(2), dist.Laplace(torch.zeros(2), 0.5).to_event(1)),
    "users": lambda: Shifted(space(2)),
}
DISCRETE = {
    "bits": lambda: hk.priors.Uniform(space(2, support="bits")),
    "one_hot": lambda: hk.priors.Uniform(space(3, support="one_hot")),
    "index": lambda: hk.priors.Uniform(space(support="index"), classes=3),
    "categorical": lambda: hk.priors.Categorical(space(3)),
    "categorical_index": lambda: hk.priors.Categorical(space(), classes=3),
}
ALL = CONTINUOUS | DISCRETE | {"simplex": lambda: hk.priors.Uniform(space(3, support="simplex"))}
TRAINED = [name for name, make in ALL.items() if make().is_trained]


def made(name: str) -> hk.priors.Prior:
    return uneven(ALL[name]())


def hierarchy_over(prior: hk.priors.Prior) -> hk.Hierarchy:
    x = hk.Space("x", (4,))
    return hk.Hierarchy([hk.Link(gaussian(x, prior.space), gaussian(prior.space, x))], prior)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_density_integrates_to_one_and_has_the_moments_of_the_draws(name: str) -> None:
    prior = made(name).double()
    points = torch.linspace(-8, 8, 201, dtype=torch.float64)
    area = (16 / 200) ** prior.space.size
    grid = torch.cartesian_prod(*[points] * prior.space.size).reshape(-1, *prior.space.shape)
    inside = prior().support.check(grid)
    density = torch.zeros(len(grid), dtype=torch.float64)
    density[inside] = prior().log_prob(grid[inside]).exp().detach() * area
    # On a grid with steps of 0.08 the mass of a box has an error of up to half a step at each side.
    assert density.sum() == pytest.approx(1, abs=0.2 if "uni" in name else 0.01)
    density /= density.sum()
    z = prior.sample(40_000, generator=torch.Generator().manual_seed(1)).detach()
    weights = density.reshape(-1, *[1] * prior.space.rank)
    for power, tolerance in ((1, 0.03), (2, 0.06)):
        torch.testing.assert_close(z.pow(power).mean(0), (weights * grid**power).sum(0), atol=tolerance, rtol=0.03)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_probabilities_are_the_frequencies_of_the_draws(name: str) -> None:
    prior = made(name)
    z = prior.sample(20_000).detach()
    states, counts = z.unique(dim=0, return_counts=True)
    probabilities = prior().log_prob(states).exp().detach()
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(counts / len(z), probabilities, atol=0.015, rtol=0)


def test_the_flat_dirichlet_has_a_constant_density_on_the_simplex() -> None:
    prior = ALL["simplex"]()
    z = prior.sample(1000)
    torch.testing.assert_close(z.sum(1), torch.ones(1000))
    torch.testing.assert_close(prior().log_prob(z), torch.full((1000,), math.log(2)))


@pytest.mark.parametrize("name", ALL)
def test_draws_follow_the_generator_the_dtype_and_the_shape(name: str) -> None:
    prior = made(name)
    a, b = (prior.sample(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    c = prior.sample(5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(a, b)
    assert a.shape == (5, *prior.space.shape)
    assert name in DISCRETE or not torch.equal(a, c)
    z = copy.deepcopy(prior).double().sample(5)
    assert z.dtype == (torch.int64 if "index" in name else torch.float64)
    # As in a Pyro plate.
    assert prior().expand([5]).log_prob(a).shape == (5,)


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in DISCRETE])
def test_draws_pass_an_unbiased_gradient_to_every_parameter(name: str) -> None:
    """Against ``E[f(z) ∇ log p(z)]``, which needs no gradient of the draws.

    For mixtures the function is quadratic: of others their gradient is right to second order.
    """
    prior = made(name).double()
    assert prior.passes_gradient
    parameters, n = list(prior.parameters()), 40_000
    z = prior.sample(n)

    def cost(z: torch.Tensor) -> torch.Tensor:
        z = z.reshape(n, -1)
        if "mixture" in name:
            return (z * torch.arange(1, z.shape[1] + 1)).sum(1).square() / z.shape[1] ** 2 + z.sum(1)
        return z.cos().sum(1) + 2 * z.sin().sum(1) + z.prod(1).cos()

    pathwise = torch.autograd.grad(cost(z).mean(), parameters)
    f = cost(z).detach()
    score = torch.autograd.grad(((f - f.mean()) * prior().log_prob(z.detach())).mean(), parameters)
    for found, expected in zip(pathwise, score, strict=True):
        assert found.abs().sum() > 0
        torch.testing.assert_close(found, expected, atol=0.07, rtol=0.05)


def test_the_gradient_of_a_mixture_has_no_nan_in_many_dimensions() -> None:
    prior = hk.priors.Mixture(space(1000), 4)
    prior.sample(16).square().sum().backward()
    found = gradients(prior)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found)


def test_a_mixture_of_a_batch_draws_from_each_row() -> None:
    locs = torch.tensor([[[-5.0], [5.0]], [[0.0], [9.0]]])
    mixture = GaussianMixture(locs, torch.full_like(locs, 0.1), torch.tensor([[0.0, -50.0], [-50.0, 0.0]]))
    torch.testing.assert_close(mixture.rsample((50,)).mean(0), torch.tensor([[-5.0], [9.0]]), atol=0.1, rtol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_parameters_are_in_the_hierarchy_and_are_saved_with_it(name: str) -> None:
    prior = made(name)
    h = hierarchy_over(prior)
    assert {id(p) for p in prior.parameters()} <= {id(p) for p in h.parameters()}
    h.sample(3)  # what a draw caches must not prevent a copy
    other = copy.deepcopy(h)
    for parameter in other.prior.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(h.state_dict())
    z = prior.sample(4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other.prior.sample(4, generator=torch.Generator().manual_seed(0)), z)
    torch.testing.assert_close(
        other.double().prior().log_prob(z.double() if z.is_floating_point() else z).float(), prior().log_prob(z)
    )


@pytest.mark.parametrize("name", ["standard_normal", "uniform", "fixed", "bits", "one_hot"])
def test_priors_without_parameters_add_nothing_to_a_saved_model(name: str) -> None:
    assert not ALL[name]().state_dict()


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in DISCRETE])
@pytest.mark.parametrize("single_pass", [True, False], ids=["single", "two"])
def test_the_game_trains_the_prior(name: str, single_pass: bool) -> None:
    h = hierarchy_over(made(name))
    discriminator = hk.build_discriminator(h)
    step = play(h, discriminator, torch.randn(16, 4))
    add_both_gradients(step) if single_pass else add_generator_gradients(step, h)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients(h.prior))


def classes_on_top() -> hk.Hierarchy:
    x, y = hk.Space("x", (4,)), hk.Space("y", (3,), "one_hot")
    up = hk.CategoricalKernel(x, y, Network(x, 3))
    return hk.Hierarchy([hk.Link(up, gaussian(y, x, scale=0.5))], hk.priors.Categorical(y))


def test_a_categorical_prior_stays_fixed_in_the_game_with_one_notice() -> None:
    h = classes_on_top()
    notices: list[str] = []
    model = hk.Model(h, hk.build_discriminator(h))
    trainer = hk.Trainer(model, torch.randn(200, 4), on_notice=notices.append)
    trainer.step(torch.randn(32, 4))
    said = [notice for notice in notices if "prior" in notice]
    assert len(said) == 1
    assert "training.method = 'elbo'" in said[0]
    assert torch.equal(h.prior.logits, torch.zeros(3))
    assert not any("prior" in notice for notice in _notices_of(tiny_ladder(1, (4,))))


def _notices_of(h: hk.Hierarchy) -> list[str]:
    notices: list[str] = []
    hk.Trainer(hk.Model(h, hk.build_discriminator(h)), torch.randn(200, 4), on_notice=notices.append)
    return notices


def test_the_evidence_bound_trains_a_categorical_prior() -> None:
    h = classes_on_top()
    with torch.no_grad():
        h.links[0].up.network.layers[-1].bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
    negative_elbo(h, torch.randn(64, 4)).backward()
    # The encoder uses the first class most, so descent raises its logit.
    assert h.prior.logits.grad.argmin() == 0


def test_the_evidence_bound_refuses_a_bounded_prior_under_an_unbounded_encoder() -> None:
    x, z = hk.Space("x", (4,)), space(2)
    h = hk.Hierarchy([hk.Link(gaussian(x, z), gaussian(z, x))], hk.priors.Uniform(z))
    with pytest.raises(InputError, match="uniform prior on z"):
        check_trains_by_elbo(h)


def test_slices_take_the_prior_of_the_support() -> None:
    x, b = hk.Space("x", (4,)), hk.Space("z1", (3,), "bits")
    z, w = hk.Space("z2", (2,), "unit"), hk.Space("z3", (2,))
    links = [
        hk.Link(hk.BernoulliKernel(x, b, Network(x, 3)), gaussian(b, x)),
        hk.Link(gaussian(b, z), hk.BernoulliKernel(z, b, Network(z, 3))),
        hk.Link(gaussian(z, w), gaussian(w, z)),
    ]
    h = hk.Hierarchy(links, hk.priors.Mixture(w, 2)).double()
    assert set(h[:1].prior.sample(50).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(
        h[:1].prior().log_prob(torch.ones(1, 3).double()), torch.full((1,), -3 * math.log(2)).double()
    )
    drawn = h[:2].prior.sample(200)
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < 0.1 < 0.9 < drawn.max() <= 1
    assert h[:3].prior is h.prior
    assert isinstance(hk.Hierarchy(links).prior, hk.priors.StandardNormal)


def test_a_slice_with_indices_on_top_encodes_and_refuses_to_sample() -> None:
    x, y = hk.Space("x", (4,)), hk.Space("y", (), "index")
    h = hk.Hierarchy([hk.Link(hk.CategoricalKernel(x, y, Network(x, 5)), gaussian(y, x))])
    assert h.encode(torch.randn(2, 4))["y"].shape == (2,)
    with pytest.raises(ValueError, match="number of its classes"):
        h.sample(2)


class Crooked(hk.priors.Prior):
    """A prior that forgets ``to_event``."""

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros(self.space.shape), 1.0)


Z3 = hk.Space("z1", (3,))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: hk.priors.Mixture(hk.Space("w", (3,))), "must be over z1"),
        (lambda: hk.priors.Mixture(hk.Space("z1", (2,))), "must be over z1"),
        (lambda: Crooked(Z3), r"empty batch shape and event shape \(3,\), got \(3,\) and \(\) from Crooked"),
        (lambda: dist.Normal(torch.zeros(3, requires_grad=True), 1.0).to_event(1), "write a halikit.priors.Prior"),
        (lambda: dist.Normal(0.0, 1.0), "must be over z1"),
        (lambda: "mixture", "got str"),
        (lambda: hk.priors.Mixture(Z3, 0), "at least one component"),
        (lambda: hk.priors.Flow(Z3, 1), "two layers"),
        (lambda: hk.priors.Flow(hk.Space("z1", ())), "two elements"),
        (lambda: hk.priors.Categorical(hk.Space("z1", ())), "classes=K"),
        (lambda: hk.priors.Uniform(Z3, 1.0, 0.0), "low < high"),
        (lambda: hk.priors.Uniform(space(3, support="bits"), 0.0, 2.0), "no interval"),
    ],
)
def test_wrong_priors_are_refused_in_one_line(make: Callable[[], object], complaint: str) -> None:
    links = list(tiny_ladder(1, (4,)))
    assert links[0].up.target == Z3
    with pytest.raises(ValueError, match=complaint) as error:
        hk.Hierarchy(links, make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hidden", ["mixture", "flow"])
def test_parameters_inside_a_fixed_distribution_are_found(hidden: str) -> None:
    if hidden == "mixture":
        logits = torch.zeros(2, requires_grad=True)
        each = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
        given = dist.MixtureSameFamily(dist.Categorical(logits=logits), each)
    else:
        base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        given = dist.TransformedDistribution(base, [dist.transforms.affine_coupling(3)])
    with pytest.raises(ValueError, match="require gradients"):
        hk.priors.Fixed(Z3, given)


def test_truncation_bounds_the_noise_of_mixtures_and_flows() -> None:
    mixture = hk.priors.Mixture(space(1, 2, 1), 2)
    with torch.no_grad():
        mixture.locs.copy_(torch.tensor([[-5.0, 0.0], [5.0, 0.0]]))
    z = mixture.truncated_sample(500, 0.7, generator=torch.Generator().manual_seed(0)).flatten(1)
    distance = (z.unsqueeze(1) - mixture.locs).abs().min(1).values
    assert 0.9 * 0.35 < distance.max() <= 0.35
    assert 150 < (z[:, 0] > 0).sum() < 350
    flow = hk.priors.Flow(space(4))
    with torch.no_grad():
        flow.loc.fill_(1.0)
    z = flow.truncated_sample(500, 0.5)
    assert 0.45 < (z - 1).abs().max() <= 0.5
    for name in ("uniform", "categorical", "fixed", "bits"):
        with pytest.raises(ValueError, match="cannot be truncated"):
            ALL[name]().truncated_sample(3, 1.0)
    with pytest.raises(ValueError, match="positive"):
        mixture.truncated_sample(3, 0.0)


@pytest.mark.parametrize(
    ("kind", "sizes"), [("uniform", {}), ("mixture", {"prior_components": 3}), ("flow", {"prior_layers": 2})]
)
def test_the_settings_build_train_save_and_load_a_prior(kind: str, sizes: dict[str, int], tmp_path: Path) -> None:
    changes = {"levels": 2, "data_shape": (6,), "model.hidden": 8, "widths": (4, 3), "prior": kind, **sizes}
    config = override(hk.Config(), changes | {"steps": 3, "training.batch_size": 16, "max_scale": 0.5})
    model = hk.build(config)
    before = copy.deepcopy(model.hierarchy.prior.state_dict())
    hk.Trainer(model, torch.randn(64, 6), out=tmp_path / "run", on_notice=lambda text: None).fit()
    after = model.hierarchy.prior.state_dict()
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "couplings" not in name)
    for weights in ("averaged", "raw"):
        loaded = hk.load(tmp_path / "run", weights=weights).hierarchy.prior
        assert type(loaded) is type(model.hierarchy.prior)
        if weights == "raw":
            assert all(torch.equal(loaded.state_dict()[name], value) for name, value in after.items())
    hk.Trainer(model, torch.randn(64, 6), out=tmp_path / "run", resume=True, on_notice=lambda text: None)


def test_the_command_refuses_to_truncate_a_uniform_prior(halikit: Shell, tmp_path: Path) -> None:
    options = ["--set", "model.prior=uniform", "--set", "model.hidden=8"]
    halikit("--quiet", "train", "--levels", 1, "--steps", 2, *options, "--out", tmp_path / "run")
    complaint = halikit("sample", tmp_path / "run", "--truncation", 1, code=2)
    assert "the prior Uniform cannot be truncated" in complaint
    assert halikit("sample", tmp_path / "run")


def test_settings_of_another_prior_are_refused() -> None:
    for changes in ({"prior_components": 3}, {"prior": "flow", "prior_components": 3}, {"prior": "flow", "classes": 3}):
        with pytest.raises(ConfigError, match="has no effect"):
            override(hk.Config(), changes)


@pytest.mark.parametrize("name", ["StandardNormal", "Uniform", "Mixture", "Flow"])
def test_no_samples_are_an_empty_tensor(name):
    over = space(2, 3)
    assert getattr(hk.priors, name)(over).sample(0).shape == (0, 2, 3)
