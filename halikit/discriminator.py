"""The discriminator of two joints ``(x, z_1, …, z_L)`` and its builder (Table 4, third part).

Stage 0 reads ``x`` and reduces it to the resolution of ``z_1``; stage ``l`` concatenates ``z_l`` along the channels and
reduces to the resolution of ``z_{l+1}``; after the last comes a head with one logit. No layer couples samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise, zip_longest
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from halikit import recompute
from halikit.hierarchy import Hierarchy
from halikit.networks.blocks import COARSEST, DENSE_PIXELS, InputNoise, LayerOptions, Norm, conv, dense, takes_patches
from halikit.networks.ladder import Family
from halikit.random import seeded
from halikit.spaces import Space

__all__ = ["JointDiscriminator", "PairwiseDiscriminator", "build_discriminator", "couples_samples"]


# How far a sample is shifted in search of coupling: enough to become the largest or the smallest of its batch.
_SHIFT = 10.0


class JointDiscriminator(nn.Module):
    """``D(x, z_1, …, z_L)``: one logit per joint sample.

    ``d[:l]`` reads ``x … z_l`` with the first stages and the same head, a view on the same parameters, where the
    features after stage ``l`` are a vector as wide as those after the last stage.

    Args:
        spaces: ``x, z_1, …, z_L``.
        stages: One module per space. Stage 0 maps ``x`` to features; stage ``l`` maps features with ``z_l``
            concatenated to them (along the channels; flattened where either is a vector) to features.
        head: Ends in the layer that gives the logit, ``(n, 1)``; all before it is the embedding of Eq. 8.
        input_noise: Standard deviation of the Gaussian noise added to ``x`` in training, data and samples alike.

    Raises:
        ValueError: If the numbers of spaces and stages do not fit.

    Attributes:
        recomputes: Whether what the stages keep for the backward pass is computed again there, to save memory.
    """

    recomputes = False

    def __init__(
        self,
        spaces: Iterable[Space],
        stages: Iterable[nn.Module],
        head: nn.Sequential,
        *,
        input_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.spaces = tuple(spaces)
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.noise = InputNoise(input_noise)
        if len(self.stages) != len(self.spaces) or len(self.spaces) < 2:
            raise ValueError(f"{len(self.spaces)} spaces need as many stages and at least two, got {len(self.stages)}")

    @property
    def games(self) -> tuple[JointDiscriminator, ...]:
        """The discriminators that each play a game of their own: this one."""
        return (self,)

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
        first, *latents = (_at_least_vectors(states[space.name]) for space in self.spaces)
        h = recompute.run(self.stages[0], self.noise(first), again=self.recomputes)
        for stage, z in zip(self.stages[1:], latents, strict=True):
            h = recompute.run(stage, _concatenate(h, z), again=self.recomputes)
        return self.head[:-1](h)

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """The logits ``s``, ``(n,)``: positive where the encoder's joint is thought likelier."""
        return self.head[-1](self.features(states)).squeeze(1)

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
        view = JointDiscriminator(self.spaces[: kept + 1], list(self.stages)[: kept + 1], self.head)
        view.noise = self.noise
        view.training, view.recomputes = self.training, self.recomputes
        return view

    @torch.no_grad()
    def _feature_shapes(self) -> list[tuple[int, ...]]:
        """Of one sample, after each stage."""
        # A copy, so that the trial leaves no trace in running statistics.
        probe = deepcopy(self).eval()
        parameter = next(self.parameters(), torch.empty(0))
        states = [_at_least_vectors(parameter.new_zeros(1, *space.shape)) for space in self.spaces]
        h = probe.stages[0](states[0])
        shapes = [tuple(h.shape[1:])]
        for stage, z in zip(probe.stages[1:], states[1:], strict=True):
            h = stage(_concatenate(h, z))
            shapes.append(tuple(h.shape[1:]))
        return shapes


