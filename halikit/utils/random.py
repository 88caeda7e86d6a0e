"""Seeds global generators for a part of the code, and restores their states afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derived_seed", "drawing_from", "restored", "seed_all", "seeded"]


def derived_seed(*numbers: int) -> int:
    """A seed that depends on several numbers, such as seed, step and rank, and on nothing else; each at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators, of the CPU and of ``device``, and restore their states after the context."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def restored(device: torch.device | str = "cpu") -> Iterator[None]:
    """Restore the states of the global generators of Python, NumPy and torch, on the CPU and ``device``, afterwards."""
    python, numpy, device = random.getstate(), np.random.get_state(), torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_all(seed: int, device: torch.device | str = "cpu") -> None:
    """Seed the global generators of Python, NumPy and torch, on the CPU and ``device``, with 0 ≤ ``seed`` < 2³²."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let torch.distributions, which has no argument for a generator, use one within the context.

    Args:
        generator: Generator that gives the seed of torch's global generators; ``None`` to use these as they are.
        device: Device of the samples.
    """
    if generator is None:
        yield
        return
    with seeded(int(torch.randint(2**62, (), generator=generator, device=generator.device)), device):
        yield
