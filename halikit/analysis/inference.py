"""Encode, decode, reconstruct and sample any number of data: in batches, without gradients, compiled if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from halikit.hierarchy import Hierarchy
from halikit.utils.random import drawing_from

__all__ = ["Inference", "Mode"]

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

_States = dict[str, Tensor]


class Inference:
    """What a trained hierarchy is used for, with memory bounded by the batch size and what is asked for.

    Data may lie anywhere, a large set in the host's memory: batches go to the hierarchy's device, results come back to
    where the data are. Results are the hierarchy's own in evaluation mode, to rounding.

    Args:
        hierarchy: In evaluation mode; ``h[:l]`` for fewer levels.
        batch_size: Data at a time, at least 1.
        compile: Mode of ``torch.compile``; none: as it is. Batches are then filled up to their full size, so that each
            function is compiled once.

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
            raise ValueError("inference is in evaluation mode, where samples do not depend on each other: call .eval()")
        self.hierarchy = hierarchy
        self.batch_size = batch_size
        self._mode = compile
        self._compiled: dict[tuple[str, int], Callable[[Tensor], _States]] = {}

    def encode(self, x: Tensor) -> _States:
        """The means of every level, as :meth:`halikit.Hierarchy.encode`.

        Args:
            x: ``(n, *shape of x)``.

        Returns:
            Every state ``(n, *shape)``, ``x`` first, where ``x`` is.
        """
        return {self.hierarchy.spaces[0].name: x} | self._all("encode", len(self.hierarchy), x)

    def decode(self, z: Tensor, level: int | None = None) -> _States:
        """The means from a level down, as :meth:`halikit.Hierarchy.decode`.

        Args:
            z: A state of ``z_level``, ``(n, *its shape)``.
            level: Between 1 and L, the top by default.

        Returns:
            The states from ``z_level`` down to ``x``.
        """
        level = self._checked(level)
        return {self.hierarchy.spaces[level].name: z} | self._all("decode", level, z)

    def reconstruct(self, x: Tensor, level: int | None = None) -> Tensor:
        """Along the means to a level and back, as :meth:`halikit.Hierarchy.reconstruct`.

        Args:
            x: ``(n, *shape of x)``.
            level: Between 1 and L, the top by default.

        Returns:
            ``(n, *shape of x)``.
        """
        return self._all("reconstruct", self._checked(level), x)[self.hierarchy.spaces[0].name]

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw data from the decoder's joint, as :meth:`halikit.Hierarchy.sample`.

        Args:
            n: How many.
            generator: Source of randomness; torch's global one by default. What is drawn depends on the batch size, and
                on whether it is compiled.

        Returns:
            ``(n, *shape of x)``, on the hierarchy's device.
        """
        device = self.hierarchy.prior.device
        with drawing_from(generator, device):
            parts = (self.hierarchy.prior.sample(size) for size in _sizes(n, self.batch_size))
            return self._joined("draw", len(self.hierarchy), parts, n, device)[self.hierarchy.spaces[0].name]

    def draw(self, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw data given the top latent, kernel by kernel down the decoder.

        Args:
            z: ``(n, *shape of z_L)``.
            generator: As for :meth:`sample`.

        Returns:
            ``(n, *shape of x)``, where ``z`` is.
        """
        with drawing_from(generator, self.hierarchy.prior.device):
            return self._all("draw", len(self.hierarchy), z)[self.hierarchy.spaces[0].name]

    def _all(self, what: str, level: int, given: Tensor) -> _States:
        return self._joined(what, level, iter(given.split(self.batch_size)), len(given), given.device)

    def _joined(self, what: str, level: int, parts: Iterator[Tensor], n: int, device: torch.device) -> _States:
        """What a function makes of all parts, in memory from outside inference mode, so that it is of use anywhere."""
        function = self._function(what, level)
        result: _States = {}
        done = 0
        for part in parts:
            with torch.inference_mode():
                given = part.to(self.hierarchy.prior.device)
                found = function(self._filled(given))
            for name, states in found.items():
                if name not in result:
                    result[name] = torch.empty(n, *states.shape[1:], dtype=states.dtype, device=device)
                result[name][done : done + len(part)] = states[: len(part)]
            done += len(part)
        return result

    def _filled(self, given: Tensor) -> Tensor:
        missing = self.batch_size - len(given)
        if self._mode is None or not missing:
            return given
        return torch.cat([given, given[-1:].expand(missing, *given.shape[1:])])

    def _function(self, what: str, level: int) -> Callable[[Tensor], _States]:
        """One of the four, without the state that it is given among those that it gives."""
        if (what, level) not in self._compiled:
            hierarchy = self.hierarchy
            x = hierarchy.spaces[0].name
            functions: dict[str, Callable[[Tensor], _States]] = {
                "encode": lambda given: _but_first(hierarchy.encode(given)),
                "decode": lambda given: _but_first(hierarchy.decode(given, level)),
                "reconstruct": lambda given: {x: hierarchy.reconstruct(given, level)},
                "draw": lambda given: {x: hierarchy.decode(given, sample=True)[x]},
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


def _sizes(n: int, size: int) -> Iterator[int]:
    for first in range(0, n, size):
        yield min(size, n - first)
