"""Random numbers under a seed, with torch's global generators given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["drawing_from", "seeded"]


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within the context torch's global generators, those of the CPU and of ``device``, start from ``seed``."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let torch.distributions, which take no generator, draw on ``device`` from one; nothing changes for ``None``."""
    if generator is None:
        yield
        return
    with seeded(int(torch.randint(2**62, (), generator=generator, device=generator.device)), device):
        yield
