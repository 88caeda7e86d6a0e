"""Published settings: one function each, returning a complete config."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from halikit.config import Config
from halikit.errors import InputError
from halikit.presets.digits import digits
from halikit.presets.mnist import mnist

__all__ = ["PRESETS", "digits", "mnist", "preset"]

PRESETS: dict[str, Callable[[], Config]] = {"digits": digits, "mnist": mnist}


def preset(name: str) -> Config:
    """The preset of this name.

    Raises:
        InputError: If there is none, naming the nearest.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise InputError(f"there is no preset {name!r}; {hint}")
    return PRESETS[name]()
