"""The contract of a user's kernel: any batch dimensions, wrong results refused, a deterministic mean, a context."""

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, gaussian
from torch import nn

import halikit as hk

V, W = hk.Space("v", (3,)), hk.Space("w", (8,))


class UserKernel(hk.DensityKernel):
    """Gives the distribution that a function makes of the network's output, ``(n, 8)``; written for ``(n, 3)``."""

    def __init__(self, make, source=V, target=W):
        super().__init__(source, target)
        self.network, self.make = nn.Linear(3, 8), make

    def forward(self, given):
        assert given.dim() == 2
        return self.make(self.network(given))


class UserDraw(hk.Kernel):
    """Draws what a function makes of the network's output."""

    def __init__(self, make, network=None):
        super().__init__(V, W)
        self.network, self.make = network or nn.Linear(3, 8), make

    def sample(self, given, *, generator=None):
        assert given.dim() == 2
        noise = torch.rand(len(given), 8, generator=generator, dtype=given.dtype)
        return self.make(self.network(given) + noise)


def laplace(out):
    return dist.Laplace(out, 0.1).to_event(1)


# --- batch dimensions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,), (2, 0), (2, 1, 3)], ids=str)
def test_a_kernel_for_one_batch_dimension_takes_any(batch):
    kernel, given = UserKernel(laplace), torch.randn(*batch, 3)
    distribution = kernel(given)
    assert (distribution.batch_shape, distribution.event_shape) == (batch, (8,))
    value = kernel.sample(given)
    assert value.shape == kernel.mean(given).shape == distribution.variance.shape == (*batch, 8)
    assert distribution.rsample((4,)).shape == (4, *batch, 8)
    assert distribution.log_prob(value).shape == kernel.log_prob(value, given).shape == batch
    assert distribution.entropy().shape == batch
    assert UserDraw(lambda out: out).sample(given).shape == (*batch, 8)


def test_densities_do_not_depend_on_how_the_batch_is_shaped():
    kernel, given = UserKernel(laplace), torch.randn(6, 3)
    value = kernel.sample(given)
    shaped = kernel.log_prob(value.reshape(2, 3, 8), given.reshape(2, 3, 3))
    torch.testing.assert_close(shaped.flatten(), kernel.log_prob(value, given))
    # One value for all that is given, and many values for each.
    torch.testing.assert_close(
        kernel(given.reshape(2, 3, 3)).log_prob(value[0])[0, 0], kernel.log_prob(value, given)[0]
    )
    assert kernel(given.reshape(2, 3, 3)).log_prob(torch.randn(7, 2, 3, 8)).shape == (7, 2, 3)


def test_a_distribution_that_ignores_what_is_given_is_expanded():
    kernel = UserKernel(lambda out: dist.Normal(torch.zeros(8), 1.0).to_event(1))
    assert kernel(torch.randn(5, 3)).batch_shape == (5,)
    assert kernel.sample(torch.randn(2, 5, 3)).shape == (2, 5, 8)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda out: dist.Laplace(out, 0.1),
            r"T_\{w\|v\}: the event shape of its distribution is \(8,\), got \(\) .*to_event\(1\)",
        ),
        (lambda out: dist.Laplace(torch.cat([out, out[:, :1]], 1), 0.1).to_event(1), r"\(8,\), got \(9,\)"),
        (lambda out: dist.Laplace(out[:2], 0.1).to_event(1), r"batch shape of its distribution is \(5,\), got \(2,\)"),
        (lambda out: out, "forward gives a distribution of pyro.distributions, got Tensor"),
        (
            lambda out: torch.distributions.Independent(torch.distributions.Normal(out, 1.0), 1),
            r"of pyro.distributions, got torch.distributions.Independent",
        ),
    ],
)
def test_a_wrong_distribution_is_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as refused:
        UserKernel(make).sample(torch.randn(5, 3))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda out: torch.cat([out, out[:, :1]], 1), r"T_\{w\|v\}: a draw has the shape \(5, 8\), got \(5, 9\)"),
        (lambda out: out[:, :, None], r"got \(5, 8, 1\)"),
        (lambda out: out.double(), "a draw is of torch.float32, got torch.float64"),
        (lambda out: out.long(), "a draw is of torch.float32, got torch.int64"),
        (lambda out: out.half(), "a draw is of torch.float32, got torch.float16"),
        (lambda out: (out, out), "a draw is a tensor .*, got tuple"),
    ],
)
def test_a_wrong_draw_is_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as refused:
        UserDraw(make).sample(torch.randn(5, 3))
    assert "\n" not in str(refused.value)


