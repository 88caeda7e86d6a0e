"""Each kernel that ships is built, refused and trained: mixtures, flows, implicit and location-scale kernels."""

import math

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, configured, linear_gaussian
from scipy import stats
from torch import Tensor, nn

import halikit as hk
from halikit.algorithm import play
from halikit.kernels import GaussianMixture
from halikit.training.sleep import sleep_loss

V, W = hk.Space("v", (3,)), hk.Space("w", (4,))
FAMILIES = ["laplace", "logistic", "student_t"]


class Fixed(nn.Module):
    """Gives the same output for every state."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.tensor(numbers))

    def forward(self, given: Tensor) -> Tensor:
        return self.out.expand(len(given), -1)


# --- location and scale -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("raw", [-50.0, 0.0, 50.0])
def test_the_upper_bound_is_of_the_standard_deviation(family, raw):
    kernel = hk.LocationScaleKernel(V, hk.Space("w", (1,)), Fixed(0.3, raw), family=family, max_scale=0.5)
    given = torch.zeros(20_000, 3)
    scale = kernel.scale(given)
    assert (scale <= 0.5).all()
    torch.testing.assert_close(kernel(given).stddev, scale)
    draws = kernel.sample(given)
    assert draws.std().item() == pytest.approx(scale[0].item(), rel=0.05)  # 20,000 draws
    assert draws.mean().item() == pytest.approx(0.3, abs=5 * scale[0].item() / math.sqrt(20_000))


@pytest.mark.parametrize(("family", "expected"), [("laplace", stats.laplace), ("logistic", stats.logistic)])
def test_densities_are_those_of_the_family(family, expected):
    kernel = hk.LocationScaleKernel(V, hk.Space("w", (1,)), Fixed(0.3, 0.0), family=family)
    value, unit = (
        torch.linspace(-3, 3, 7)[:, None],
        {"laplace": math.sqrt(2), "logistic": math.pi / math.sqrt(3)}[family],
    )
    right = torch.tensor(expected(0.3, 1 / unit).logpdf(value[:, 0].numpy())).float()
    torch.testing.assert_close(kernel.log_prob(value, torch.zeros(7, 3)), right, rtol=1e-4, atol=1e-5)


def test_any_family_will_do():
    gumbel = hk.LocationScaleKernel(V, W, Network(V, 8), family=dist.Gumbel, max_scale=0.5)
    hk.testing.check_kernel(gumbel)
    assert (gumbel(torch.randn(5, 3)).stddev <= 0.5).all()
    cauchy = hk.LocationScaleKernel(V, W, Network(V, 8), family=dist.Cauchy)
    assert cauchy.representative == "mode"
    hk.testing.check_kernel(cauchy)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"family": "cauchy"}, "family is 'laplace', 'logistic', 'student_t' or a function, got 'cauchy'"),
        ({"family": "student_t", "degrees_of_freedom": 2.0}, "degrees_of_freedom is above 2"),
        ({"max_scale": 0.0}, "max_scale is an upper bound above 0.001, got 0.0"),
        ({"family": dist.Cauchy, "max_scale": 0.5}, "the noise of this family has none"),
    ],
)
def test_location_scale_kernels_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=rf"T_\{{w\|v\}}: .*{words}"):
        hk.LocationScaleKernel(V, W, Network(V, 8), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_location_scale_kernels_can_preserve_variance(family):
    kernel = hk.LocationScaleKernel(V, W, Network(V, 8), family=family, max_scale=0.5)
    gauged = hk.gauged(kernel, "variance_preserving").train()
    with torch.no_grad():
        draws = gauged.sample(torch.randn(20_000, 3))
    # Not exactly one, because the scale depends on the state; 20,000 draws.
    assert (draws.var(0) - 1).abs().max() < 0.15
    assert draws.mean(0).abs().max() < 0.05


# --- mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 3)], ids=str)
def test_gradients_of_mixtures_are_those_of_the_expectation(shape):
    """Against the score function: exact for a quadratic function; 100,000 draws, 8 %."""
    size, n = math.prod(shape), 100_000
    parameters = [torch.randn(3, size), 0.3 + torch.rand(3, size), torch.randn(3)]
    parameters = [parameter.requires_grad_() for parameter in parameters]
    mixture = GaussianMixture(*(parameter.expand(n, *parameter.shape) for parameter in parameters), shape)
    weight = torch.randn(shape)

    def function(draws: Tensor) -> Tensor:
        projected = (draws * weight).reshape(n, -1).sum(1)
        return projected.square() + projected

    draws = mixture.rsample()
    assert draws.shape == (n, *shape)
    through = torch.autograd.grad(function(draws).mean(), parameters, retain_graph=True)
    values = function(draws).detach()
    score = ((values - values.mean()) * mixture.log_prob(draws.detach())).mean()
    for found, right in zip(through, torch.autograd.grad(score, parameters), strict=True):
        assert (found - right).norm() < 0.08 * right.norm() + 0.02


def test_gradients_of_mixtures_are_finite_where_those_of_pyro_are_not():
    equal, scales, logits = torch.zeros(5, 3, 200), torch.ones(5, 3, 200), torch.zeros(5, 3)
    for make in (dist.MixtureOfDiagNormals, GaussianMixture):
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(make(equal, scales, leaf).rsample().sum(), leaf)
        assert bool(gradient.isfinite().all()) == (make is GaussianMixture)


def test_a_mixture_knows_mean_and_variance():
    kernel = hk.MixtureKernel(V, hk.Space("w", (2, 2)), Network(V, 18), components=2)
    given = torch.randn(1, 3)
    draws = kernel.sample(given.expand(50_000, 3))
    error = 5 * draws.std(0) / math.sqrt(50_000)
    assert ((draws.mean(0) - kernel.mean(given)[0]).abs() < error).all()
    torch.testing.assert_close(kernel(given).variance[0], draws.var(0), rtol=0.05, atol=0.01)  # 50,000 draws


def test_sizes_of_networks_are_named():
    with pytest.raises(ValueError, match=r"gives \(5, 8\) .* need 4 × \(2 × 4 \+ 1\) elements"):
        hk.MixtureKernel(V, W, Network(V, 8)).sample(torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"gives \(5, 8\) .* needs 3 features"):
        hk.FlowKernel(V, W, Network(V, 8), features=3).sample(torch.randn(5, 3))
    with pytest.raises(ValueError, match="one component or more, got 0"):
        hk.MixtureKernel(V, W, Network(V, 8), components=0)
    with pytest.raises(ValueError, match="features, layers and hidden are 1 or more"):
        hk.FlowKernel(V, W, Network(V, 8), layers=0)


# --- flows and implicit kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "layers", "steps"), [((), 1, 60), ((2, 3), 2, 100)], ids=str)
def test_a_flow_fits_what_a_gaussian_cannot(shape, layers, steps):
    """Two points of equal probability at ±1, with noise 0.1: a Gaussian's best log-density is −1.42 an element."""
    kernel = hk.FlowKernel(V, hk.Space("w", shape), Network(V, 8), layers=layers, hidden=16)
    optimiser = torch.optim.Adam(kernel.parameters(), 2e-2)
    for _ in range(steps):
        sign = torch.randint(2, (128, *[1] * len(shape))) * 2.0 - 1
        target = sign + 0.1 * torch.randn(128, *shape)
        loss = kernel.sleep_loss(target, torch.zeros(128, 3)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 1.2


def test_a_flow_counts_features_and_needs_their_number_with_a_context():
    flow = hk.FlowKernel(V, W, Network(V, 7))
    assert flow.features == 7
    network = Network(V, 7)
    network.takes_context = True
    with pytest.raises(ValueError, match="features"):
        hk.FlowKernel(V, W, network)


def test_the_mean_of_flows_and_implicit_kernels_is_the_draw_at_zero_noise():
    for kernel in (hk.FlowKernel(V, W, Network(V, 7)), hk.ImplicitKernel(V, W, hk.noisy_network(V, W))):
        assert kernel.representative == "draw at fixed noise"
        given, state = torch.randn(5, 3), torch.get_rng_state()
        assert torch.equal(kernel.mean(given), kernel.mean(given))
        assert torch.equal(torch.get_rng_state(), state)
    silent = nn.Sequential(nn.Linear(3, 4))

    class Added(nn.Module):
        def forward(self, given: Tensor, noise: list[Tensor]) -> Tensor:
            return silent(given) + noise[0] + noise[1].sum((1, 2))[:, None]

    kernel = hk.ImplicitKernel(V, W, Added(), noise=[(4,), (2, 3)])
    assert torch.equal(kernel.mean(given), silent(given))
    # Variance 1 + 6; 20,000 draws.
    assert (kernel.sample(torch.zeros(20_000, 3)).var(0) / 7 - 1).abs().max() < 0.1


def test_an_implicit_kernel_needs_noise():
    with pytest.raises(ValueError, match="use DeterministicKernel"):
        hk.ImplicitKernel(V, W, Network(V, 4))
    with pytest.raises(ValueError, match="width, noise and depth are 1 or more"):
        hk.noisy_network(V, W, noise=0)


def test_noise_enters_images_at_every_resolution():
    maps = hk.Space("v", (2, 16, 16)), hk.Space("w", (3, 16, 16))
    network = hk.noisy_network(*maps, width=3, noise=5)
    assert network.noise == ((5,), (1, 4, 4), (1, 8, 8), (1, 16, 16))
    assert hk.noisy_network(V, hk.Space("w", (3, 7, 7))).noise == ((16,), (1, 7, 7))
    kernel = hk.ImplicitKernel(*maps, network)
    noise = [torch.zeros(4, *shape) for shape in network.noise]
    still = network(torch.zeros(4, 2, 16, 16), noise)
    for map_ in noise:
        map_[0] = 1.0
        moved = network(torch.zeros(4, 2, 16, 16), noise)
        assert not torch.equal(moved[0], still[0])
        assert torch.equal(moved[1:], still[1:])
        map_[0] = 0.0
    assert not torch.equal(kernel.mean(torch.randn(2, 2, 16, 16)), kernel.mean(torch.randn(2, 2, 16, 16)))


def test_the_energy_score_finds_location_and_scale():
    """Of targets ``N(2, 0.5²)``, within 0.1, after 200 steps."""
    one = hk.Space("w", (1,))

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.location, self.scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))

        def forward(self, given: Tensor, noise: list[Tensor]) -> Tensor:
            return self.location + self.scale * noise[0]

    kernel = hk.ImplicitKernel(V, one, Affine(), noise=[(1,)])
    optimiser = torch.optim.Adam(kernel.parameters(), 5e-2)
    for _ in range(200):
        optimiser.zero_grad()
        kernel.sleep_loss(2 + 0.5 * torch.randn(256, 1), torch.zeros(256, 3)).mean().backward()
        optimiser.step()
    assert kernel.network.location.item() == pytest.approx(2, abs=0.1)
    assert abs(kernel.network.scale.item()) == pytest.approx(0.5, abs=0.1)


