"""Nested Python values as JSON values and back, exactly: states of optimisers and schedules, without pickle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halikit.errors import InputError

__all__ = ["packed", "unpacked"]

# Tensors with more elements belong beside the JSON file, not in it.
_MOST = 64


def packed(value: Any, owner: str) -> Any:
    """A value as JSON values: numbers, texts, lists, tuples, dictionaries with any such keys, and small tensors.

    Args:
        value: The value.
        owner: Whose it is, for the message.

    Raises:
        InputError: If it holds anything else.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [packed(each, owner) for each in value]}
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[packed(key, owner), packed(each, owner)] for key, each in value.items()]}
    if isinstance(value, Tensor) and value.numel() <= _MOST:
        return {"tensor": packed(value.tolist(), owner), "dtype": str(value.dtype).removeprefix("torch.")}
    raise InputError(f"{owner} keeps a {type(value).__name__} in its state, which a checkpoint cannot hold")


def unpacked(value: Any) -> Any:
    """The value that was packed; tensors are on the CPU."""
    if not isinstance(value, Mapping):
        return value
    if "tensor" in value:
        return torch.tensor(unpacked(value["tensor"]), dtype=getattr(torch, value["dtype"]))
    ((kind, content),) = value.items()
    if kind == "float":
        return float.fromhex(content)
    if kind in ("list", "tuple"):
        found = [unpacked(each) for each in content]
        return found if kind == "list" else tuple(found)
    pairs = {unpacked(key): unpacked(each) for key, each in content}
    return Counter(pairs) if kind == "counter" else pairs