class Pair(nn.Module):
    def forward(self, given):
        return given, given


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Pair(), r"the network of T_\{w\|v\} gives a tensor, got tuple"),
        (nn.Linear(3, 16).double(), r"a network of T_\{w\|v\} cannot read states \(5, 3\) of torch.float32: .*dtype"),
        (nn.Embedding(3, 16), r"cannot read states \(5, 3\) of torch.float32: .*Long"),
        (nn.Linear(4, 16), r"cannot read states \(5, 3\) of torch.float32: .*shapes"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(network, words):
    with pytest.raises(ValueError, match=words) as refused:
        hk.GaussianKernel(V, W, network).sample(torch.randn(5, 3))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("make", [laplace, lambda out: dist.Delta(out + 1).to_event(1), lambda out: out.exp()])
def test_a_users_network_that_gives_a_tuple_is_refused_in_one_line(make):
    kernel = UserKernel(make)
    kernel.network = Pair()
    with pytest.raises(ValueError, match=r"^a network of T_\{w\|v\} gives a tuple where a tensor is needed") as refused:
        kernel.sample(torch.randn(5, 3))
    assert str(refused.value).count("a network of") == 1
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"the network of T_\{w\|v\} gives a tensor, got tuple"):
        hk.FlowKernel(V, W, Pair())


def test_a_sleep_loss_gives_one_number_a_sample():
    class Summed(UserDraw):
        def sleep_loss(self, target, given):
            return target.sum()

    with pytest.raises(ValueError, match=r"sleep_loss gives \(5,\), one number a sample; got \(\)"):
        Summed(lambda out: out).sleep_loss(torch.randn(5, 8), torch.randn(5, 3))


# --- what stands for the mean -----------------------------------------------------------------------------------------


def logit_normal(out):
    return dist.TransformedDistribution(dist.Normal(out, 1.0), [dist.transforms.SigmoidTransform()]).to_event(1)


@pytest.mark.parametrize(
    ("make", "representative"),
    [
        (laplace, "mean"),
        (lambda out: dist.Cauchy(out, 0.1).to_event(1), "mode"),
        (logit_normal, "median"),
        (
            lambda out: dist.MixtureOfDiagNormals(out[:, None], 0.1 * torch.ones(len(out), 1, 8), out[:, :1]),
            "draw at fixed noise",
        ),
    ],
)
def test_what_stands_for_the_mean(make, representative):
    kernel, given = UserKernel(make).eval(), torch.randn(5, 3)
    assert kernel.representative == representative
    assert kernel.knows_mean == (representative == "mean")
    out = kernel.mean(given)
    assert torch.equal(out, kernel.mean(given))
    assert out.isfinite().all()
    if representative != "draw at fixed noise":
        expected = kernel.network(given)
        torch.testing.assert_close(out, expected.sigmoid() if representative == "median" else expected)


def noisy_hierarchy():
    x, z = hk.Space("x", (3,)), hk.Space("z1", (8,))
    up, down = UserDraw(lambda out: out), UserDraw(lambda out: out[:, :3])
    up.source, up.target, down.source, down.target = x, z, z, x
    down.network = nn.Linear(8, 8)
    return hk.Hierarchy([hk.Link(up, down)]).eval()


def test_reconstructions_and_innovations_of_kernels_without_a_mean_are_deterministic():
    from halikit.analysis.innovation import innovate

    hierarchy, x = noisy_hierarchy(), torch.randn(16, 3)
    assert torch.equal(hierarchy.reconstruct(x), hierarchy.reconstruct(x))
    unchanged = innovate(hierarchy, x, 1, lambda z: z)
    assert torch.equal(unchanged.innovation, torch.zeros_like(unchanged.innovation))
    assert not torch.equal(hierarchy.reconstruct(x, sample=True), hierarchy.reconstruct(x, sample=True))


# --- dtypes -----------------------------------------------------------------------------------------------------------


