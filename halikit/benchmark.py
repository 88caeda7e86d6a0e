"""How fast a step is, beside the loop that one would write oneself; ratios hold within one run only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from halikit.algorithm import ascend, descend, play
from halikit.config import TrainingConfig
from halikit.model import Model
from halikit.objectives import OBJECTIVES
from halikit.random import seeded
from halikit.training.optimisers import make_optimisers
from halikit.training.processes import resolve_device

__all__ = ["Share", "Timing", "profile_step", "time_steps"]


@dataclass(frozen=True)
class Timing:
    """One way to step.

    Attributes:
        name: What it is.
        seconds: Median time of one step, optimisers included.
        images_per_second: At that median.
        ratio: Median over the rounds of the first way's time by this one's; above 1 where this one is faster.
    """

    name: str
    seconds: float
    images_per_second: float
    ratio: float


@dataclass(frozen=True)
class Share:
    """What one kind of operation takes of a step: its share of the time in [0, 1], and how often it runs."""

    operation: str
    share: float
    calls: float


def time_steps(model: Model, *, rounds: int = 10, steps: int = 5) -> list[Timing]:
    """Time three ways to step, interleaved: the textbook loop, one forward with two backward passes, the single pass.

    The whole stack plays on random data at the config's batch size. The model is changed by it.

    Args:
        model: Built from a config.
        rounds: How often each way has its turn.
        steps: Steps in a turn.

    Raises:
        ValueError: If the model has no config.
    """
    ways = _ways(model)
    device = model.hierarchy.prior.device
    times: dict[str, list[float]] = {name: [] for name in ways}
    with seeded(0, device):
        for step in ways.values():
            step()
            step()
        for _ in range(rounds):
            for name, step in ways.items():
                _wait_for(device)
                start = time.perf_counter()
                for _ in range(steps):
                    step()
                _wait_for(device)
                times[name].append((time.perf_counter() - start) / steps)
    first, batch = next(iter(times.values())), _settings(model).batch_size
    return [
        Timing(
            name,
            median(each),
            batch / median(each),
            median(reference / own for reference, own in zip(first, each, strict=True)),
        )
        for name, each in times.items()
    ]


def profile_step(model: Model, *, steps: int = 10) -> list[Share]:
    """Where the time of a single-pass step goes, by operation, the largest first; own time, calls per step.

    Args:
        model: Built from a config.
        steps: Steps to look at.

    Raises:
        ValueError: If the model has no config.
    """
    step = list(_ways(model).values())[-1]
    device = model.hierarchy.prior.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with seeded(0, device):
        step()
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(steps):
                step()
            _wait_for(device)
    rows = profiler.key_averages()
    own = {row.key: row.self_device_time_total if device.type == "cuda" else row.self_cpu_time_total for row in rows}
    total = sum(own.values())
    shares = [Share(row.key, own[row.key] / total, row.count / steps) for row in rows]
    return sorted(shares, key=lambda share: -share.share)


def _settings(model: Model) -> TrainingConfig:
    if model.config is None:
        raise ValueError("a benchmark needs a model built from a config")
    return model.config.training


def _ways(model: Model) -> dict[str, Callable[[], None]]:
    settings = _settings(model)
    device = resolve_device(settings.device)
    if model.discriminator is None:
        raise ValueError("a benchmark measures the steps of the game, which need a discriminator")
    hierarchy, discriminator = model.hierarchy.to(device).train(), model.discriminator.to(device).train()
    x = torch.rand(settings.batch_size, *hierarchy.spaces[0].shape, device=device) * 2 - 1
    objective = OBJECTIVES[settings.objective]
    optimisers = for_g, for_d = make_optimisers(model, settings)

    noise, half = settings.encoder_noise, settings.precision == "bf16"

    def scores() -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return discriminator(ascend(hierarchy, x, noise)), discriminator(descend(hierarchy, len(x)))

    def textbook() -> None:
        for_d.zero_grad()
        objective(*scores()).discriminator.backward()
        for_d.step()
        for_g.zero_grad()
        objective(*scores()).generator.backward()
        for_g.step()

    def at_once(single_pass: bool) -> None:
        for optimiser in optimisers:
            optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            play(hierarchy, discriminator, x, objective=objective, single_pass=single_pass, encoder_noise=noise)
        for optimiser in optimisers:
            optimiser.step()

    return {
        "textbook: chains and discriminator run twice": textbook,
        "one forward, two backward passes": lambda: at_once(False),
        "single pass": lambda: at_once(True),
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
