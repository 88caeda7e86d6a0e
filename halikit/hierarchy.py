"""The stack of latent variables, with its encoder and its decoder (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from halikit import joints
from halikit.kernels import Kernel, compose
from halikit.priors import Prior, prior_over
from halikit.spaces import Space

__all__ = ["Hierarchy", "Link"]


class Link(nn.Module):
    """One level: the encoder's kernel ``up = q(z_l|z_{l−1})`` and its adjoint ``down = p(z_{l−1}|z_l)`` (Eq. 2).

    If a kernel is a composition, its factors get no adjoints from this link; they need links of their own.

    Args:
        up: Kernel of the encoder.
        down: Kernel of the decoder.

    Raises:
        ValueError: If ``down`` does not go from the target of ``up`` to its source, or one of them is already linked
            with another kernel.
    """

    def __init__(self, up: Kernel, down: Kernel) -> None:
        super().__init__()
        if (up.source, up.target) != (down.target, down.source):
            raise ValueError(
                f"{down} is no way back from {up}: the one goes {up.source} → {up.target}, "
                f"the other {down.source} → {down.target}"
            )
        up.pair_with(down)
        down.pair_with(up)
        self.up = up
        self.down = down

    @property
    def adjoint(self) -> Link:
        """The same two kernels with their roles exchanged."""
        return Link(self.down, self.up)

    def conditioned(self, context: Tensor) -> Link:
        """The two kernels given a context; see :meth:`halikit.Kernel.conditioned`."""
        return Link(self.up.conditioned(context), self.down.conditioned(context))

    def __str__(self) -> str:
        return f"{self.up} ⇄ {self.down}"


class Hierarchy(nn.Module):
    """A stack of links ``x ⇄ z_1 ⇄ … ⇄ z_L`` with a prior on ``z_L``. It owns all parameters.

    ``h[:l]`` is the hierarchy of the first ``l`` levels, with the default prior on ``z_l``. It shares the
    parameters of ``h``, as do :attr:`encoder` (Eq. 1) and :attr:`decoder` (Eq. 2). States are passed as dictionaries
    from names of spaces to tensors ``(n, *space.shape)``.

    Where kernels depend on a context, such as the class of each datum, the methods take it as ``context=``:
    ``(n, …)``, or ``(1, …)`` for all data alike. ``h.conditioned(context)`` is the hierarchy given a context, for
    functions that take a hierarchy.

    Args:
        links: The links from the data up, at least one.
        prior: Prior over the top space, or a fixed distribution over it. By default it is the one that fits the support
            of the space, see :func:`halikit.priors.default_prior`: standard normal, if no support is stated.

    Raises:
        ValueError: If there is no link, adjacent links do not share a space, two spaces have the same name, or the
            prior does not fit the top space.
    """

    def __init__(self, links: Iterable[Link], prior: Prior | Distribution | None = None) -> None:
        super().__init__()
        links = list(links)
        if not links:
            raise ValueError("a hierarchy needs at least one link")
        for below, above in pairwise(links):
            if below.up.target != above.up.source:
                raise ValueError(
                    f"levels do not fit: {below.up} leads to {below.up.target}, "
                    f"but {above.up} starts from {above.up.source}"
                )
        self.links = nn.ModuleList(links)
        self.spaces: tuple[Space, ...] = (links[0].up.source, *(link.up.target for link in links))
        names = [space.name for space in self.spaces]
        if len(set(names)) < len(names):
            raise ValueError(f"spaces must have different names, got {', '.join(names)}")
        self.prior = prior_over(self.spaces[-1], prior)
        # The context that the kernels are bound to; see conditioned().
        self.context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self.links)  # type: ignore[arg-type]

    def __getitem__(self, index: slice) -> Hierarchy:
        """``h[:l]``, the first ``l`` levels, ``1 ≤ l ≤ L``."""
        if not isinstance(index, slice) or index.start not in (None, 0) or index.step not in (None, 1):
            raise TypeError("a hierarchy is sliced from the data up, as h[:l]; its links are in h.links")
        levels = range(len(self))[index]
        if not levels:
            raise IndexError(f"h[:{index.stop}] leaves no level; this hierarchy has {len(self)}")
        if len(levels) == len(self):
            return self
        view = Hierarchy(list(self)[: len(levels)])
        view.prior.to(self.prior.device, self.prior.dtype)
        view.training, view.context = self.training, self.context
        return view

    @property
    def takes_context(self) -> bool:
        """Whether a kernel depends on a context."""
        return any(kernel.takes_context for link in self for kernel in (link.up, link.down))

    def conditioned(self, context: Tensor | None) -> Hierarchy:
        """The hierarchy given a context: a view on the same parameters, whose methods need no context any more.

        Args:
            context: ``(n, …)`` for batches of ``n`` data, or ``(1, …)`` for batches of any size. It is ignored where no
                kernel takes a context.
        """
        if context is None or not self.takes_context:
            return self
        view = Hierarchy([link.conditioned(context) for link in self], self.prior)
        view.training, view.context = self.training, context
        return view

    def rows(self, rows: slice | Tensor) -> Hierarchy:
        """The hierarchy given the context of some of the data alone, for functions that take data batch by batch."""
        if self.context is None or len(self.context) == 1:
            return self
        return self.conditioned(self.context[rows])

    @property
    def encoder(self) -> Kernel:
        """``T_{z_L|x} = T_{z_L|z_{L−1}} ∘ … ∘ T_{z_1|x}`` (Eq. 1)."""
        return compose(*(link.up for link in reversed(list(self))))

    @property
    def decoder(self) -> Kernel:
        """``T_{x|z_L}``, the encoder's adjoint (Eq. 2)."""
        return compose(*(link.down for link in self))

    def encode(
        self,
        x: Tensor,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the encoder on data, level by level.

        Args:
            x: ``(n, *shape of x)``.
            sample: Whether to sample each state; otherwise each is the conditional mean given the state below.
            generator: Random generator for the samples; torch's global one by default.
            context: The context, if kernels take one.

        Returns:
            The states by name, ``(n, *shape)`` each, ``x`` first.
        """
        states = {self.spaces[0].name: x}
        for link in self.conditioned(context):
            x = link.up.sample(x, generator=generator) if sample else link.up.mean(x)
            states[link.up.target.name] = x
        return states

    def decode(
        self,
        z: Tensor,
        level: int | None = None,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the decoder from a latent down to the data.

        Args:
            z: States of ``z_level``, ``(n, *shape of z_level)``.
            level: Level of the latent, between 1 and L; L by default.
            sample: Whether to sample each state; otherwise each is the conditional mean given the state above.
            generator: Random generator for the samples; torch's global one by default.
            context: The context, if kernels take one.

        Returns:
            The states by name, ``(n, *shape)`` each, from ``z_level`` down to ``x``.

        Raises:
            ValueError: If there is no such level.
        """
        level = self._checked(level)
        states = {self.spaces[level].name: z}
        for link in reversed(list(self.conditioned(context))[:level]):
            z = link.down.sample(z, generator=generator) if sample else link.down.mean(z)
            states[link.down.target.name] = z
        return states

    def reconstruct(
        self,
        x: Tensor,
        level: int | None = None,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Encode to ``z_l`` and decode: ``x̂_l ~ T_{x|z_l} ∘ T_{z_l|x}`` (section 3.2).

        Args:
            x: ``(n, *shape of x)``.
            level: l, between 1 and L; L by default.
            sample: Whether to sample each state; otherwise each is a conditional mean.
            generator: Random generator for the samples; torch's global one by default.
            context: The context, if kernels take one.

        Returns:
            ``(n, *shape of x)``.

        Raises:
            ValueError: If there is no such level.
        """
        level = self._checked(level)
        stack = self.conditioned(context)[:level]
        z = stack.encode(x, sample=sample, generator=generator)[self.spaces[level].name]
        return stack.decode(z, level, sample=sample, generator=generator)[self.spaces[0].name]

    def sample_states(
        self, n: int, *, generator: torch.Generator | None = None, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Sample the decoder's joint (Eq. 4): the states by name, ``(n, *shape)`` each, ``x`` first."""
        z = self.prior.sample(n, generator=generator)
        states = self.decode(z, sample=True, generator=generator, context=context)
        return {space.name: states[space.name] for space in self.spaces}

    def sample(self, n: int, *, generator: torch.Generator | None = None, context: Tensor | None = None) -> Tensor:
        """Sample data from the decoder's joint, ``(n, *shape of x)``."""
        return self.sample_states(n, generator=generator, context=context)[self.spaces[0].name]

    def encoder_joint(self, x: Tensor, *, context: Tensor | None = None) -> dict[str, Tensor]:
        """Eq. 3 as a Pyro program; see :func:`halikit.joints.encoder_joint`."""
        return joints.encoder_joint([link.up for link in self.conditioned(context)], x, self.prior)

    def decoder_joint(self, n: int, *, context: Tensor | None = None) -> dict[str, Tensor]:
        """Eq. 4 as a Pyro program; see :func:`halikit.joints.decoder_joint`."""
        return joints.decoder_joint(self.prior, [link.down for link in self.conditioned(context)], n)

    def model(self, x: Tensor, *, context: Tensor | None = None) -> dict[str, Tensor]:
        """Eq. 4 with ``x`` observed; see :func:`halikit.joints.model`."""
        return joints.model(self.prior, [link.down for link in self.conditioned(context)], x)

    def guide(self, x: Tensor, *, context: Tensor | None = None) -> dict[str, Tensor]:
        """Eq. 3 given ``x``; see :func:`halikit.joints.guide`."""
        return joints.guide([link.up for link in self.conditioned(context)], x, self.prior)

    def _checked(self, level: int | None) -> int:
        level = len(self) if level is None else level
        if not 1 <= level <= len(self):
            raise ValueError(f"level must be between 1 and {len(self)}, got {level}")
        return level

    def __str__(self) -> str:
        return f"encoder {self.encoder}\ndecoder {self.decoder}"