def test_draws_stay_in_single_precision_under_autocast():
    for kernel in (
        gaussian(V, W),
        UserKernel(laplace),
        UserDraw(lambda out: out),
        hk.DeterministicKernel(V, W, nn.Linear(3, 8)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            assert kernel.sample(torch.randn(5, 3)).dtype == torch.float32
            assert kernel.mean(torch.randn(5, 3)).dtype == torch.float32


def test_kernels_in_double_precision_draw_in_it():
    for kernel in (gaussian(V, W), UserKernel(laplace), UserDraw(lambda out: out)):
        assert kernel.double().sample(torch.randn(5, 3).double()).dtype == torch.float64


# --- context ----------------------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """A network that adds the context to what is given."""

    takes_context = True

    def __init__(self, source, outputs):
        super().__init__()
        self.network = Network(source, outputs)

    def forward(self, given, context):
        return self.network(given + context)


class ReadsAttribute(hk.DensityKernel):
    takes_context = True

    def forward(self, given):
        return dist.Normal(given[:, :1] + self.context, 1e-3).to_event(1)


class ReadsArgument(hk.Kernel):
    takes_context = True

    def sample(self, given, *, generator=None, context=None):
        return given[:, :1] + context


def context_kernels():
    one = hk.Space("one", (1,))
    return [
        ReadsAttribute(V, one),
        ReadsArgument(V, one),
        hk.GaussianKernel(V, W, Shifted(V, 16)),
        hk.DeterministicKernel(V, W, Shifted(V, 8)),
    ]


@pytest.mark.parametrize("index", range(4))
def test_a_context_has_one_row_for_each_row_of_what_is_given(index):
    kernel, given = context_kernels()[index], torch.randn(5, 3)
    context = torch.randn(5, 1)
    together = kernel.mean(given, context=context)
    for i in range(5):
        torch.testing.assert_close(together[i], kernel.mean(given[i : i + 1], context=context[i : i + 1])[0])
        torch.testing.assert_close(together[i], kernel.conditioned(context[i : i + 1]).mean(given)[i])
    many = kernel.mean(given.expand(4, 5, 3), context=context)
    torch.testing.assert_close(many, together.expand(4, 5, *kernel.target.shape))
    with pytest.raises(ValueError, match=r"takes a context, and none was given: pass context="):
        kernel.sample(given)
    with pytest.raises(ValueError, match="as many rows as states are given, 5; got 3"):
        kernel.sample(given, context=context[:3])
    with pytest.raises(ValueError, match=r"a context is a tensor \(n, …\) or \(1, …\), got \(\)"):
        kernel.sample(given, context=torch.tensor(3))
    with pytest.raises(ValueError, match=r"a context is a tensor \(n, …\) or \(1, …\), got list"):
        kernel.sample(given, context=[1, 2])


def conditional_hierarchy():
    x, z1, z2 = (hk.Space(name, (3,)) for name in ("x", "z1", "z2"))
    links = [
        hk.Link(hk.GaussianKernel(x, z1, Shifted(x, 6)), gaussian(z1, x)),
        hk.Link(gaussian(z1, z2), hk.GaussianKernel(z2, z1, Shifted(z2, 6))),
    ]
    return hk.Hierarchy(links).eval()


def test_every_method_of_a_hierarchy_takes_a_context():
    import pyro

    hierarchy, x, c = conditional_hierarchy(), torch.randn(5, 3), torch.randn(5, 1)
    assert hierarchy.takes_context
    assert not hierarchy.encoder[1:].takes_context
    bound = hierarchy.conditioned(c)
    for given, plain in zip(hierarchy.encode(x, context=c).values(), bound.encode(x).values(), strict=True):
        assert torch.equal(given, plain)
    assert torch.equal(hierarchy.reconstruct(x, 1, context=c), bound[:1].reconstruct(x))
    assert not torch.equal(hierarchy.reconstruct(x, context=c), hierarchy.reconstruct(x, context=c + 1))
    assert hierarchy.sample(5, context=c).shape == (5, 3)
    assert hierarchy.sample(7, context=c[:1]).shape == (7, 3)
    for program, argument in (
        (hierarchy.encoder_joint, x),
        (hierarchy.decoder_joint, 5),
        (hierarchy.model, x),
        (hierarchy.guide, x),
    ):
        trace = pyro.poutine.trace(program).get_trace(argument, context=c)
        assert trace.log_prob_sum().isfinite()
    with pytest.raises(ValueError, match=r"T_\{z1\|x\} takes a context"):
        hierarchy.encode(x)
    assert torch.equal(hierarchy.conditioned(c).rows(slice(0, 2)).encode(x[:2])["z2"], bound.encode(x)["z2"][:2])


def test_kernels_without_a_context_ignore_one():
    kernel, given = gaussian(V, W).eval(), torch.randn(5, 3)
    assert torch.equal(kernel.mean(given, context=torch.randn(5, 2)), kernel.mean(given))
