"""Reads options that are lists of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halikit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXAMINED", "entries_of", "numbers"]

# Samples or images by which the entries with the largest effect are found; each takes two decodings an entry.
EXAMINED = 16


def numbers(option: str, text: str) -> list[float]:
    """Numbers between commas.

    Raises:
        InputError: If the text is something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes numbers between commas, such as -1,0,1; got {text!r}") from None


def entries_of(text: str | None, influence: Tensor, number: int) -> list[int]:
    """The entries of a latent that were asked for, or those with the largest influence.

    Args:
        text: Indices between commas, if any were given.
        influence: Influence of each entry, ``(entries,)``.
        number: How many to choose if none were given.

    Raises:
        InputError: If there is no such entry.
    """
    if text is None:
        return influence.topk(min(number, len(influence))).indices.tolist()
    chosen = numbers("--entries", text)
    if not all(entry.is_integer() and 0 <= entry < len(influence) for entry in chosen):
        raise InputError(f"--entries takes indices from 0 to {len(influence) - 1} between commas, got {text!r}")
    return [int(entry) for entry in chosen]
