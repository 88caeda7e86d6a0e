"""What a conditional model reads of each datum: the labels or attributes of the data, or what a user asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from halikit.config import ModelSettings
from halikit.errors import InputError

__all__ = ["Asked", "rows_at_random"]


@dataclass(frozen=True)
class Asked:
    """What a user asks for, in place of what the data have.

    Attributes:
        class_name: Name or index of a class; ``None`` for the classes of the data.
        attributes: Values by the name of an attribute; the others are those of the data.
    """

    class_name: str | None = None
    attributes: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, class_name: str | None, attributes: Sequence[str]) -> Self:
        """Read ``--class`` and ``--attribute``.

        Raises:
            InputError: If an attribute is not written as NAME=0 or NAME=1.
        """
        values = []
        for text in attributes:
            name, _, value = text.rpartition("=")
            if not name or value not in ("0", "1"):
                raise InputError(f"--attribute takes NAME=0 or NAME=1, got {text!r}")
            values.append((name, value == "1"))
        return cls(class_name, tuple(values))

    def __bool__(self) -> bool:
        return self.class_name is not None or bool(self.attributes)

    def check(self, model: ModelSettings, run: object) -> None:
        """Refuse what the model does not read.

        Raises:
            InputError: If a class is asked of a model that reads none, or attributes of one that reads none.
        """
        for option, kind, is_given in (
            ("--class", "labels", self.class_name is not None),
            ("--attribute", "attributes", bool(self.attributes)),
        ):
            if is_given and model.conditional != kind:
                reads = f"was trained on {model.conditional}" if model.conditional else "takes no context"
                raise InputError(f"{option} is for models of train --conditional on {kind}, and {run} {reads}")

    def changed(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Attributes of data with those that were asked for.

        Args:
            context: ``(n, A)`` floats.
            names: Names of the attributes.

        Raises:
            InputError: If there is no such attribute.
        """
        if not self.attributes:
            return context
        context = context.clone()
        for name, value in self.attributes:
            if name not in names:
                raise InputError(f"there is no attribute {name!r}; there are {_listed(names)}")
            context[:, names.index(name)] = float(value)
        return context

    def index(self, names: Sequence[str], size: int) -> int:
        """The class that was asked for.

        Args:
            names: Names of the classes, as far as they are known.
            size: Number of classes.

        Raises:
            InputError: If there is no such class.
        """
        text = self.class_name or ""
        if text in names:
            return names.index(text)
        if text.isascii() and text.isdecimal() and int(text) < size:
            return int(text)
        raise InputError(f"there is no class {text!r}; there are {_listed(names or list(map(str, range(size))))}")

    def __str__(self) -> str:
        if self.class_name is not None:
            return f"class {self.class_name}"
        return ", ".join(f"{name}={int(value)}" for name, value in self.attributes)


def rows_at_random(context: Tensor, n: int, seed: int) -> Tensor:
    """Rows of a context drawn with replacement, ``(n, …)``; so classes have their frequencies in the data."""
    index = torch.randint(len(context), (n,), generator=torch.Generator().manual_seed(seed))
    return context[index.to(context.device)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
