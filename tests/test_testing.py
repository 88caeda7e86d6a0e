"""``check_kernel`` passes for every kernel of the catalogue, and says in words what is wrong with a broken one."""

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, cases
from torch import nn

import halikit as hk

V, W = hk.Space("v", (3,)), hk.Space("w", (4,))


@cases()
def test_every_kernel_of_the_catalogue_passes(case):
    kernel = case.kernel()
    before = {name: value.clone() for name, value in kernel.state_dict().items()}
    state = torch.get_rng_state()
    hk.testing.check_kernel(kernel)
    assert all(torch.equal(value, before[name]) for name, value in kernel.state_dict().items())
    assert all(parameter.grad is None for parameter in kernel.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Density(hk.DensityKernel):
    """A kernel whose distribution is a function of the network's output, ``(n, 4)``."""

    def __init__(self, make, target=W):
        super().__init__(V, target)
        self.network, self.make = Network(V, 4), make

    def forward(self, given):
        return self.make(self.network(given))


class Draw(hk.Kernel):
    """A kernel whose draws are a function of the network's output and a generator."""

    def __init__(self, make, mean=None):
        super().__init__(V, W)
        self.network, self.make, self.mean_of = Network(V, 4), make, mean

    def sample(self, given, *, generator=None):
        return self.make(self.network(given), generator)


class Mean(Draw):
    """The same with a mean."""

    def mean(self, given):
        return self.mean_of(self.network(given))


def noise(out, generator=None, rows=None):
    return torch.randn(rows or len(out), 4, generator=generator, dtype=out.dtype)


class Scaled(dist.Normal):
    """Draws three times as far from the mean as the density says."""

    def rsample(self, sample_shape=()):
        return self.loc + 3 * (super().rsample(torch.Size(sample_shape)) - self.loc)


class Unnormalised(dist.Normal):
    """A density without its constant."""

    def log_prob(self, value):
        return -0.5 * ((value - self.loc) / self.scale) ** 2


class Undefined(dist.Normal):
    """A density that is not finite at a part of its draws."""

    def log_prob(self, value):
        return super().log_prob(value).where(value < self.loc + self.scale, torch.tensor(float("nan")))


class Biased(dist.Bernoulli):
    """Bits that are drawn with another probability than their density says."""

    def sample(self, sample_shape=()):
        return (torch.rand(self._extended_shape(torch.Size(sample_shape))) < 0.5 * self.probs).to(self.probs)


class Frozen(hk.DensityKernel):
    """Its weights are drawn from, by a mixture that passes no gradient."""

    def __init__(self):
        super().__init__(V, W)
        self.network = Network(V, 12)

    def forward(self, given):
        locations, logits = self.network(given).split([8, 4], 1)
        components = dist.Normal(locations.unflatten(1, (2, 4)), 0.3).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits[:, :2]), components)


