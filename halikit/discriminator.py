"""Discriminators of two joints ``(x, z_1, …, z_L)``: what the game needs of one, and the form of Table 4.

A discriminator plays one game or several. Each game compares the two joints on a subset of the spaces, with one logit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import deepcopy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from halikit.errors import InputError
from halikit.spaces import Space
from halikit.utils.random import seeded

__all__ = [
    "CONTEXT",
    "Discriminator",
    "InputNoise",
    "JointDiscriminator",
    "MultiGameDiscriminator",
    "PlainDiscriminator",
    "couples_samples",
    "is_known_to_couple",
]

# The name of the context among the states that a discriminator is given.
CONTEXT = "context"
# How far a sample is shifted when coupling is looked for: far enough to be the largest or the smallest of its batch.
_SHIFT = 10.0
# For each discriminator that was examined: its modules then, and whether it couples samples.
_FOUND: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, type], ...], bool]] = WeakKeyDictionary()


class InputNoise(nn.Module):
    """Adds Gaussian noise in training. It is part of the game, not of any density.

    Args:
        scale: Standard deviation, at least 0.

    Raises:
        ValueError: If the scale is negative.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if scale < 0:
            raise ValueError(f"the scale of input noise must not be negative, got {scale}")
        # A tensor, so that no new number in a schedule means compiling anew.
        self._scale: Tensor
        self.register_buffer("_scale", torch.tensor(float(scale)), persistent=False)
        self._given, self._is_on = float(scale), scale > 0

    @property
    def scale(self) -> float:
        """The standard deviation; it can be set."""
        return self._given

    @scale.setter
    def scale(self, scale: float) -> None:
        """Another standard deviation from now on, at least 0."""
        self._given, self._is_on = scale, scale > 0
        # Even if it is the same: the tensor may have been put back with the running statistics of a skipped step.
        self._scale.fill_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """``x + scale · ε`` in training, ``x`` in evaluation; any shape."""
        if not self.training or not self._is_on:
            return x
        return torch.addcmul(x, self._scale.to(x.dtype), torch.randn_like(x))

    def extra_repr(self) -> str:
        """The scale."""
        return f"scale={self.scale}"


