"""What the page asks of a model. It knows nothing of HTTP; everything that it gives is ready for JSON."""

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
from torch import Tensor

from halikit import plotting
from halikit.analysis import inpainting, traversal
from halikit.data import DataSet
from halikit.data.image import BadImageError, decode, quiet
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.kernels import BernoulliKernel, CategoricalKernel
from halikit.spaces import Space

__all__ = ["Explorer"]

# States that the page can still ask for; older ones are forgotten.
_KEPT = 64
# Draws from which the range of a slider, and what missing pixels hold where there are no data, are estimated.
_DRAWS = 256
# Decodings by which entries are put in order: fewer samples where there are many entries.
_DECODINGS = 1024
_MOST_SAMPLES = 16
_LARGEST = 1e6


@dataclass(frozen=True)
class _Subject:
    """What is looked at: an image with its latents, ``(1, *shape)`` each, and what it is for people."""

    title: str
    states: dict[str, Tensor]


class Explorer:
    """A trained hierarchy as a page sees it: subjects, each a datum with its latents, to look at and to change.

    Latents of rank 1 have their entries *set*; those of spatial maps are *multiplied*, map by map. Everything follows
    conditional means but for the samples, so the page shows the same for the same requests. One call at a time.

    Args:
        hierarchy: In evaluation mode.
        name: Of the run.
        data: Whose held-out part can be picked from; ``None`` where there are none.
        fill: What missing pixels hold to begin with, ``(*shape of x)``; the mean of samples by default.
        seed: Of the first sample; each further one takes the next.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        name: str,
        *,
        data: DataSet | None = None,
        fill: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.hierarchy = hierarchy
        self.name = name
        self.data = data
        self._fill = fill
        self._seed = seed
        self._picked = -1
        self._subjects: OrderedDict[int, _Subject] = OrderedDict()
        self._made = 0
        self._levels: dict[int, dict[str, Any]] = {}

    def about(self) -> dict[str, Any]:
        """What the model is: its ``name``, ``spaces``, ``size`` of an image (height, width), number of ``images``."""
        x = self._x
        return {
            "name": self.name,
            "spaces": [{"name": space.name, "text": str(space)} for space in self.hierarchy.spaces],
            "size": x.shape[1:] if x.is_image else None,
            "opens": x.is_image and x.shape[0] in (1, 3),
            "images": 0 if self.data is None else len(self.data.held_out),
            "fill": "the mean training image" if self._fill is not None else f"the mean of {_DRAWS} samples",
        }

    @torch.no_grad()
    def level(self, level: int) -> dict[str, Any]:
        """The entries of a latent that can be moved, those first that change ``x`` most.

        Args:
            level: Between 1 and L.

        Returns:
            ``how`` they are changed; ``entries``, each with its ``index``, ``influence`` (root mean square change per
            element of x: an estimate over samples), and the ``low`` and ``high`` end of its slider; ``why_not`` where
            there are none.

        Raises:
            InputError: If there is no such level.
        """
        space = self._latent(level)
        if level not in self._levels:
            self._levels[level] = self._examined(space, level)
        return self._levels[level]

    @torch.no_grad()
    def sample(self, seed: int | None = None) -> dict[str, Any]:
        """A subject drawn from the decoder's joint, with the latents that it was made from."""
        if seed is None:
            seed = self._seed
            self._seed += 1
        return self._told(self._keep(_Subject(f"sample, seed {seed}", self._drawn(1, seed))))

    def pick(self, index: int | None = None) -> dict[str, Any]:
        """A subject of the held-out data: the next one, unless its index is given.

        Raises:
            InputError: If there is none.
        """
        if self.data is None:
            raise InputError("there are no data here to pick from; start again with --data")
        part = self.data.held_out
        index = (self._picked + 1) % len(part) if index is None else index
        if not 0 <= index < len(part):
            raise InputError(f"held-out images have the numbers 0 to {len(part) - 1}; there is no {index}")
        self._picked = index
        label = "" if part.labels is None else f", “{self.data.classes[int(part.labels[index])]}”"
        return self._encoded(f"held-out image {index}{label}", part.batch(torch.tensor([index])))

    def open(self, content: bytes, *, inverted: bool = False) -> dict[str, Any]:
        """A subject from an image file, cropped and resized to the model's.

        Args:
            content: The file.
            inverted: Whether dark and light are exchanged: ink on paper, for a model of light strokes.

        Raises:
            InputError: If it is no image, or the model is for none.
        """
        pixels = torch.from_numpy(self._fitted(content).copy()).float().div(127.5).sub(1)
        return self._encoded("your image", (-pixels if inverted else pixels).unsqueeze(0))

    @torch.no_grad()
    def move(self, subject: int, level: int, changes: Mapping[int, float], *, keep: bool = False) -> dict[str, Any]:
        """What is decoded from a subject's latent with some entries changed.

        Args:
            subject: Its id.
            level: Between 1 and L.
            changes: What entries are set to, or maps multiplied by, as :meth:`level` says.
            keep: Whether to make the outcome a subject.

        Returns:
            Its ``view`` and root mean square ``change`` per element; or the subject.

        Raises:
            InputError: If there is no such subject, level or entry.
        """
        space, states = self._latent(level), self._subject(subject).states
        how, why_not = _how(space)
        if how is None and changes:
            raise InputError(why_not)
        z = states[space.name]
        before = self.hierarchy.decode(z, level)[self._x.name]
        for entry, value in changes.items():
            if not abs(value) <= _LARGEST:
                raise InputError(f"entries move within ±{_LARGEST:g}, not to {value}")
            try:
                z = traversal.altered(z, entry, value, how or "set")
            except ValueError as error:
                raise InputError(str(error)) from None
        after = self.hierarchy.decode(z, level)[self._x.name]
        if keep:
            return self._encoded(f"{space.name} moved", after)
        return {"view": _view(after), "change": _distance(before, after)}

    def inpaint(self, subject: int, mask: str, *, keep: bool = False) -> dict[str, Any]:
        """Fill in a subject's missing pixels from the top down (section 6.1); the others stay bit for bit.

        Args:
            subject: Its id.
            mask: Row by row, ``1`` where missing and ``0`` elsewhere.
            keep: Whether to make the outcome a subject.

        Returns:
            How many are ``missing``, the view that is ``given``, and the ``steps``, each with its latent's ``name``,
            ``view`` and root mean square ``error`` per missing element; or the subject.

        Raises:
            InputError: If there is no such subject, or the mask does not fit.
        """
        x = self._subject(subject).states[self._x.name]
        if not self._x.is_image:
            raise InputError(f"masks are painted on images, and {self._x} is none")
        height, width = self._x.shape[1:]
        if len(mask) != height * width or not set(mask) <= {"0", "1"} or "1" not in mask:
            raise InputError(f"a mask has {height}×{width} characters 0 or 1, one 1 at least")
        missing = torch.tensor([character == "1" for character in mask]).view(height, width).to(x.device)
        found = inpainting.inpaint(self.hierarchy, x, missing, fill=self.fill.to(x.device))
        if keep:
            return self._encoded("filled in", found.completed)
        where = missing.expand_as(x)
        return {
            "missing": int(missing.sum()),
            "given": _view(found.masked),
            "steps": [
                {"name": name, "view": _view(image), "error": _distance(image[where], x[where])}
                for name, image in found.steps.items()
            ],
        }

    @cached_property
    def fill(self) -> Tensor:
        """What missing pixels hold to begin with, ``(*shape of x)``."""
        return self._drawn(_DRAWS, 0)[self._x.name].mean(0) if self._fill is None else self._fill

    @property
    def _x(self) -> Space:
        return self.hierarchy.spaces[0]

    def _latent(self, level: int) -> Space:
        if not 1 <= level <= len(self.hierarchy):
            raise InputError(f"this model has levels 1 to {len(self.hierarchy)}; there is no level {level}")
        return self.hierarchy.spaces[level]

    def _subject(self, number: int) -> _Subject:
        if number not in self._subjects:
            raise InputError("this image is not kept any longer; draw a sample, or pick or open an image")
        return self._subjects[number]

    def _drawn(self, n: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator(self.hierarchy.prior.device).manual_seed(seed)
        with torch.no_grad():
            return self.hierarchy.sample_states(n, generator=generator)

    def _examined(self, space: Space, level: int) -> dict[str, Any]:
        how, why_not = _how(space)
        if how is None:
            return {"how": None, "entries": [], "why_not": why_not}
        z = self._drawn(_DRAWS, 0)[space.name]
        bounded = isinstance(self.hierarchy.links[level - 1].up, BernoulliKernel | CategoricalKernel)
        ends = (0.0, 1.0) if bounded else (-3.0, 3.0)
        few = z[: max(2, min(_MOST_SAMPLES, _DECODINGS // (2 * z.shape[1])))]
        influence = traversal.influence(self.hierarchy, few, level, ends, how=how).nan_to_num()
        order = influence.argsort(descending=True).tolist()
        low, high = (torch.full((z.shape[1],), end) for end in ends)
        if how == "set" and not bounded:
            # Three standard deviations about the mean: of a standard normal, the paper's range.
            flat = z.transpose(0, 1).flatten(1)
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

    def _keep(self, subject: _Subject) -> int:
        self._made += 1
        self._subjects[self._made] = subject
        while len(self._subjects) > _KEPT:
            self._subjects.popitem(last=False)
        return self._made

    @torch.no_grad()
    def _encoded(self, title: str, x: Tensor) -> dict[str, Any]:
        states = self.hierarchy.encode(x.to(self.hierarchy.prior.device))
        return self._told(self._keep(_Subject(title, states)))

    @torch.no_grad()
    def _told(self, number: int) -> dict[str, Any]:
        """A subject for the page: its ``id``, ``title``, ``view``, and what each level makes of it."""
        subject = self._subjects[number]
        x = subject.states[self._x.name]
        levels = []
        for level, space in enumerate(self.hierarchy.spaces[1:], 1):
            z = subject.states[space.name]
            decoded = self.hierarchy.decode(z, level)[self._x.name]
            set_to = _how(space)[0] == "set"
            levels.append(
                {
                    "name": space.name,
                    "view": _view(decoded),
                    "error": _distance(decoded, x),
                    # Where sliders stand: entries of vectors as they are, maps as they are times 1.
                    "at": [_number(value) or 0.0 for value in z.flatten()] if set_to else None,
                }
            )
        return {"id": number, "title": subject.title, "view": _view(x), "levels": levels}

    def _fitted(self, content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """An image file as ``(*shape of x)`` bytes."""
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
    """How entries of a latent are changed; or why they are not."""
    if space.rank == 0:
        return None, f"{space} has no entries to move: its states are single numbers"
    return ("set" if space.size == space.shape[0] else "multiply"), ""


def _view(x: Tensor) -> dict[str, Any]:
    """A datum ``(1, *shape of x)`` for the page: a picture where it is an image, values where it is not."""
    if x.dim() == 4:
        png = plotting.as_png(plotting.as_pixels(x.nan_to_num())[0])
        return {"picture": f"data:image/png;base64,{b64encode(png).decode()}"}
    return {"values": [_number(value) for value in x.flatten()]}


def _distance(a: Tensor, b: Tensor) -> float | None:
    return _number((a - b).square().mean().sqrt())


def _number(value: Tensor) -> float | None:
    """A number as JSON takes it, to five digits; ``None`` where it is not finite."""
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None
