"""Priors ``p(z_L)`` on the top space (section 3.1): modules that are trained, saved and moved with the hierarchy.

``hk.priors.fit`` fits a prior to a trained encoder; it is defined in :mod:`halikit.analysis.fitted_prior`, because it
needs models and data, which are above this file among the layers of the package.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from halikit.errors import InputError
from halikit.kernels import GaussianMixture
from halikit.spaces import Space
from halikit.utils.random import drawing_from, seeded

__all__ = [
    "Categorical",
    "Fixed",
    "Flow",
    "Mixture",
    "Prior",
    "PriorKind",
    "StandardNormal",
    "Uniform",
    "default_prior",
    "make_prior",
]

PriorKind = Literal["standard_normal", "uniform", "mixture", "flow"]

# Initial mean square of the components' means and their initial variance: together the variance 1 of a gauge.
_BETWEEN, _WITHIN = 0.75, 0.25


class Prior(nn.Module, ABC):
    """``p(z_L)``. Subclasses implement :meth:`forward`; their parameters are trained with the decoder.

    Args:
        space: The top space.
    """

    _origin: Tensor
    _is_checked = False

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.register_buffer("_origin", torch.zeros(()), persistent=False)

    @abstractmethod
    def forward(self) -> Distribution:
        """The distribution of one state: empty batch shape, event shape ``space.shape``."""

    def __call__(self) -> Any:
        """The distribution of :meth:`forward`, as a Pyro distribution.

        Raises:
            ValueError: If the distribution has other shapes.
        """
        distribution = super().__call__()
        shapes = tuple(distribution.batch_shape), tuple(distribution.event_shape)
        if shapes != ((), self.space.shape):
            raise ValueError(
                f"the prior must be over {self.space}: empty batch shape and event shape {self.space.shape}, got "
                f"{shapes[0]} and {shapes[1]} from {type(self).__name__}"
            )
        return distribution

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples ``(n, *space.shape)``; they pass gradients to the parameters if the distribution does.

        Args:
            n: Number of samples.
            generator: Random generator; torch's global one by default.
        """
        distribution = self()
        with drawing_from(generator, self.device):
            draw = distribution.rsample if distribution.has_rsample else distribution.sample
            z: Tensor = draw(torch.Size([n]))
        return z.to(self._origin) if z.is_floating_point() else z.to(self.device)

    def truncated_sample(self, n: int, bound: float, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples whose noise is cut off at ``bound`` standard deviations, ``(n, *space.shape)``.

        Args:
            n: Number of samples.
            bound: Bound of each element of the noise, positive.
            generator: Random generator; torch's global one by default.

        Raises:
            InputError: If the prior is not made of Gaussian noise, or the bound is not positive.
        """
        raise InputError(
            f"the prior {type(self).__name__} cannot be truncated: only standard normal priors, mixtures and flows can"
        )

    @property
    def device(self) -> torch.device:
        """Device of the samples."""
        return self._origin.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of samples of floats."""
        return self._origin.dtype

    @property
    def is_trained(self) -> bool:
        """Whether a parameter is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def passes_gradient(self) -> bool:
        """Whether samples pass a gradient to every trained parameter, as the game needs; true if there is none."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            return True
        with seeded(0, self.device), torch.enable_grad():
            z = self.sample(2)
        if not z.requires_grad:
            return False
        return all(gradient is not None for gradient in torch.autograd.grad(z.sum(), trained, allow_unused=True))

    def check(self, space: Space) -> None:
        """Check that this is a prior over ``space``.

        Raises:
            ValueError: If it is over another space, or its distribution has other shapes.
        """
        if self.space != space:
            raise ValueError(f"the prior must be over {space}, the top of the hierarchy; it is over {self.space}")
        # A distribution on the meta device has no values that it could validate.
        if not self._is_checked and self.device.type != "meta":
            self()
            self._is_checked = True

    def _truncated_noise(self, n: int, bound: float, generator: torch.Generator | None) -> Tensor:
        """Standard normal noise between ``-bound`` and ``bound``, ``(n, *space.shape)``."""
        if not bound > 0:
            raise InputError(f"a truncation is a positive number of standard deviations, got {bound}")
        shape = (n, *self.space.shape)
        uniform = torch.rand(shape, generator=generator, device=self.device, dtype=torch.float64)
        share = math.erf(bound / math.sqrt(2))
        return (math.sqrt(2) * torch.erfinv((2 * uniform - 1) * share)).to(self.dtype)

    def _shaped(self) -> list[Transform]:
        """The transform from vectors ``(D,)`` to the shape of the space."""
        shape = self.space.shape
        return (
            [] if len(shape) == 1 else [transforms.ReshapeTransform(torch.Size([self.space.size]), torch.Size(shape))]
        )


class StandardNormal(Prior):
    """``N(0, I)``, without parameters: the prior of the paper."""

    def forward(self) -> Distribution:
        """The distribution, event shape ``space.shape``."""
        ones = torch.ones_like(self._origin)
        return dist.Normal(self._origin, ones).expand(self.space.shape).to_event(self.space.rank)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples ``(n, *space.shape)``."""
        return self._origin.new_empty(n, *self.space.shape).normal_(generator=generator)

    def truncated_sample(self, n: int, bound: float, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples with every element in ``[-bound, bound]``, ``(n, *space.shape)``."""
        return self._truncated_noise(n, bound, generator)


class Uniform(Prior):
    """The uniform distribution on the support of the space, without parameters.

    That is fair bits for ``"bits"``, equal probabilities for ``"one_hot"`` and ``"index"``, the flat Dirichlet for
    ``"simplex"``, and the interval [0, 1] for ``"unit"``. For ``"real"`` or no stated support it is the interval
    [−√3, √3] in each element: mean 0 and variance 1, which a gauge gives a latent as well.

    Args:
        space: The top space.
        low: Lower end of the interval, instead of these.
        high: Upper end of the interval.
        classes: Number of classes, which a space of indices does not say.

    Raises:
        ValueError: If the interval is empty, or is given for a support that is no interval.
    """

    def __init__(
        self, space: Space, low: float | None = None, high: float | None = None, *, classes: int | None = None
    ) -> None:
        super().__init__(space)
        ends = {"unit": (0.0, 1.0), "real": (-math.sqrt(3), math.sqrt(3))}.get(space.support or "real")
        if ends is None and (low, high) != (None, None):
            raise ValueError(f"a uniform prior over {space.support} takes no interval, got {low} and {high}")
        self.low, self.high = (
            default if given is None else given for given, default in zip((low, high), ends or (0, 1), strict=True)
        )
        if not self.low < self.high:
            raise ValueError(f"a uniform prior needs an interval with low < high, got {self.low} and {self.high}")
        self.classes = classes

    def forward(self) -> Distribution:
        """The distribution, event shape ``space.shape``.

        Raises:
            ValueError: If the number of classes is not known.
        """
        space, one = self.space, torch.ones_like(self._origin)
        if space.support == "index":
            if self.classes is None or space.rank:
                raise ValueError(
                    f"{space} does not say the number of its classes: pass prior=Uniform(space, classes=K) "
                    "for a space () of one index"
                )
            return dist.Categorical(logits=torch.zeros_like(one).expand(self.classes))
        if space.support in ("one_hot", "simplex"):
            if space.rank != 1:
                raise ValueError(f"a prior over classes needs a space (K,), got {space}")
            if space.support == "simplex":
                return dist.Dirichlet(one.expand(space.shape))
            return dist.OneHotCategorical(logits=torch.zeros_like(one).expand(space.shape))
        each = dist.Bernoulli(one / 2) if space.support == "bits" else dist.Uniform(self.low * one, self.high * one)
        return each.expand(space.shape).to_event(space.rank)


class Categorical(Prior):
    """One of K classes with learned probabilities, equal at first: a one-hot vector, or an index.

    Its samples pass no gradient: it is trained by the evidence lower bound alone, and stays fixed in the game.

    Args:
        space: Of shape ``(K,)`` for one-hot vectors, ``()`` for indices.
        classes: K, for indices.

    Raises:
        ValueError: If the space has another shape, or the number of classes is missing.
    """

    def __init__(self, space: Space, *, classes: int | None = None) -> None:
        super().__init__(space)
        if space.rank > 1 or (classes is None) == (not space.rank):
            raise ValueError(
                f"a categorical prior needs a space (K,), or () and classes=K, got {space} and classes={classes}"
            )
        self.logits = nn.Parameter(torch.zeros(*space.shape) if classes is None else torch.zeros(classes))

    def forward(self) -> Distribution:
        """The distribution, event shape ``space.shape``."""
        return (dist.OneHotCategorical if self.space.rank else dist.Categorical)(logits=self.logits)


class Mixture(Prior):
    """A mixture of Gaussians with diagonal covariances; samples pass gradients to means, scales and weights.

    At first the weights are equal, the standard deviations 0.5, and the means random with standard deviation √0.75.
    So the components are apart, and the mixture has mean 0 and variance 1 in expectation.

    Args:
        space: The top space; states of any shape are used as vectors.
        components: Number of components, at least 1.

    Raises:
        ValueError: If there is no component.
    """

    def __init__(self, space: Space, components: int = 10) -> None:
        super().__init__(space)
        if components < 1:
            raise ValueError(f"a mixture needs at least one component, got {components}")
        self.locs = nn.Parameter(math.sqrt(_BETWEEN) * torch.randn(components, space.size))
        self.log_scales = nn.Parameter(torch.full((components, space.size), 0.5 * math.log(_WITHIN)))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> Distribution:
        """The distribution, event shape ``space.shape``."""
        return GaussianMixture(self.locs, self.log_scales.exp(), self.logits, self.space.shape)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples ``(n, *space.shape)``, which pass gradients to all parameters."""
        with drawing_from(generator, self.device):
            return self().rsample(torch.Size([n]))

    @torch.no_grad()
    def truncated_sample(self, n: int, bound: float, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples within ``bound`` standard deviations of the mean of their component, ``(n, *space.shape)``."""
        noise = self._truncated_noise(n, bound, generator)
        rows = self.logits.softmax(-1).multinomial(n, replacement=True, generator=generator)
        scales = self.log_scales.exp()[rows]
        return (self.locs[rows] + scales * noise.reshape(scales.shape)).reshape(noise.shape)


class Flow(Prior):
    """A normalising flow of affine coupling layers (Dinh et al. 2017): a draw and a density cost one pass each.

    Each layer shifts and scales one half of the elements by functions of the other half. Two layers after each other
    change both halves; then the elements are shuffled. A scale and a shift of each element come last. The flow is the
    identity at first, and the prior ``N(0, I)``.

    Args:
        space: The top space, of two elements or more; states of any shape are used as vectors.
        layers: Number of coupling layers, at least 2.
        hidden: Units in each of the two hidden layers of a coupling's network.

    Raises:
        ValueError: If the space has a single element, or there are fewer than two layers.
    """

    def __init__(self, space: Space, layers: int = 4, *, hidden: int = 64) -> None:
        super().__init__(space)
        if space.size < 2:
            raise ValueError(
                f"a flow of coupling layers needs two elements or more, and {space} has one: use a mixture"
            )
        if layers < 2:
            raise ValueError(f"a flow needs two layers or more to change every element, got {layers}")
        self._half = space.size // 2
        rest = space.size - self._half
        self.couplings = nn.ModuleList(_Coupling(self._half, rest, hidden) for _ in range(layers))
        self.loc = nn.Parameter(torch.zeros(space.size))
        self.log_scale = nn.Parameter(torch.zeros(space.size))

    def forward(self) -> Distribution:
        """The distribution, event shape ``space.shape``."""
        base = dist.Normal(self._origin, torch.ones_like(self._origin)).expand((self.space.size,)).to_event(1)
        return dist.TransformedDistribution(base, self._transforms())

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples ``(n, *space.shape)``, which pass gradients to all parameters."""
        return self._pushed(self._origin.new_empty(n, self.space.size).normal_(generator=generator))

    @torch.no_grad()
    def truncated_sample(self, n: int, bound: float, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples that the flow makes of truncated noise, ``(n, *space.shape)``."""
        return self._pushed(self._truncated_noise(n, bound, generator).reshape(n, self.space.size))

    def _pushed(self, z: Tensor) -> Tensor:
        """What the flow makes of noise ``(n, D)``: ``(n, *space.shape)``."""
        if not len(z):  # Pyro's transforms fail on an empty batch.
            return z.reshape(0, *self.space.shape)
        for transform in self._transforms():
            z = transform(z)
        return z

    def _transforms(self) -> list[Transform]:
        """The layers as Pyro's transforms, new at each call: they cache values of one draw."""
        places = torch.arange(self.space.size, device=self.device)
        orders = (places.flip(0), torch.cat([places[::2], places[1::2]]))
        layers: list[Transform] = []
        for number, coupling in enumerate(self.couplings):
            layers += [transforms.AffineCoupling(self._half, coupling), transforms.Permute(orders[number % 2])]
        layers.append(transforms.AffineTransform(self.loc, self.log_scale.exp(), event_dim=1))
        return layers + self._shaped()


class _Coupling(nn.Module):
    """The network of a coupling layer: from one half of the elements to shift and log-scale of the other half."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 2 * outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden_layers = nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        self.layers = nn.Sequential(*hidden_layers, last)

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        """Two tensors ``(n, outputs)`` for ``(n, inputs)``."""
        # Latents and their densities stay in single precision.
        with torch.autocast(given.device.type, enabled=False):
            return self.layers(given).chunk(2, -1)


class Fixed(Prior):
    """A given distribution, which is not trained; its tensors move and are cast with the hierarchy.

    Args:
        space: The top space.
        distribution: Distribution of one state: empty batch shape, event shape ``space.shape``.

    Raises:
        ValueError: If the distribution holds tensors that require gradients: nothing would train or save them.
    """

    def __init__(self, space: Space, distribution: Distribution) -> None:
        super().__init__(space)
        require: list[bool] = []

        def seen(tensor: Tensor) -> Tensor:
            require.append(tensor.requires_grad)
            return tensor

        _mapped(distribution, seen)
        if any(require):
            raise ValueError(
                f"the prior {type(distribution).__name__} holds tensors that require gradients, which would not be "
                "trained or saved: write a halikit.priors.Prior with them as parameters"
            )
        self.distribution = distribution

    def forward(self) -> Distribution:
        """The distribution, event shape ``space.shape``."""
        moved: Distribution = _mapped(
            self.distribution,
            lambda tensor: tensor.to(self._origin) if tensor.is_floating_point() else tensor.to(self.device),
        )
        return moved


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a distribution in which ``function`` is applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Distribution | Transform | nn.Module):
        changed = copy.copy(value)
        changed.__dict__ = _mapped(vars(value), function)
        return changed
    if isinstance(value, dict):
        return {name: _mapped(part, function) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, function) for part in value)
    return value


def default_prior(space: Space) -> Prior:
    """The prior without parameters that fits the support of a space.

    Standard normal where the support is real or not stated, uniform for all others.
    """
    return StandardNormal(space) if space.support in (None, "real") else Uniform(space)


def make_prior(kind: PriorKind, space: Space, *, components: int = 10, layers: int = 4) -> Prior:
    """The prior that the setting ``model.prior`` names.

    Args:
        kind: Its name.
        space: The top space.
        components: Number of components of a mixture.
        layers: Number of coupling layers of a flow.

    Raises:
        ValueError: If the prior does not fit the space.
    """
    makers: dict[PriorKind, Callable[[], Prior]] = {
        "standard_normal": lambda: StandardNormal(space),
        "uniform": lambda: Uniform(space),
        "mixture": lambda: Mixture(space, components),
        "flow": lambda: Flow(space, layers),
    }
    return makers[kind]()


def prior_over(space: Space, given: Prior | Distribution | None) -> Prior:
    """A prior over ``space`` from what a user gives: a prior, a fixed distribution, or ``None`` for the default.

    Raises:
        ValueError: If it is neither, or does not fit the space.
    """
    if given is None:
        return default_prior(space)
    if not isinstance(given, Prior | Distribution):
        raise ValueError(f"a prior is a halikit.priors.Prior or a distribution, got {type(given).__name__}")
    prior = given if isinstance(given, Prior) else Fixed(space, given)
    prior.check(space)
    return prior


def __getattr__(name: str) -> Any:
    # Higher up among the layers, so it is imported when it is first used.
    if name == "fit":
        return import_module("halikit.analysis.fitted_prior").fit
    raise AttributeError(f"module 'halikit.priors' has no attribute {name!r}")
