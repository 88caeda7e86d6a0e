"""The choice of the labelled examples."""

from __future__ import annotations

import torch
from torch import Tensor

from halikit.errors import InputError

__all__ = ["choose_labelled"]


def choose_labelled(labels: Tensor, number: int, classes: int, seed: int) -> Tensor:
    """Choose the labelled examples at random, the same number from each class.

    Args:
        labels: ``(n,)`` int64.
        number: How many to choose, a multiple of the number of classes.
        classes: Number of classes.
        seed: Seed of the choice, which depends on nothing else.

    Returns:
        Indices into ``labels``, ``(number,)`` int64, ascending.

    Raises:
        InputError: If the number is not such a multiple, or a class has too few examples.
    """
    each, rest = divmod(number, classes)
    if rest or not each:
        raise InputError(f"{number} labels cannot be even over {classes} classes: take a multiple of {classes}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    chosen = [order[shuffled == label][:each] for label in range(classes)]
    for label, index in enumerate(chosen):
        if len(index) < each:
            raise InputError(f"{number} labels need {each} of each class, and class {label} has {len(index)}")
    return torch.cat(chosen).sort().values
