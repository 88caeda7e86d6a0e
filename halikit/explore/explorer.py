"""Answers the requests of the page with a model. Results are values for JSON; the server's module handles HTTP."""

from __future__ import annotations

import math
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from halikit import plotting
from halikit.analysis import inpainting, traversal
from halikit.data import DataSet
from halikit.data.image import BadImageError, decode, quiet
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import BernoulliKernel, CategoricalKernel
from halikit.runs.context import rows_at_random
from halikit.spaces import Space

__all__ = ["Explorer"]

# Number of subjects in memory; older ones are removed.
_MOST_SUBJECTS = 64
# Number of samples for the ranges of the sliders and, if there are no data, for the fill of missing pixels.
_DRAWS = 256
# Searches for the latents of an image with missing pixels. Small models take less than a second for each on a CPU.
_SEARCHES = 4
# Limits on the estimate of the entries' influence: decodings in total, and samples for each entry.
_DECODINGS = 1024
_MOST_SAMPLES = 16
# Largest absolute value that an entry can be set to.
_LARGEST = 1e6


@dataclass(frozen=True)
class _Subject:
    """A datum with its latents, ``(1, *shape)`` each, a title for the page, and the hierarchy given its context."""

    title: str
    states: dict[str, Tensor]
    hierarchy: Hierarchy


