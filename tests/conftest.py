"""What the tests share: the catalogue of every kernel class with the laws each obeys, and tiny models."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import hypothesis
import pyro.distributions as dist
import pytest
import torch
from browser import browser as browser
from PIL import Image
from torch import Tensor, nn

import halikit as hk
from halikit.cli import main
from halikit.config import override

# A script of its own, for an extra that does not install everywhere; tests/test_fuzz.py starts it.
collect_ignore = ["fuzz_atheris.py"]
torch.set_num_threads(1)
# The same examples every time, and no deadlines, which a busy machine would miss.
hypothesis.settings.register_profile("halikit", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("halikit")

Support = Literal["real", "bits", "unit", "one_hot", "simplex", "index"]


@pytest.fixture(autouse=True, scope="session")
def _plain_machine() -> Iterator[None]:
    """Numbers do not depend on the machine that runs the tests: ``auto`` is float32 and eager."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        patched.setattr("halikit.training.defaults.has_compiler", lambda device: False)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


Shell = Callable[..., str]


@pytest.fixture
def halikit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command line within this process; gives what it prints, or its complaint if it exits with ``code``."""

    def call(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["halikit", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        said = capsys.readouterr()
        assert (exit.value.code or 0) == code, said.err
        return said.err if code else said.out

    return call


def without_machine_code(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let a captured step be played as it is, operation by operation; gives the graphs as they come."""
    graphs: list[object] = []

    def interpreted(graph: nn.Module, inputs: list[Tensor], *, options: dict[str, object]) -> nn.Module:
        graph.recompile()
        graphs.append(graph)
        return graph

    monkeypatch.setattr("torch._inductor.compile", interpreted)
    return graphs


def configured(**changes: object) -> hk.Config:
    """The default settings with some changed, each by the last part of its name, or as ``section__name``."""
    return override(hk.Config(), {name.replace("__", "."): value for name, value in changes.items()})


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


class Network(nn.Module):
    """A tiny smooth network from states of any shape, floats or indices, to ``(n, outputs)``."""

    def __init__(self, source: hk.Space, outputs: int, hidden: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(source.size, hidden), nn.Tanh(), nn.Linear(hidden, outputs))

    def forward(self, given: Tensor) -> Tensor:
        return self.layers(given.reshape(len(given), -1).to(self.layers[0].weight.dtype))


class UniformKernel(hk.Kernel):
    """A user's kernel that can only be sampled: a function plus uniform noise."""

    def __init__(self, source: hk.Space, target: hk.Space) -> None:
        super().__init__(source, target)
        self.network = Network(source, target.size)

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        batch = given.shape[: given.dim() - self.source.rank]
        centre = self.network(given.reshape(-1, *self.source.shape)).reshape(*batch, *self.target.shape)
        return centre + torch.rand(centre.shape, generator=generator, dtype=centre.dtype) - 0.5


class MixtureKernel(hk.DensityKernel):
    """A user's kernel with a density: a mixture of diagonal Gaussians over vectors; its mean is not known to Pyro."""

    def __init__(self, source: hk.Space, target: hk.Space, components: int = 3) -> None:
        super().__init__(source, target)
        self.components = components
        self.network = Network(source, components * (2 * target.size + 1))

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        batch = given.shape[: given.dim() - self.source.rank]
        out = self.network(given.reshape(-1, *self.source.shape)).reshape(*batch, self.components, -1)
        locs, scales, logits = out.split([self.target.size, self.target.size, 1], -1)
        return dist.MixtureOfDiagNormals(2 * locs, scales.tanh().exp(), logits.squeeze(-1))


