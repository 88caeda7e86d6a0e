"""What the options of docs/speed.md change on a CPU: processor seconds of alternating turns, medians, as lines of JSON.

OMP_NUM_THREADS=1 python speed_options.py compile:digits:128 layout:cifar10:8 ahead:PACK infer:digits:500 …
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

import halikit as hk
from halikit.analysis.inference import Inference
from halikit.config import override
from halikit.presets import preset

Step = Callable[[], object]


def config_of(name: str, batch: int, **settings: object) -> hk.Config:
    """A preset with its whole stack at once."""
    config = override(preset(name), {"batch_size": batch, **settings})
    return override(config, {"data_shape": (1, 8, 8)}) if config.model.data_shape is None else config


def step_of(name: str, batch: int, **settings: object) -> Step:
    """A whole step on random images."""
    torch.manual_seed(0)
    trainer = hk.Trainer(hk.build(config_of(name, batch, **settings)))
    x = torch.rand(batch, *trainer.model.hierarchy.spaces[0].shape) * 2 - 1
    return lambda: trainer.step(x)


def seconds(step: Step, times: int = 1) -> float:
    """Of the processor, mean of so many calls."""
    start = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - start) / times


def alternating(steps: dict[str, Step], rounds: int = 9, times: int = 3) -> dict[str, Any]:
    """Median of each, the ratio of the first to each, and the first call."""
    first = {name: seconds(step) for name, step in steps.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(seconds(step, times))
    reference = next(iter(found.values()))
    return {
        name: {
            "ms": round(1000 * median(each), 2),
            "ratio": round(median(a / b for a, b in zip(reference, each, strict=True)), 3),
            "first_call_s": round(first[name], 1),
        }
        for name, each in found.items()
    }


def compiled(name: str, batch: str) -> dict[str, Any]:
    """Both players compiled, beside eager ones."""
    size = int(batch)
    return alternating({"eager": step_of(name, size), "compiled": step_of(name, size, compile="default")})


def layout(name: str, batch: str) -> dict[str, Any]:
    """Weights and data in either memory format."""
    formats = ("contiguous", "channels_last")
    return alternating({f: step_of(name, int(batch), memory_format=f) for f in formats}, times=1)


def recomputed(name: str, batch: str) -> dict[str, Any]:
    """Activations kept, and computed again."""
    return alternating({f"recompute={r}": step_of(name, int(batch), recompute=r) for r in (False, True)}, times=1)


def ahead(pack: str) -> dict[str, Any]:
    """Wall seconds of a training of 200 steps from a pack, read within the step and ahead of it, in turns."""
    data = hk.data.load(f"pack:{pack}")
    shape = data.shape
    found: dict[int, list[float]] = {0: [], 2: []}
    for _ in range(3):
        for depth, times in found.items():
            torch.manual_seed(0)
            changes = {"data_shape": shape, "levels": 2, "family": "dense", "prefetch": depth, "steps": 200}
            model = hk.build(override(hk.Config(), changes | {"evaluate_every": 10**6, "batch_size": 32}))
            trainer = hk.Trainer(model, data, augmentation=hk.data.Augmentation(flip=True, shift=2))
            start = time.perf_counter()
            trainer.fit()
            times.append(time.perf_counter() - start)
    return {f"prefetch={depth}": {"wall_s": round(median(times), 2)} for depth, times in found.items()}


def inference(name: str, batch: str) -> dict[str, Any]:
    """Encoding and sampling two batches."""
    size = int(batch)
    torch.manual_seed(0)
    hierarchy = hk.build(config_of(name, size)).hierarchy.eval()
    x = torch.rand(2 * size, *hierarchy.spaces[0].shape) * 2 - 1
    plain, made = Inference(hierarchy, batch_size=size), Inference(hierarchy, batch_size=size, compile="default")
    return {
        "images": 2 * size,
        "encode": alternating({"eager": lambda: plain.encode(x), "compiled": lambda: made.encode(x)}, times=1),
        "sample": alternating(
            {"eager": lambda: plain.sample(2 * size), "compiled": lambda: made.sample(2 * size)}, times=1
        ),
    }


KINDS = {"compile": compiled, "layout": layout, "recompute": recomputed, "ahead": ahead, "infer": inference}

if __name__ == "__main__":
    for task in sys.argv[1:]:
        kind, *given = task.split(":")
        print(json.dumps({"task": task, "threads": torch.get_num_threads(), **KINDS[kind](*given)}), flush=True)