class Discriminator(nn.Module, ABC):
    """What Algorithm 1 needs of a discriminator: its games, their logits, and features for Eq. 8.

    Attributes:
        spaces: The spaces that it reads, from the data up.
        noise: The noise on its ``x`` in training; ``None`` where it has none.
        takes_context: Whether it needs a context among the states, under the name ``context``.
    """

    takes_context: bool = False
    spaces: tuple[Space, ...]
    noise: InputNoise | None

    def __init__(self) -> None:
        super().__init__()
        self.noise = None

    @property
    def games(self) -> tuple[Discriminator, ...]:
        """The discriminators that each play one game; one that plays a single game is the only one of them."""
        return (self,)

    @abstractmethod
    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """The logits ``s``: positive where the encoder's joint is thought likelier.

        Args:
            states: ``(n, *shape)`` for each space by name.

        Returns:
            ``(n,)`` for one game, ``(n, games)`` for several.
        """

    @property
    def has_features(self) -> bool:
        """Whether all games have :meth:`features`."""
        return all(type(game).features is not Discriminator.features for game in self.games)

    def features(self, states: Mapping[str, Tensor]) -> Tensor:
        """The penultimate activations ``D̄(x, z_1, …, z_L)`` of Eq. 8, ``(n, width)``.

        Raises:
            NotImplementedError: If the discriminator has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no features: the distance of Eq. 8 needs them")

    def __getitem__(self, index: slice) -> Discriminator:
        """``d[:l]``: the part that reads ``x … z_l`` alone, a view on the same parameters.

        Raises:
            ValueError: If there is no such part.
        """
        raise ValueError(f"{type(self).__name__} has no part that reads fewer levels")


class PlainDiscriminator(Discriminator):
    """Any module from states to logits, as the discriminator of one game.

    Args:
        module: Takes a dictionary of states ``(n, *shape)`` by name, gives logits ``(n,)`` or ``(n, 1)``.
        spaces: The spaces that it reads.
    """

    def __init__(self, module: nn.Module, spaces: Iterable[Space]) -> None:
        super().__init__()
        self.module = module
        self.spaces = tuple(spaces)
        self.takes_context = bool(getattr(module, "takes_context", False))

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """The module's logits, ``(n,)``.

        Raises:
            ValueError: If the module does not give one logit for each sample.
        """
        logits: Tensor = self.module(states)
        n = len(states[self.spaces[0].name])
        if logits.shape not in ((n,), (n, 1)):
            raise ValueError(
                f"a discriminator gives logits (n,); {type(self.module).__name__} gives {tuple(logits.shape)}"
            )
        return logits.reshape(n)


class JointDiscriminator(Discriminator):
    """``D(x, z_1, …, z_L)``: one logit per joint sample (Table 4, third part).

    Stage 0 reads ``x`` and reduces it to the resolution of ``z_1``; stage ``l`` concatenates ``z_l`` along the channels
    and reduces to the resolution of ``z_{l+1}``; after the last stage comes a head with one logit. Not all spaces of a
    hierarchy need be among those that it reads.

    ``d[:l]`` reads ``x … z_l`` with the first stages and the same head, a view on the same parameters, where the
    features after stage ``l`` are a vector as wide as those after the last stage.

    Args:
        spaces: ``x, z_1, …, z_L``.
        stages: One module per space. Stage 0 maps ``x`` to features; stage ``l`` maps features with ``z_l``
            concatenated to them (along the channels; flattened where either is a vector) to features.
        head: Ends in the layer that gives the logit, ``(n, 1)``; all before it is the embedding of Eq. 8.
        input_noise: Standard deviation of the Gaussian noise added to ``x`` in training, data and samples alike.
        projection: Maps the context, which is found among the states, to ``(n, width)``. Its product with the
            features is added to the logit (Miyato & Koyama 2018).
        augmentation: Changes ``x`` at random in training, data and samples alike, before the noise.

    Raises:
        ValueError: If the numbers of spaces and stages do not fit.
    """

    noise: InputNoise

    def __init__(
        self,
        spaces: Iterable[Space],
        stages: Iterable[nn.Module],
        head: nn.Sequential,
        *,
        input_noise: float = 0.0,
        projection: nn.Module | None = None,
        augmentation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.spaces = tuple(spaces)
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.noise = InputNoise(input_noise)
        self.projection = projection
        self.augmentation = augmentation or nn.Identity()
        self.takes_context = projection is not None
        if len(self.stages) != len(self.spaces) or len(self.spaces) < 2:
            raise ValueError(f"{len(self.spaces)} spaces need as many stages and at least two, got {len(self.stages)}")

    def features(self, states: Mapping[str, Tensor]) -> Tensor:
        """The penultimate activations ``D̄(x, z_1, …, z_L)`` of Eq. 8, ``(n, width)``.

        Args:
            states: ``(n, *shape)`` for each space by name.

        Raises:
            KeyError: If a state is missing.
        """
        missing = [space.name for space in self.spaces if space.name not in states]
        if missing:
            raise KeyError(
                f"the discriminator reads {', '.join(s.name for s in self.spaces)}; missing: {', '.join(missing)}"
            )
        first, *latents = (at_least_vectors(states[space.name]) for space in self.spaces)
        h = self.stages[0](self.noise(self.augmentation(first)))
        for stage, z in zip(self.stages[1:], latents, strict=True):
            h = stage(concatenate(h, z))
        return self.head[:-1](h)

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """The logits ``s``, ``(n,)``: positive where the encoder's joint is thought likelier.

        Raises:
            InputError: If there is a projection, and no context among the states.
        """
        features = self.features(states)
        logits: Tensor = self.head[-1](features).squeeze(1)
        if self.projection is None:
            return logits
        if CONTEXT not in states:
            raise InputError(
                f"this discriminator reads a context: give it among the states, under the name {CONTEXT!r}"
            )
        return logits + (self.projection(states[CONTEXT]) * features).sum(1)

    def __getitem__(self, index: slice) -> JointDiscriminator:
        """``d[:l]``: the first ``l`` levels.

        Raises:
            ValueError: If the head cannot read the features after stage ``l``.
        """
        levels = len(self.spaces) - 1
        kept = _levels_kept(index, levels)
        if kept == levels:
            return self
        shapes = self._feature_shapes()
        if len(shapes[kept]) != 1 or shapes[kept] != shapes[-1]:
            raise ValueError(
                f"this discriminator cannot stop at {self.spaces[kept].name}: the features there are "
                f"{Space('features', shapes[kept])}, and its head reads {Space('features', shapes[-1])}"
            )
        stages = list(self.stages)[: kept + 1]
        view = JointDiscriminator(
            self.spaces[: kept + 1], stages, self.head, projection=self.projection, augmentation=self.augmentation
        )
        view.noise = self.noise
        view.training = self.training
        return view

    @torch.no_grad()
    def _feature_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the features of one sample after each stage."""
        # A copy, so that the trial leaves no trace in running statistics.
        probe = deepcopy(self).eval()
        parameter = next(self.parameters(), torch.empty(0))
        states = [at_least_vectors(parameter.new_zeros(1, *space.shape)) for space in self.spaces]
        h = probe.stages[0](states[0])
        shapes = [tuple(h.shape[1:])]
        for stage, z in zip(probe.stages[1:], states[1:], strict=True):
            h = stage(concatenate(h, z))
            shapes.append(tuple(h.shape[1:]))
        return shapes