class PairwiseDiscriminator(nn.Module):
    """One discriminator, logit and game for each adjacent pair ``(z_{l−1}, z_l)``.

    Both joints are Markov chains, so they agree as soon as all adjacent pairs do; and each pair's logit tells which
    level does not.

    Args:
        pairs: Discriminators over two spaces each, from the data up.
    """

    def __init__(self, pairs: Iterable[JointDiscriminator]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(pairs)

    @property
    def games(self) -> tuple[JointDiscriminator, ...]:
        """The discriminators that each play a game of their own."""
        return tuple(self.pairs)  # type: ignore[arg-type]

    def features(self, states: Mapping[str, Tensor]) -> Tensor:
        """The pairs' penultimate activations, concatenated, ``(n, total width)``."""
        return torch.cat([pair.features(states) for pair in self.games], 1)

    def forward(self, states: Mapping[str, Tensor]) -> Tensor:
        """One logit per pair, ``(n, L)``."""
        return torch.stack([pair(states) for pair in self.games], 1)

    def __getitem__(self, index: slice) -> PairwiseDiscriminator:
        """The first ``l`` pairs."""
        view = PairwiseDiscriminator(list(self.games)[: _levels_kept(index, len(self.pairs))])
        view.training = self.training
        return view


def build_discriminator(
    hierarchy: Hierarchy,
    *,
    form: Literal["joint", "pairwise"] = "joint",
    family: Family | None = None,
    width: int = 256,
    depth: int = 1,
    dropout: float = 0.2,
    use_weight_norm: bool = True,
    input_noise: float = 0.2,
    slope: float = 0.2,
    stages: Mapping[int, nn.Module] | None = None,
    head: nn.Sequential | None = None,
) -> JointDiscriminator | PairwiseDiscriminator:
    """Make the discriminator that a stack of spaces needs, whatever their shapes.

    Args:
        hierarchy: Whose spaces it reads.
        form: ``"joint"`` for one logit, ``"pairwise"`` for one logit and game per adjacent pair.
        family: ``"dense"`` to take images above vectors as vectors too, ``"conv"`` never to; by default images of at
            most 16×16 are.
        width: Units of dense layers and of the head; maps have between an eighth of that and as many channels.
        depth: Layers per stage beyond those that reduce the resolution; at least one.
        dropout: Probability of dropping an activation.
        use_weight_norm: Weight-normalise the stages, as Table 4 does.
        input_noise: Standard deviation of the noise on ``x`` in training.
        slope: Negative slope of the leaky ReLUs.
        stages: Modules to use instead of the built ones, by stage (joint form). Stage ``l ≥ 1`` is given the
            features below with ``z_l`` concatenated.
        head: Module to use instead of the built one (joint form), behind a linear layer from the features of the last
            stage; takes ``(n, width)``, ends in the logit's layer.

    Raises:
        ValueError: If the form is unknown, or a stage to replace does not exist.
    """
    if width < 1 or depth < 1:
        raise ValueError(f"a discriminator needs a positive width and depth, got width={width}, depth={depth}")
    make = _StageMaker(family, width, depth, dropout, "weight" if use_weight_norm else None, slope)
    spaces = hierarchy.spaces
    if form == "joint":
        unknown = sorted(set(stages or {}) - set(range(len(spaces))))
        if unknown:
            raise ValueError(
                f"stages are 0 … {len(spaces) - 1} for {len(spaces)} spaces; there is no stage {unknown[0]}"
            )
        return _build(spaces, make, stages or {}, head, input_noise)
    if form != "pairwise":
        raise ValueError(f"form is 'joint' or 'pairwise', got {form!r}")
    if stages or head is not None:
        raise ValueError(
            "stages and head are replaced in the joint form; for pairs, give a PairwiseDiscriminator its own"
        )
    return PairwiseDiscriminator(
        _build(pair, make, {}, None, 0.0 if level else input_noise, from_data=not level)
        for level, pair in enumerate(pairwise(spaces))
    )


def couples_samples(discriminator: nn.Module, states: Mapping[str, Tensor]) -> bool:
    """Whether the logit of one sample depends on another in training mode, found by perturbing one of a batch.

    A copy is asked again and again under the same random numbers, with the first or the last sample of every state
    shifted up or down; the other samples' logits must not move at all. The discriminator itself is left as it is.

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


class _StageMaker(NamedTuple):
    """How the built stages look; makes one for any shape."""

    family: Family | None
    width: int
    depth: int
    dropout: float
    norm: Norm | None
    slope: float

    def __call__(self, incoming: tuple[int, ...], above: Space | None, *, in_patches: bool) -> nn.Sequential:
        """Layers from ``incoming`` to the resolution of ``above``; to a vector where that is one or nothing."""
        options = LayerOptions(self.norm, self.dropout, self.slope)
        goes_to_maps = above is not None and above.is_image
        if len(incoming) != 3 or (not goes_to_maps and self._flattens(incoming)):
            sizes = [math.prod(incoming), *[self.width] * self.depth]
            return nn.Sequential(nn.Flatten(), *(dense(a, b, options) for a, b in pairwise(sizes)))
        channels, *size = incoming
        layers: list[nn.Module] = []
        goal = above.shape[1:] if above is not None and above.is_image else COARSEST
        narrow = self.width // 8
        if in_patches and takes_patches(incoming, goal):
            layers.append(nn.PixelUnshuffle(2))
            channels, size, narrow = 4 * channels, [side // 2 for side in size], self.width // 4
        outputs = min(max(narrow, channels), self.width)
        for _ in range(self.depth):
            layers.append(conv(channels, outputs, 3, 1, options))
            channels = outputs
        while min(size[0] // goal[0], size[1] // goal[1]) >= 2:
            outputs = min(2 * channels, self.width)
            layers.append(conv(channels, outputs, 3, 2, options))
            channels, size = outputs, [(side + 1) // 2 for side in size]
        if not goes_to_maps:
            layers += [nn.Flatten(), dense(channels * math.prod(size), self.width, options)]
        elif tuple(size) != goal:
            layers.append(nn.AdaptiveAvgPool2d(goal))
        return nn.Sequential(*layers)

    def _flattens(self, incoming: tuple[int, ...]) -> bool:
        return self.family == "dense" or (self.family is None and math.prod(incoming[1:]) <= DENSE_PIXELS)


def _build(
    spaces: Sequence[Space],
    make: _StageMaker,
    replaced: Mapping[int, nn.Module],
    head: nn.Sequential | None,
    input_noise: float,
    *,
    from_data: bool = True,
) -> JointDiscriminator:
    width = make.width
    stages: list[nn.Module] = []
    features = torch.zeros(1, 0)
    for level, (space, above) in enumerate(zip_longest(spaces, spaces[1:])):
        state = _at_least_vectors(torch.zeros(1, *space.shape))
        incoming = _concatenate(features, state) if level else state
        in_patches = from_data and not level
        stage = replaced[level] if level in replaced else make(tuple(incoming.shape[1:]), above, in_patches=in_patches)
        stages.append(stage)
        # A copy, so that the trial leaves no trace in running statistics.
        with torch.no_grad():
            features = deepcopy(stage).eval()(incoming)
    options = LayerOptions(None, make.dropout, make.slope)
    if head is None:
        head = nn.Sequential(nn.LeakyReLU(make.slope), dense(width, width, options), nn.Linear(width, 1))
    head = nn.Sequential(nn.Flatten(), nn.Linear(features.numel(), width), *head)
    return JointDiscriminator(spaces, stages, head, input_noise=input_noise)


def _at_least_vectors(state: Tensor) -> Tensor:
    """A batch of scalars ``(n,)`` as vectors ``(n, 1)``; others as they are."""
    return state if state.dim() > 1 else state.unsqueeze(1)


def _concatenate(features: Tensor, z: Tensor) -> Tensor:
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
