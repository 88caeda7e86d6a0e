"""What a step costs as levels and resolution grow, and what presets need in memory; writes scale.json and scale.png.

python docs/results/scale.py            some minutes, and nothing else should run beside it

Levels are those of the dense family on 8×8 images at a batch of 128, resolutions those of the convolutional family with
two levels at a batch of 8. A step is `halikit.Trainer.step` whole, on one thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import halikit as hk
from halikit import presets
from halikit.benchmark.steps import peak_memory, time_steps
from halikit.config import Config, override
from halikit.presets import families

HERE = Path(__file__).parent
ROUNDS = 5
MEMORY = {"digits": (128, 512), "mnist": (128, 512), "cifar10": (8, 32), "celeba64": (8, 32), "imagenet128": (2, 8)}


def cost(config: Config) -> dict[str, float]:
    """Milliseconds and GFLOP of a step of halikit, and its peak memory in MB."""
    torch.manual_seed(0)
    timing = time_steps(hk.build(config), rounds=ROUNDS).timings[-1]
    return {"ms": 1e3 * timing.seconds, "gflop": timing.flop / 1e9, "peak_mb": peak_memory(config) / 1e6}


def on_cpu(config: Config, shape: Sequence[int], batch_size: int) -> Config:
    """A config for images of this shape, at this batch size, on one thread."""
    return override(
        config,
        {
            "model.data_shape": tuple(shape),
            "training.batch_size": batch_size,
            "hardware.threads": 1,
            "hardware.device": "cpu",
        },
    )


def measured() -> dict[str, dict[int, dict[str, float]]]:
    """Everything, by what is varied and its value."""
    levels = {l: cost(on_cpu(families.dense(l), (1, 8, 8), 128)) for l in range(1, 9)}
    sides = {side: cost(on_cpu(families.conv(2), (3, side, side), 8)) for side in (32, 64, 128, 256)}
    memory = {
        name: {n: peak_memory(on_cpu(config, config.model.data_shape, n)) / 1e6 for n in batches}
        for name, batches in MEMORY.items()
        for config in [presets.preset(name)]
    }
    return {"levels": levels, "sides": sides, "peak_mb_by_batch": memory}


def draw(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Time against arithmetic, with the line of proportion through the largest."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (key, what) in zip(axes, (("levels", "L = {}"), ("sides", "{0}×{0}")), strict=True):
        rows = found[key]
        work = [row["gflop"] for row in rows.values()]
        times = [row["ms"] for row in rows.values()]
        axis.loglog(work, times, "o")
        axis.loglog(work, [times[-1] * w / work[-1] for w in work], ":", color="grey", label="in proportion")
        for value, x, y in zip(rows, work, times, strict=True):
            axis.annotate(what.format(value), (x, y), textcoords="offset points", xytext=(5, -9), fontsize=8)
        axis.set(xlabel="GFLOP a step", ylabel="ms a step", title=f"as {key} grow".replace("sides", "resolutions"))
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    found = measured()
    (HERE / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, HERE / "scale.png")