class MultiGameDiscriminator(Discriminator):
    """One discriminator, logit and game for each of several subsets of the spaces.

    The pairwise form is one case: both joints are Markov chains, so they agree as soon as all adjacent pairs
    ``(z_{l−1}, z_l)`` do, and the logit of each pair tells which level does not.

    Args:
        games: Discriminators that each play one game.
        spaces: The spaces that the games read, from the data up; by default in the order in which the games have them.

    Raises:
        ValueError: If there is no game.
    """

    def __init__(self, games: Iterable[Discriminator], spaces: Iterable[Space] | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(games)
        if not self.games:
            raise ValueError("a discriminator needs at least one game")
        read = tuple(dict.fromkeys(space for game in self.games for space in game.spaces))
        self.spaces = read if spaces is None else tuple(space for space in spaces if space in read)
        self.takes_context = any(game.takes_context for game in self.games)

    @property
    def games(self) -> tuple[Discriminator, ...]:
        """The discriminators that each play one game."""
        return tuple(self.parts)  # type: ignore[arg-type]

    def features(self, states: Mapping[str, Tensor]) -> Tensor:
        """The penultimate activations of all games, concatenated, ``(n, total width)``."""
        return torch.cat([game.features(states) for game in self.games], 1)

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """One logit for each game, ``(n, games)``."""
        return torch.stack([game(states) for game in self.games], 1)

    def __getitem__(self, index: slice) -> MultiGameDiscriminator:
        """``d[:l]``: the games on ``x … z_l``."""
        kept = {space.name for space in self.spaces[: _levels_kept(index, len(self.spaces) - 1) + 1]}
        games = [game for game in self.games if kept.issuperset(space.name for space in game.spaces)]
        if not games:
            raise ValueError(f"no game of this discriminator reads {', '.join(sorted(kept))} alone")
        view = MultiGameDiscriminator(games, self.spaces)
        view.training = self.training
        return view


def couples_samples(discriminator: nn.Module, states: Mapping[str, Tensor]) -> bool:
    """Whether the logit of one sample depends on another in training mode, found by perturbing one of a batch.

    A copy runs several times under the same random numbers, with the first or the last sample of every state shifted up
    or down. The logits of the other samples must not change at all. The discriminator itself is not changed.

    Args:
        discriminator: From states to logits ``(n, …)``.
        states: ``(n, *shape)`` by name, ``n ≥ 2``.
    """
    probe = deepcopy(discriminator).train()

    def logits(index: int, shift: float) -> Tensor:
        perturbed = {name: state.detach().clone() for name, state in states.items()}
        for state in perturbed.values():
            if state.is_floating_point():
                state[index] += shift
        probe.load_state_dict(kept)
        device = next(iter(states.values())).device
        with seeded(0, device), torch.no_grad():
            logit: Tensor = probe(perturbed)
        return torch.cat([logit[:index], logit[index + 1 :]])

    # Every call starts from the same running estimates (spectral norm's, say).
    kept = deepcopy(probe.state_dict())
    last = len(next(iter(states.values()))) - 1
    return any(
        not torch.equal(logits(index, 0.0), logits(index, shift)) for index in (0, last) for shift in (_SHIFT, -_SHIFT)
    )


def is_known_to_couple(discriminator: nn.Module, states: Mapping[str, Tensor]) -> bool:
    """The answer of :func:`couples_samples`, found once for each discriminator.

    It is found again if a submodule was replaced since.

    Args:
        discriminator: From states to logits ``(n, …)``.
        states: ``(n, *shape)`` by name, ``n ≥ 2``.
    """
    modules = tuple((id(module), type(module)) for module in discriminator.modules())
    if _FOUND.get(discriminator, ((), False))[0] != modules:
        _FOUND[discriminator] = modules, couples_samples(discriminator, states)
    return _FOUND[discriminator][1]


def at_least_vectors(state: Tensor) -> Tensor:
    """A batch of scalars ``(n,)`` as vectors ``(n, 1)``; others as they are."""
    return state if state.dim() > 1 else state.unsqueeze(1)


def concatenate(features: Tensor, z: Tensor) -> Tensor:
    """Join features with a latent along the channels, flattened unless both are maps of one resolution."""
    if features.dim() == z.dim() and features.shape[2:] == z.shape[2:]:
        return torch.cat([features, z], 1)
    return torch.cat([features.flatten(1), z.flatten(1)], 1)


def _levels_kept(index: slice, levels: int) -> int:
    if not isinstance(index, slice) or index.start not in (None, 0) or index.step not in (None, 1):
        raise TypeError("a discriminator is sliced from the data up, as d[:l]")
    kept = len(range(levels)[index])
    if not kept:
        raise IndexError(f"d[:{index.stop}] leaves no level; this discriminator has {levels}")
    return kept