@dataclass(frozen=True)
class KernelCase:
    """One kernel class in one form.

    Attributes:
        name: Of the form.
        make: Builds it between two spaces.
        shape: Of the target by default.
        support: Where the target's states lie.
        density: Whether it has a density.
        reparametrised: Whether samples pass gradients to what is given and to the parameters.
        gauge: Whether it takes batch statistics in training.
        noisy: Whether two draws differ.
        exact_mean: Whether ``mean`` is the conditional mean of the samples.
    """

    name: str
    make: Callable[[hk.Space, hk.Space], hk.Kernel]
    shape: tuple[int, ...]
    support: Support = "real"
    density: bool = True
    reparametrised: bool = True
    gauge: bool = False
    noisy: bool = True
    exact_mean: bool = True

    def kernel(self, source: hk.Space = hk.Space("v", (3,)), target: hk.Space | None = None) -> hk.Kernel:
        """The kernel in evaluation mode, with random weights that depend on the case's name alone."""
        with torch.random.fork_rng([]):
            torch.manual_seed(sum(map(ord, self.name)))
            kernel = self.make(source, target or hk.Space("w", self.shape))
        if self.gauge:
            _settle(kernel)
        return kernel.eval()

    def __str__(self) -> str:
        return self.name


def gaussian(source: hk.Space, target: hk.Space, **options: object) -> hk.GaussianKernel:
    """A Gaussian kernel on a tiny network."""
    outputs = target.size * (2 if isinstance(options.get("scale", "diagonal"), str) else 1)
    return hk.GaussianKernel(source, target, Network(source, outputs), **options)


def linear_gaussian(source: hk.Space, target: hk.Space, dtype: torch.dtype = torch.float32) -> hk.LinearGaussianKernel:
    """A random linear-Gaussian kernel with a full, well-conditioned covariance."""
    factor = torch.randn(target.size, target.size) / math.sqrt(target.size)
    covariance = factor @ factor.T + 0.5 * torch.eye(target.size)
    weight = torch.randn(target.size, source.size) / math.sqrt(source.size)
    return hk.LinearGaussianKernel(
        source, target, weight.to(dtype), torch.randn(target.size).to(dtype), covariance.to(dtype)
    )


def composite(source: hk.Space, target: hk.Space) -> hk.Kernel:
    """Two Gaussian kernels through a space between."""
    between = hk.Space(f"between_{source.name}_{target.name}", (2,))
    return gaussian(between, target) @ gaussian(source, between)


def linear_composite(source: hk.Space, target: hk.Space) -> hk.Kernel:
    """The closed-form composition of two linear-Gaussian kernels."""
    between = hk.Space(f"between_{source.name}_{target.name}", (2,))
    return linear_gaussian(between, target) @ linear_gaussian(source, between)


def _networked(
    kernel: Callable[..., hk.Kernel], outputs: int | None = None, **options: object
) -> Callable[..., hk.Kernel]:
    def make(source: hk.Space, target: hk.Space) -> hk.Kernel:
        return kernel(source, target, Network(source, outputs or target.size), **options)

    return make