class Explorer:
    """Answers the requests of the page about a trained hierarchy. It can run one request at a time.

    A *subject* is a datum with its latents. A request can *set* entries of a vector latent, or *multiply* the maps of a
    latent with feature maps by factors. Only :meth:`sample` is random, with a seed; all other requests use conditional
    means. So equal requests have equal results.

    Args:
        hierarchy: The hierarchy, in evaluation mode.
        name: Name of the run.
        data: Data set whose held-out part can be shown; ``None`` if there is none.
        fill: Initial values of missing pixels, ``(*shape of x)``; by default the mean of samples.
        seed: Seed of the first sample. Each further sample has the next seed.
        contexts: For a hierarchy that takes a context: the contexts of the held-out data, and the contexts of which
            each sample gets one at random, ``(n, …)`` each; one row where all are given the same.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        name: str,
        *,
        data: DataSet | None = None,
        fill: Tensor | None = None,
        seed: int = 0,
        contexts: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.hierarchy = hierarchy
        self.name = name
        self.data = data
        self._fill = fill
        self._seed = seed
        self._contexts = contexts
        self._picked = -1
        self._subjects: OrderedDict[int, _Subject] = OrderedDict()
        self._count = 0
        self._levels: dict[int, dict[str, Any]] = {}

    def about(self) -> dict[str, Any]:
        """Facts about the model.

        Returns:
            Its ``name``; ``spaces``; ``size`` of an image (height, width) or ``None``; ``opens``: whether image files
            can be opened; ``images``: number of held-out data; ``classes``: names of the classes that a sample can be
            given; ``fill``: initial values of missing pixels, in words.
        """
        x = self._x
        return {
            "name": self.name,
            "spaces": [{"name": space.name, "text": str(space)} for space in self.hierarchy.spaces],
            "size": x.shape[1:] if x.is_image else None,
            "opens": x.is_image and x.shape[0] in (1, 3) and not self._has_own_contexts,
            "images": 0 if self.data is None else len(self.data.held_out),
            "classes": self._classes,
            "fill": "the mean training image" if self._fill is not None else f"the mean of {_DRAWS} samples",
        }

    @torch.no_grad()
    def level(self, level: int) -> dict[str, Any]:
        """The entries of a latent that can be changed, ordered by their influence on ``x``, the largest first.

        Args:
            level: Level of the latent, between 1 and L.

        Returns:
            ``how``: ``"set"`` or ``"multiply"``; ``entries``, each with its ``index``, ``influence`` (root mean square
            change per element of x, an estimate over samples), and ``low`` and ``high``, the ends of its slider;
            ``why_not``: the reason if there are no entries.

        Raises:
            InputError: If there is no such level.
        """
        space = self._latent(level)
        if level not in self._levels:
            self._levels[level] = self._entries(space, level)
        return self._levels[level]

    @torch.no_grad()
    def sample(self, seed: int | None = None, label: int | None = None) -> dict[str, Any]:
        """A subject sampled from the decoder's joint, with the sampled latents.

        Args:
            seed: Seed of the sample; by default the next one.
            label: Index of the class that the model is given; by default that of a training datum, drawn at random.

        Raises:
            InputError: If the model is given no such class.
        """
        if label is not None and not 0 <= label < len(self._classes):
            raise InputError(f"a sample can be given one of {len(self._classes)} classes here; there is no {label}")
        if seed is None:
            seed = self._seed
            self._seed += 1
        states, hierarchy = self._sampled(1, seed, label)
        title = f"sample, seed {seed}" + self._class_of(hierarchy.context)
        return self._description(self._store(_Subject(title, states, hierarchy)))

    def pick(self, index: int | None = None) -> dict[str, Any]:
        """A subject from the held-out data.

        Args:
            index: Index of the datum; by default the next one.

        Raises:
            InputError: If there are no data, or no datum with this index.
        """
        if self.data is None:
            raise InputError("there are no data here to pick from; start again with --data")
        part = self.data.held_out
        index = (self._picked + 1) % len(part) if index is None else index
        if not 0 <= index < len(part):
            raise InputError(f"held-out images have the numbers 0 to {len(part) - 1}; there is no {index}")
        self._picked = index
        label = "" if part.labels is None else self._class_of(part.labels[index : index + 1])
        hierarchy = self.hierarchy.conditioned(self._contexts[0] if self._contexts else None)
        own = hierarchy.rows(slice(index, index + 1))
        return self._encoded(f"held-out image {index}{label}", part.batch(torch.tensor([index])), own)

    def open(self, content: bytes, *, inverted: bool = False) -> dict[str, Any]:
        """A subject from an image file, cropped and resized to the images of the model.

        Args:
            content: Content of the file.
            inverted: Whether to invert the brightness, such as for ink on paper and a model of light strokes.

        Raises:
            InputError: If the file is not an image, the model is not for grey or colour images, or it takes a context
                and each datum has its own.
        """
        if self._has_own_contexts:
            raise InputError("this model is given the class of each image: start again with --class to open a file")
        hierarchy = self.hierarchy.conditioned(self._contexts[1] if self._contexts else None)
        pixels = torch.from_numpy(self._pixels(content).copy()).float().div(127.5).sub(1)
        return self._encoded("your image", (-pixels if inverted else pixels).unsqueeze(0), hierarchy)

    @torch.no_grad()
    def move(self, subject: int, level: int, changes: Mapping[int, float], *, keep: bool = False) -> dict[str, Any]:
        """Change entries of a subject's latent and decode it.

        Args:
            subject: Id of the subject.
            level: Level of the latent, between 1 and L.
            changes: For each entry the value to set it to, or the factor of its map; see :meth:`level`.
            keep: Whether to make the decoded datum a new subject.

        Returns:
            The ``view`` of the decoded datum, and its root mean square ``change`` per element; or the new subject.

        Raises:
            InputError: If there is no such subject, level or entry, or a value is out of range.
        """
        space, chosen = self._latent(level), self._subject(subject)
        states, hierarchy = chosen.states, chosen.hierarchy
        how, why_not = _how(space)
        if how is None and changes:
            raise InputError(why_not)
        z = states[space.name]
        before = hierarchy.decode(z, level)[self._x.name]
        for entry, value in changes.items():
            if not abs(value) <= _LARGEST:
                raise InputError(f"entries move within ±{_LARGEST:g}, not to {value}")
            try:
                z = traversal.altered(z, entry, value, how or "set")
            except ValueError as error:
                raise InputError(str(error)) from None
        after = hierarchy.decode(z, level)[self._x.name]
        if keep:
            return self._encoded(f"{space.name} moved", after, hierarchy)
        return {"view": self._view(after), "change": _distance(before, after)}

    def inpaint(self, subject: int, mask: str, *, keep: bool = False) -> dict[str, Any]:
        """Fill in missing pixels of a subject, by a search for latents that explain the others, which do not change.

        Args:
            subject: Id of the subject.
            mask: A character for each pixel, row by row: ``1`` if it is missing, ``0`` if not.
            keep: Whether to make the filled image a new subject.

        Returns:
            ``missing``: number of missing pixels; ``given``: view of the masked image; ``steps``, which are ``draw``
            and ``mean``, each with its ``name``, the ``view`` and the root mean square ``error`` per missing element;
            or the new subject.

        Raises:
            InputError: If there is no such subject, or the mask does not fit.
        """
        chosen = self._subject(subject)
        x = chosen.states[self._x.name]
        if not self._x.is_image:
            raise InputError(f"masks are painted on images, and {self._x} is none")
        height, width = self._x.shape[1:]
        if len(mask) != height * width or not set(mask) <= {"0", "1"} or "1" not in mask:
            raise InputError(f"a mask has {height}×{width} characters 0 or 1, one 1 at least")
        missing = torch.tensor([character == "1" for character in mask]).view(height, width).to(x.device)
        result = inpainting.inpaint_by_search(
            chosen.hierarchy,
            x,
            missing,
            fill=self.fill.to(x.device),
            draws=_SEARCHES,
            generator=torch.Generator(x.device).manual_seed(0),
        )
        if keep:
            return self._encoded("filled in", result.completed, chosen.hierarchy)
        where = missing.expand_as(x)
        return {
            "missing": int(missing.sum()),
            "given": self._view(result.masked),
            "steps": [
                {"name": name, "view": self._view(image), "error": _distance(image[where], x[where])}
                for name, image in result.steps.items()
            ],
        }

    @cached_property
    def fill(self) -> Tensor:
        """Initial values of missing pixels, ``(*shape of x)``."""
        return self._sampled(_DRAWS, 0)[0][self._x.name].mean(0) if self._fill is None else self._fill

    @property
    def _has_own_contexts(self) -> bool:
        """Whether each datum has a context of its own, which those of a file do not have."""
        return self._contexts is not None and len(self._contexts[1]) > 1

    @property
    def _classes(self) -> list[str]:
        """The names of the classes that a sample can be given; none if the model reads no classes, or a fixed one."""
        if self.data is None or self._contexts is None or len(self._contexts[1]) == 1:
            return []
        if self._contexts[1].is_floating_point():
            return []
        return list(self.data.classes)

    def _class_of(self, context: Tensor | None) -> str:
        """The class of a datum for its title; empty if it has none."""
        if context is None or context.is_floating_point():
            return ""
        index = int(context[0])
        return f", “{self.data.classes[index] if self.data else index}”"

    @property
    def _x(self) -> Space:
        return self.hierarchy.spaces[0]

    @cached_property
    def _limits(self) -> plotting.Limits:
        """The limits of all pictures, so that they can be compared; by the data, or by samples if there are none."""
        part = None if self.data is None else self.data.held_out
        n = _DRAWS if part is None else min(_DRAWS, len(part))
        x = self._sampled(n, 0)[0][self._x.name] if part is None else part.batch(torch.arange(n))
        return plotting.limits_of(x)

    def _view(self, x: Tensor) -> dict[str, Any]:
        """A datum ``(1, *shape of x)`` for the page: a picture where there are pictures of such data, or its values."""
        if plotting.is_drawable(self._x.shape):
            png = plotting.as_png(plotting.as_pixels(x.nan_to_num(), self._limits)[0])
            return {"picture": f"data:image/png;base64,{b64encode(png).decode()}"}
        return {"values": [_number(value) for value in x.flatten()]}

    def _latent(self, level: int) -> Space:
        if not 1 <= level <= len(self.hierarchy):
            raise InputError(f"this model has levels 1 to {len(self.hierarchy)}; there is no level {level}")
        return self.hierarchy.spaces[level]

    def _subject(self, number: int) -> _Subject:
        if number not in self._subjects:
            raise InputError("this image is not kept any longer; draw a sample, or pick or open an image")
        return self._subjects[number]

    def _sampled(self, n: int, seed: int, label: int | None = None) -> tuple[dict[str, Tensor], Hierarchy]:
        """Samples, and the hierarchy given a class, or the contexts that were drawn for them."""
        device = self.hierarchy.prior.device
        context = None if self._contexts is None else rows_at_random(self._contexts[1], n, seed)
        if context is not None and label is not None:
            context = torch.full_like(context, label)
        hierarchy = self.hierarchy.conditioned(context)
        with torch.no_grad():
            return hierarchy.sample_states(n, generator=torch.Generator(device).manual_seed(seed)), hierarchy

    def _entries(self, space: Space, level: int) -> dict[str, Any]:
        how, why_not = _how(space)
        if how is None:
            return {"how": None, "entries": [], "why_not": why_not}
        states, hierarchy = self._sampled(_DRAWS, 0)
        z = states[space.name]
        bounded = isinstance(self.hierarchy.links[level - 1].up, BernoulliKernel | CategoricalKernel)
        ends = (0.0, 1.0) if bounded else (-3.0, 3.0)
        samples = z[: max(2, min(_MOST_SAMPLES, _DECODINGS // (2 * z.shape[1])))]
        given = hierarchy.rows(slice(len(samples)))
        influence = traversal.influence(given, samples, level, ends, how=how).nan_to_num()
        order = influence.argsort(descending=True).tolist()
        low, high = (torch.full((z.shape[1],), end) for end in ends)
        if how == "set" and not bounded:
            # Three standard deviations around the mean. For a standard normal this is the range in the paper.
            flat = rearrange(z, "n entry ... -> entry (n ...)")
            low, high = (flat.mean(1) + end * flat.std(1) for end in ends)
        entries = [
            {
                "index": i,
                "influence": _number(influence[i]),
                "low": _number(low[i]) or 0.0,
                "high": _number(high[i]) or 0.0,
            }
            for i in order
        ]
        return {"how": how, "entries": entries, "why_not": None}

    def _store(self, subject: _Subject) -> int:
        self._count += 1
        self._subjects[self._count] = subject
        while len(self._subjects) > _MOST_SUBJECTS:
            self._subjects.popitem(last=False)
        return self._count

    @torch.no_grad()
    def _encoded(self, title: str, x: Tensor, hierarchy: Hierarchy) -> dict[str, Any]:
        states = hierarchy.encode(x.to(hierarchy.prior.device))
        return self._description(self._store(_Subject(title, states, hierarchy)))

    @torch.no_grad()
    def _description(self, number: int) -> dict[str, Any]:
        """A subject for the page: ``id``, ``title``, ``view``, and for each level the reconstruction and its error."""
        subject = self._subjects[number]
        x = subject.states[self._x.name]
        levels = []
        for level, space in enumerate(self.hierarchy.spaces[1:], 1):
            z = subject.states[space.name]
            decoded = subject.hierarchy.decode(z, level)[self._x.name]
            set_to = _how(space)[0] == "set"
            levels.append(
                {
                    "name": space.name,
                    "view": self._view(decoded),
                    "error": _distance(decoded, x),
                    # Positions of the sliders: the entries of a vector; for maps the page uses the factor 1.
                    "at": [_number(value) or 0.0 for value in z.flatten()] if set_to else None,
                }
            )
        return {"id": number, "title": subject.title, "view": self._view(x), "levels": levels}

    def _pixels(self, content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The pixels of an image file, ``(*shape of x)`` bytes."""
        from PIL import Image, ImageOps

        if not (self._x.is_image and self._x.shape[0] in (1, 3)):
            raise InputError(f"images are opened by models of grey or coloured images, and this one is of {self._x}")
        channels, height, width = self._x.shape
        try:
            with quiet():
                pixels = decode(content, height if height == width else None)
        except BadImageError as error:
            raise InputError(f"this file cannot be opened: {error}") from None
        image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _how(space: Space) -> tuple[traversal.How | None, str]:
    """How entries of a latent are changed, or the reason why they cannot be changed."""
    if space.rank == 0:
        return None, f"{space} has no entries to move: its states are single numbers"
    return ("set" if space.size == space.shape[0] else "multiply"), ""


def _distance(a: Tensor, b: Tensor) -> float | None:
    return _number((a - b).square().mean().sqrt())


def _number(value: Tensor) -> float | None:
    """A number for JSON, rounded to five digits; ``None`` if it is not finite."""
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None