class Contextual(nn.Module):
    """Reads the context, and noise if there is any."""

    takes_context = True

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.network = Network(V, outputs)

    def forward(self, given: Tensor, context: Tensor, noise: list[Tensor] | None = None) -> Tensor:
        out = self.network(given + context)
        return out if noise is None else out + noise[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: hk.MixtureKernel(V, W, Contextual(18), components=2),
        lambda: hk.FlowKernel(V, W, Contextual(5), features=5),
        lambda: hk.LocationScaleKernel(V, W, Contextual(8)),
        lambda: hk.ImplicitKernel(V, W, Contextual(4), noise=[(4,)]),
    ],
)
def test_kernels_take_a_context_if_their_network_does(make):
    hk.testing.check_kernel(make(), context=torch.randn(4, 3))


# --- training ---------------------------------------------------------------------------------------------------------


def network(source: hk.Space, outputs: int) -> nn.Module:
    return Network(source, outputs, hidden=16)


# Kernels of latents, from their spaces.
KINDS = {
    "gaussian": lambda s, t: hk.GaussianKernel(s, t, network(s, 2 * t.size), max_scale=0.5),
    "linear_gaussian": linear_gaussian,
    "mixture": lambda s, t: hk.MixtureKernel(s, t, network(s, 3 * (2 * t.size + 1)), components=3, max_scale=0.5),
    "flow": lambda s, t: hk.FlowKernel(s, t, network(s, 8), layers=2, hidden=16),
    "implicit": lambda s, t: hk.ImplicitKernel(s, t, hk.noisy_network(s, t, width=16, noise=4)),
    "laplace": lambda s, t: hk.LocationScaleKernel(s, t, network(s, 2 * t.size), max_scale=0.5),
    "logistic": lambda s, t: hk.LocationScaleKernel(s, t, network(s, 2 * t.size), family="logistic", max_scale=0.5),
    "student_t": lambda s, t: hk.LocationScaleKernel(s, t, network(s, 2 * t.size), family="student_t", max_scale=0.5),
    "deterministic": lambda s, t: hk.DeterministicKernel(s, t, network(s, t.size)),
    "bernoulli": lambda s, t: hk.BernoulliKernel(s, t, network(s, t.size)),
    "bernoulli_relaxed": lambda s, t: hk.BernoulliKernel(s, t, network(s, t.size), temperature=0.1),
    "categorical": lambda s, t: hk.CategoricalKernel(s, t, network(s, t.size)),
    "categorical_relaxed": lambda s, t: hk.CategoricalKernel(s, t, network(s, t.size), temperature=0.1),
}
DISCRETE = ("bernoulli", "categorical")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:samples have collapsed")
@pytest.mark.filterwarnings("ignore:the discriminator has known")
def test_each_kernel_trains_at_two_levels_and_in_the_sleep_phase(kind):
    """Six steps on the digits: every loss is finite, every parameter of the kernels moves."""
    make = KINDS[kind]
    x, z1, z2 = hk.Space("x", (1, 8, 8)), hk.Space("z1", (6,)), hk.Space("z2", (4,))
    gauge = (lambda kernel: kernel) if kind.startswith(DISCRETE) else (lambda kernel: hk.gauged(kernel, "standardised"))
    top = KINDS["gaussian"] if kind.startswith(DISCRETE) else make
    up, above, below = gauge(make(x, z1)), gauge(top(z1, z2)), gauge(make(z2, z1))
    down = hk.DeterministicKernel(z1, x, network(z1, x.size))
    hierarchy = hk.Hierarchy([hk.Link(up, down), hk.Link(above, below)])
    before = {name: value.detach().clone() for name, value in hierarchy.named_parameters()}
    model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=16))
    settings = configured(steps=6, batch_size=32, game__sleep_weights=(1.0, 1.0))
    trainer = hk.Trainer(model, "digits", settings=settings)
    trainer.fit()
    still = [name for name, value in hierarchy.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    assert all(value.isfinite().all() for value in hierarchy.parameters())
    step = play(hierarchy, model.discriminator, torch.randn(16, *x.shape))
    assert step.generator_loss.isfinite()
    hierarchy.zero_grad()
    loss = sleep_loss(hierarchy, step.decoder_states, [1.0, 1.0])
    assert loss.isfinite()
    loss.backward()
    assert all(parameter.grad is not None for kernel in (up, above) for parameter in kernel.parameters())
