"""Encode, decode, reconstruct and sample any number of data (Eqs. 3 and 4), in batches and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from halikit.analysis.batched import batches, sizes
from halikit.hierarchy import Hierarchy
from halikit.utils.random import drawing_from

__all__ = ["Inference", "Mode"]

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

_States = dict[str, Tensor]
_Function = Callable[[Tensor, Tensor | None], _States]


class Inference:
    """The operations of a trained hierarchy in batches. Memory is bounded by the batch size and the results.

    Data may be on any device, such as a large set in the host's memory: batches go to the hierarchy's device, and
    results come back to the device of the data. Results are those of the hierarchy in evaluation mode, up to rounding.

    Where kernels depend on a context, the methods take it as ``context=``, with one row for each datum, or the
    hierarchy is given it before, by ``h.conditioned(context)``.

    Args:
        hierarchy: A hierarchy in evaluation mode; ``h[:l]`` for fewer levels.
        batch_size: Batch size, at least 1.
        compile: Mode of ``torch.compile``; not compiled by default. With it, the last batch is filled up to the full
            size, so that each function is compiled once.

    Raises:
        ValueError: If the batch size is not positive, or the hierarchy is in training mode.

    Example:
        >>> import torch
        >>> import halikit as hk
        >>> hierarchy = hk.ladder(2, (1, 8, 8)).eval()
        >>> states = Inference(hierarchy, batch_size=4).encode(torch.rand(10, 1, 8, 8))
        >>> {name: tuple(z.shape) for name, z in states.items()}
        {'x': (10, 1, 8, 8), 'z1': (10, 43), 'z2': (10, 10)}
    """

    def __init__(self, hierarchy: Hierarchy, *, batch_size: int = 500, compile: Mode | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch size is at least 1, got {batch_size}")
        if hierarchy.training:
            raise ValueError(
                "inference needs evaluation mode, where the samples of a batch are independent: call .eval()"
            )
        self.hierarchy = hierarchy
        self.batch_size = batch_size
        self._mode = compile
        self._compiled: dict[tuple[str, int], _Function] = {}

    def encode(self, x: Tensor, *, context: Tensor | None = None) -> _States:
        """Encode along the means, as :meth:`halikit.Hierarchy.encode`.

        Args:
            x: ``(n, *shape of x)``.
            context: The context, if kernels take one.

        Returns:
            Every state ``(n, *shape)`` by name, ``x`` first, on the device of ``x``.
        """
        return {self.hierarchy.spaces[0].name: x} | self._all("encode", len(self.hierarchy), x, context)

    def decode(self, z: Tensor, level: int | None = None, *, context: Tensor | None = None) -> _States:
        """Decode along the means from a level down, as :meth:`halikit.Hierarchy.decode`.

        Args:
            z: States of ``z_level``, ``(n, *shape of z_level)``.
            level: Level, between 1 and L; L by default.
            context: The context, if kernels take one.

        Returns:
            The states from ``z_level`` down to ``x`` by name.
        """
        level = self._checked(level)
        return {self.hierarchy.spaces[level].name: z} | self._all("decode", level, z, context)

    def reconstruct(self, x: Tensor, level: int | None = None, *, context: Tensor | None = None) -> Tensor:
        """Encode along the means to a level and decode from there, as :meth:`halikit.Hierarchy.reconstruct`.

        Args:
            x: ``(n, *shape of x)``.
            level: Level, between 1 and L; L by default.
            context: The context, if kernels take one.

        Returns:
            ``(n, *shape of x)``.
        """
        return self._all("reconstruct", self._checked(level), x, context)[self.hierarchy.spaces[0].name]

    def sample(self, n: int, *, generator: torch.Generator | None = None, context: Tensor | None = None) -> Tensor:
        """Draw data from the decoder's joint, as :meth:`halikit.Hierarchy.sample`.

        Args:
            n: Number of samples.
            generator: Source of randomness; torch's global generator by default. The samples depend on the batch size,
                and on whether the function is compiled.
            context: The context, if kernels take one.

        Returns:
            ``(n, *shape of x)``, on the hierarchy's device.
        """
        device = self.hierarchy.prior.device
        with drawing_from(generator, device):
            parts = (self.hierarchy.prior.sample(size) for size in sizes(n, self.batch_size))
            return self._joined("draw", len(self.hierarchy), parts, n, device, context)[self.hierarchy.spaces[0].name]

    def draw(self, z: Tensor, *, generator: torch.Generator | None = None, context: Tensor | None = None) -> Tensor:
        """Draw data given the top latent, kernel by kernel down the decoder.

        Args:
            z: ``(n, *shape of z_L)``.
            generator: Source of randomness, as for :meth:`sample`.
            context: The context, if kernels take one.

        Returns:
            ``(n, *shape of x)``, on the device of ``z``.
        """
        with drawing_from(generator, self.hierarchy.prior.device):
            return self._all("draw", len(self.hierarchy), z, context)[self.hierarchy.spaces[0].name]

    def _all(self, what: str, level: int, given: Tensor, context: Tensor | None) -> _States:
        parts = (part for _, part in batches(given, self.batch_size))
        return self._joined(what, level, parts, len(given), given.device, context)

    def _joined(
        self, what: str, level: int, parts: Iterator[Tensor], n: int, device: torch.device, context: Tensor | None
    ) -> _States:
        """The results of a function for all parts, in ordinary tensors: those of inference mode take no gradients."""
        function = self._function(what, level)
        hierarchy = self.hierarchy.conditioned(context)
        result: _States = {}
        done = 0
        for part in parts:
            rows = slice(done, done + len(part))
            with torch.inference_mode():
                given = part.to(hierarchy.prior.device)
                found = function(self._filled(given), self._filled_context(hierarchy.rows(rows).context, len(given)))
            for name, states in found.items():
                if name not in result:
                    result[name] = torch.empty(n, *states.shape[1:], dtype=states.dtype, device=device)
                result[name][rows] = states[: len(part)]
            done += len(part)
        return result

    def _filled(self, given: Tensor) -> Tensor:
        missing = self.batch_size - len(given)
        if self._mode is None or not missing:
            return given
        return torch.cat([given, given[-1:].expand(missing, *given.shape[1:])])

    def _filled_context(self, context: Tensor | None, n: int) -> Tensor | None:
        """The context of a batch of ``n``, on the hierarchy's device and filled up as the batch is."""
        if context is None:
            return None
        context = context.to(self.hierarchy.prior.device)
        return self._filled(context) if len(context) == n else context

    def _function(self, what: str, level: int) -> _Function:
        """A function of states ``(n, …)`` and their context, compiled if asked; it does not return what it takes."""
        if (what, level) not in self._compiled:
            hierarchy = self.hierarchy
            x = hierarchy.spaces[0].name
            functions: dict[str, _Function] = {
                "encode": lambda given, context: _but_first(hierarchy.encode(given, context=context)),
                "decode": lambda given, context: _but_first(hierarchy.decode(given, level, context=context)),
                "reconstruct": lambda given, context: {x: hierarchy.reconstruct(given, level, context=context)},
                "draw": lambda given, context: {x: hierarchy.decode(given, sample=True, context=context)[x]},
            }
            function = functions[what]
            self._compiled[what, level] = torch.compile(function, mode=self._mode) if self._mode else function
        return self._compiled[what, level]

    def _checked(self, level: int | None) -> int:
        level = len(self.hierarchy) if level is None else level
        if not 1 <= level <= len(self.hierarchy):
            raise ValueError(f"level must be between 1 and {len(self.hierarchy)}, got {level}")
        return level


def _but_first(states: _States) -> _States:
    return dict(list(states.items())[1:])