def _settle(kernel: hk.Kernel) -> None:
    """Give the running statistics of a gauge something to have run over."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        for _ in range(30):
            kernel.train().sample(torch.randn(64, *kernel.source.shape))


_STANDARDISED = partial(gaussian, gauge="standardised")
_VP = partial(gaussian, gauge="variance_preserving")


def mixture(source: hk.Space, target: hk.Space, components: int = 3) -> hk.MixtureKernel:
    """A mixture on a tiny network."""
    network = Network(source, components * (2 * target.size + 1))
    return hk.MixtureKernel(source, target, network, components=components)


def flow(source: hk.Space, target: hk.Space) -> hk.FlowKernel:
    """A flow of two layers on a tiny network."""
    return hk.FlowKernel(source, target, Network(source, 5), features=5, layers=2, hidden=8)


def implicit(source: hk.Space, target: hk.Space) -> hk.ImplicitKernel:
    """A small network of noise at several resolutions."""
    return hk.ImplicitKernel(source, target, hk.noisy_network(source, target, width=6, noise=3))


def location_scale(source: hk.Space, target: hk.Space, **options: object) -> hk.LocationScaleKernel:
    """A location-scale kernel on a tiny network."""
    return hk.LocationScaleKernel(source, target, Network(source, 2 * target.size), **options)


_BITS = partial(_networked, hk.BernoulliKernel)
_CLASSES = partial(_networked, hk.CategoricalKernel)

CATALOGUE: tuple[KernelCase, ...] = (
    KernelCase("gaussian_diagonal_vector", gaussian, (4,)),
    KernelCase("gaussian_diagonal_image", gaussian, (2, 4, 4)),
    KernelCase("gaussian_diagonal_matrix", gaussian, (2, 3)),
    KernelCase("gaussian_diagonal_scalar", gaussian, ()),
    KernelCase("gaussian_isotropic_vector", partial(gaussian, scale="isotropic"), (4,)),
    KernelCase("gaussian_isotropic_image", partial(gaussian, scale="isotropic"), (2, 4, 4)),
    KernelCase("gaussian_isotropic_scalar", partial(gaussian, scale="isotropic"), ()),
    KernelCase("gaussian_fixed_vector", partial(gaussian, scale=0.3), (4,)),
    KernelCase("gaussian_fixed_image", partial(gaussian, scale=0.3), (2, 4, 4)),
    KernelCase("gaussian_capped_vector", partial(gaussian, max_scale=0.5), (4,)),
    KernelCase("gaussian_capped_isotropic_matrix", partial(gaussian, scale="isotropic", max_scale=0.5), (2, 3)),
    KernelCase("gaussian_standardised_vector", _STANDARDISED, (4,), gauge=True),
    KernelCase("gaussian_standardised_capped_image", partial(_STANDARDISED, max_scale=0.5), (2, 4, 4), gauge=True),
    KernelCase("gaussian_standardised_fixed_scalar", partial(_STANDARDISED, scale=0.5), (), gauge=True),
    KernelCase("gaussian_vp_vector", partial(_VP, max_scale=0.5), (4,), gauge=True),
    KernelCase("gaussian_vp_image", partial(_VP, max_scale=0.5), (2, 4, 4), gauge=True),
    KernelCase("gaussian_vp_isotropic_matrix", partial(_VP, scale="isotropic", max_scale=0.9), (2, 3), gauge=True),
    KernelCase("gaussian_vp_fixed_vector", partial(_VP, scale=0.5), (4,), gauge=True),
    KernelCase("deterministic_vector", _networked(hk.DeterministicKernel), (4,), density=False, noisy=False),
    KernelCase("deterministic_image", _networked(hk.DeterministicKernel), (1, 3, 5), density=False, noisy=False),
    KernelCase("deterministic_scalar", _networked(hk.DeterministicKernel), (), density=False, noisy=False),
    KernelCase("bernoulli_hard_vector", _BITS(), (4,), "bits"),
    KernelCase("bernoulli_hard_image", _BITS(), (1, 3, 3), "bits"),
    KernelCase("bernoulli_relaxed_matrix", _BITS(temperature=0.7), (2, 3), "unit", exact_mean=False),
    KernelCase("categorical_one_hot", _CLASSES(), (4,), "one_hot"),
    KernelCase("categorical_relaxed", _CLASSES(temperature=0.7), (3,), "simplex", exact_mean=False),
    KernelCase("categorical_index", _CLASSES(5), (), "index", reparametrised=False, exact_mean=False),
    KernelCase("linear_gaussian_vector", linear_gaussian, (3,)),
    KernelCase("linear_gaussian_image", linear_gaussian, (1, 2, 2)),
    KernelCase("linear_gaussian_matrix", linear_gaussian, (2, 3)),
    KernelCase("linear_gaussian_scalar", linear_gaussian, ()),
    KernelCase("mixture_vector", mixture, (4,)),
    KernelCase("mixture_image", partial(mixture, components=2), (2, 4, 4)),
    KernelCase("mixture_scalar", mixture, ()),
    KernelCase("flow_vector", flow, (4,), exact_mean=False),
    KernelCase("flow_image", flow, (1, 3, 4), exact_mean=False),
    KernelCase("flow_scalar", flow, (), exact_mean=False),
    KernelCase("implicit_vector", implicit, (4,), density=False, exact_mean=False),
    KernelCase("implicit_image", implicit, (2, 8, 8), density=False, exact_mean=False),
    KernelCase("implicit_scalar", implicit, (), density=False, exact_mean=False),
    KernelCase("laplace_vector", location_scale, (4,)),
    KernelCase("logistic_image", partial(location_scale, family="logistic", max_scale=0.5), (2, 4, 4)),
    KernelCase("student_t_matrix", partial(location_scale, family="student_t", max_scale=0.5), (2, 3)),
    KernelCase("laplace_scalar", partial(location_scale, family="laplace", max_scale=2.0), ()),
    KernelCase("user_kernel", UniformKernel, (2, 3), density=False, exact_mean=False),
    KernelCase("user_mixture", MixtureKernel, (4,), exact_mean=False),
    KernelCase("composite", composite, (4,), density=False, exact_mean=False),
    KernelCase("linear_gaussian_composite", linear_composite, (4,)),
)


def cases(exclude: Sequence[str] = (), **laws: object) -> pytest.MarkDecorator:
    """Parametrise ``case`` over the entries of the catalogue that have these attributes."""
    chosen = [
        case
        for case in CATALOGUE
        if all(getattr(case, law) == value for law, value in laws.items()) and not case.name.startswith(tuple(exclude))
    ]
    assert chosen, f"no kernel in the catalogue has {laws}"
    return pytest.mark.parametrize("case", chosen, ids=str)


def link_back(kernel: hk.Kernel) -> None:
    """Pair every factor of a kernel with a Gaussian one back."""
    for factor in kernel.factors:
        hk.Link(factor, gaussian(factor.target, factor.source).eval())


def tiny_ladder(levels: int, data_shape: Sequence[int], **options: object) -> hk.Hierarchy:
    """A ladder small enough for a test; convolutional where told so."""
    conv = options.get("family") == "conv"
    widths = [3] * levels if conv else list(range(levels + 2, 2, -1))
    return hk.ladder(levels, data_shape, **{"widths": widths, "hidden": 4 if conv else 8, "depth": 1, **options})


def density_ladder(levels: int, data_shape: Sequence[int], **options: object) -> hk.Hierarchy:
    """A tiny ladder of density kernels, in evaluation mode, its running statistics settled."""
    hierarchy = tiny_ladder(levels, data_shape, **{"observation_scale": 0.5, **options})
    with torch.no_grad():
        for _ in range(20):
            hierarchy.encode(torch.randn(32, *data_shape), sample=True)
            hierarchy.sample(32)
    return hierarchy.eval()


def linear_hierarchy(levels: int, size: int = 3, dtype: torch.dtype = torch.float64) -> hk.Hierarchy:
    """Linear-Gaussian kernels throughout, from ``x`` of ``size`` elements to vectors of 2."""
    spaces = [hk.Space("x", (size,)), *(hk.Space(f"z{level}", (2,)) for level in range(1, levels + 1))]
    links = [
        hk.Link(linear_gaussian(lower, upper, dtype), linear_gaussian(upper, lower, dtype))
        for lower, upper in zip(spaces, spaces[1:], strict=False)
    ]
    return hk.Hierarchy(links).to(dtype)


class Opaque(hk.DensityKernel):
    """A kernel whose closed form nobody knows."""

    def __init__(self, kernel: hk.LinearGaussianKernel) -> None:
        super().__init__(kernel.source, kernel.target)
        self.kernel = kernel

    def forward(self, given: Tensor) -> torch.distributions.Distribution:
        return self.kernel(given)


def opaque(hierarchy: hk.Hierarchy) -> hk.Hierarchy:
    """The same kernels without their closed forms."""
    links = [hk.Link(Opaque(link.up), Opaque(link.down)) for link in hierarchy]
    return hk.Hierarchy(links).to(hierarchy.prior.dtype)


@torch.no_grad()
def moved(hierarchy: hk.Hierarchy) -> hk.Hierarchy:
    """The hierarchy a little away from its start, where last layers beside linear skips are zero."""
    for parameter in hierarchy.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return hierarchy


def gradients(module: nn.Module) -> list[Tensor | None]:
    """A copy of every parameter's gradient, in the order of the parameters."""
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in module.parameters()]


def relative_error(actual: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> float:
    """Norm of the difference over norm of what is expected, over all tensors at once; ``None`` counts as zero."""
    difference = total = 0.0
    for a, b in zip(actual, expected, strict=True):
        if a is None and b is None:
            continue
        a = torch.zeros_like(b) if a is None else a
        b = torch.zeros_like(a) if b is None else b
        difference += (a.double() - b.double()).square().sum().item()
        total += b.double().square().sum().item()
    assert total > 0, "nothing to compare with"
    return math.sqrt(difference / total)