BROKEN = {
    "no event dimensions": (lambda: Density(lambda out: dist.Laplace(out, 0.1)), [r"got \(\) .*to_event\(1\)"]),
    "one element too many": (
        lambda: Draw(lambda out, g: torch.cat([out, out[:, :1]], 1)),
        [r"a draw has the shape \(5, 4\), got \(5, 5\)"],
    ),
    "another dtype": (lambda: Draw(lambda out, g: out.double()), ["a draw is of torch.float32, got torch.float64"]),
    "one dtype": (
        lambda: Draw(lambda out, g: (out + noise(out, g)).float()),
        ["in double precision: .* a draw is of torch.float64, got torch.float32"],
    ),
    "not for batches of one": (
        lambda: Draw(lambda out, g: out + noise(out, g) / (len(out) - 1 or [])),
        [r"sample\(\) for batch dimensions \(1,\) fails: unsupported operand"],
    ),
    "coupled draws": (
        lambda: Draw(lambda out, g: out + noise(out, g) + out[-1:]),
        ["a draw depends on the other rows"],
    ),
    "detached": (lambda: Draw(lambda out, g: out.detach() + noise(out, g)), ["draws pass no gradient.*rsample"]),
    "not reparametrised": (Frozen, ["draws pass no gradient.*straight-through"]),
    "given is not read": (
        lambda: Density(lambda out: dist.Normal(0 * out, 1.0).to_event(1)),
        ["reaches what is given"],
    ),
    "too wide": (lambda: Density(lambda out: Scaled(out, 0.3).to_event(1)), ["does not fit its draws.*and 1 is right"]),
    "not normalised": (lambda: Density(lambda out: Unnormalised(out, 0.3).to_event(1)), ["Check its normalisation"]),
    "not finite": (lambda: Density(lambda out: Undefined(out, 0.3).to_event(1)), ["draws have no finite log-density"]),
    "other bits": (
        lambda: Density(lambda out: Biased(logits=out).to_event(1)),
        ["does not fit its draws: a state of probability", "pass no gradient"],
    ),
    "a random mean": (
        lambda: Mean(lambda out, g: out + noise(out, g), lambda out: out + noise(out)),
        [r"mean\(\) is random"],
    ),
    "another mean": (
        lambda: Mean(lambda out, g: out + noise(out, g), lambda out: out + 0.5),
        [r"mean\(\) is not the mean of the draws"],
    ),
    "generator ignored": (lambda: Draw(lambda out, g: out + noise(out)), ["ignores its generator.*drawing_from"]),
    "noise of its own": (
        lambda: Draw(lambda out, g: out + torch.Generator().seed() % 1000 / 1e3),
        ["draws under the same seed differ"],
    ),
    "shared noise": (lambda: Draw(lambda out, g: out + noise(out, g, 1)), ["rows of a batch share their noise"]),
    "coupled rows": (
        lambda: Mean(lambda out, g: out - out.mean(0) + noise(out, g), lambda out: out - out.mean(0)),
        [r"mean\(\) of a row depends on the other rows", "a draw depends on the other rows"],
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_kernel_is_refused_in_words(fault):
    make, words = BROKEN[fault]
    with pytest.raises(AssertionError, match=words[0]) as refused:
        hk.testing.check_kernel(make())
    for others in words[1:]:
        refused.match(others)
    assert str(refused.value).startswith(r"T_{w|v} (")


def test_a_parameter_without_effect_is_named():
    kernel = hk.GaussianKernel(V, W, Network(V, 8))
    kernel.spare = nn.Parameter(torch.zeros(2))
    with pytest.raises(AssertionError, match="of the draws reaches spare"):
        hk.testing.check_kernel(kernel)
    kernel.spare.requires_grad_(False)
    hk.testing.check_kernel(kernel)


class Conditional(nn.Module):
    takes_context = True

    def __init__(self, wrong=False):
        super().__init__()
        self.network, self.wrong = Network(V, 8), wrong

    def forward(self, given, context):
        return self.network(given + (context[:1] if self.wrong else context))


def test_a_kernel_with_a_context_is_checked_with_one():
    kernel = hk.GaussianKernel(V, W, Conditional())
    with pytest.raises(ValueError, match=r"takes a context: give check_kernel context="):
        hk.testing.check_kernel(kernel)
    hk.testing.check_kernel(kernel, context=torch.randn(6, 3))
    with pytest.raises(AssertionError, match="row i of the context"):
        hk.testing.check_kernel(hk.GaussianKernel(V, W, Conditional(wrong=True)), context=torch.randn(6, 3))


def test_states_that_are_given_fit_the_source():
    for support in ("unit", "bits", "one_hot", "simplex"):
        hk.testing.check_kernel(hk.GaussianKernel(hk.Space("v", (3,), support), W, Network(V, 8)))
    index = hk.Space("v", (), "index")
    kernel = hk.CategoricalKernel(index, hk.Space("y", (3,)), nn.Embedding(5, 3))
    with pytest.raises(ValueError, match="indices: give check_kernel given="):
        hk.testing.check_kernel(kernel)
    hk.testing.check_kernel(kernel, given=torch.arange(5))
