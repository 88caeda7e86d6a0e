"""What a step costs as everything grows that a user can let grow; writes scale.json and scale.png.

python docs/results/scale.py [KEY …]    a quarter of an hour, and nothing else should run beside it

Each key is one curve: levels, sides, batch, sizes, images, processes. A step is `halikit.Trainer.step` whole, on one
thread, eager, in float32. Those of `images` read a pack of random bytes; those of `processes` are of torchrun.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import halikit as hk
from halikit import data, presets
from halikit.benchmark.steps import peak_memory
from halikit.config import Config, override
from halikit.networks.sizes import SIZES
from halikit.presets import families
from halikit.runs.run import Run

HERE = Path(__file__).parent
ROUNDS, SECONDS = 5, 1.0
PLAIN = {"hardware.threads": 1, "hardware.device": "cpu", "hardware.precision": "32", "hardware.compile": None}

Costs = dict[str, float]


def images_of(side: int, batch: int, size: str = "tiny") -> Config:
    """The default stack for images of this side."""
    shape = (3, side, side)
    return of(families.fitting(None, shape, None), shape, batch, **{"model.size": size})


def of(config: Config, shape: tuple[int, ...], batch: int, **changes: object) -> Config:
    """A config for data of this shape at this batch size, in the plain way."""
    return override(config, PLAIN | {"model.data_shape": shape, "training.batch_size": batch} | changes)


def cost(config: Config) -> Costs:
    """A step's milliseconds and GFLOP, with a penalty as often as in the game, and the memory of the process in MB."""
    torch.manual_seed(0)
    trainer = hk.Trainer(hk.build(config))
    x = torch.rand(config.training.batch_size, *config.model.data_shape) * 2 - 1
    game = config.game.resolved
    cycle = game.penalty_every if game.gradient_penalty else 1

    def steps(number: int) -> None:
        for _ in range(number):
            trainer.step(x)

    steps(cycle)
    with FlopCounterMode(display=False) as counter:
        steps(cycle)
    each = seconds(lambda: steps(cycle)) / cycle
    number = cycle * max(1, round(SECONDS / each / cycle))
    ms = 1e3 * median(seconds(lambda: steps(number)) / number for _ in range(ROUNDS))
    return {
        "ms": ms,
        "images_per_second": 1e3 * len(x) / ms,
        "gflop": counter.get_total_flops() / cycle / 1e9,
        "peak_mb": peak_memory(config, steps=cycle) / 1e6,
    }


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def reading(number: int, folder: Path, batch: int = 128) -> Costs:
    """Opening a pack of so many images of 8×8 bytes, its first batch, and later ones, read as training reads them."""
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (number, 8, 8))
    generator = np.random.default_rng(0)
    for first in range(0, number, 10**6):
        array[first : first + 10**6] = generator.integers(0, 256, (min(10**6, number - first), 8, 8), np.uint8)
    array.flush()
    pack = folder / f"{number}.pack"
    packing = seconds(lambda: data.pack(f"array:{folder / 'images.npy'}", pack))
    started = time.perf_counter()
    train = data.load(f"pack:{pack}").train
    opened = time.perf_counter() - started
    started = time.perf_counter()
    shuffled = data.order(len(train), 0, 0)
    train.batch(shuffled[:batch])
    first = time.perf_counter() - started
    each = [
        seconds(lambda i=i: train.batch(shuffled[i : i + batch])) for i in range(0, min(500 * batch, number), batch)
    ]
    pack.unlink()
    return {
        "seconds_to_pack": packing,
        "seconds_to_open": opened,
        "seconds_to_first_batch": first,
        "images_per_second": batch / median(each),
    }


def distributed(processes: int) -> Costs:
    """Steps per second of the digits in so many processes on this machine, from the run's own record."""
    with tempfile.TemporaryDirectory() as name:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        options = ["--steps", "400", "--set", "log_every=50", "--set", "evaluate_every=400", "--precision", "32"]
        command = [*launcher, "-m", "halikit", "train", "--levels", "3", "--out", f"{name}/run", *options]
        subprocess.run(command, check=True, capture_output=True)
        rate = median(Run(f"{name}/run").metrics()["steps_per_second"][2:])
    return {"ms": 1e3 / rate, "images_per_second": 128 * rate}


def curves() -> dict[str, Callable[[], dict[str, Costs]]]:
    """Each curve by its key."""

    def images() -> dict[str, Costs]:
        with tempfile.TemporaryDirectory() as name:
            return {str(n): reading(n, Path(name)) for n in (10**3, 10**4, 10**5, 10**6, 10**7)}

    digits = (1, 8, 8)
    return {
        "levels": lambda: {str(n): cost(of(families.dense(n), digits, 128)) for n in range(1, 9)},
        "sides": lambda: {str(side): cost(images_of(side, 8)) for side in (16, 32, 64, 128, 256)},
        "batch": lambda: {
            str(n): cost(of(presets.preset("digits"), digits, n)) for n in (16, 32, 64, 128, 256, 512, 1024)
        },
        "sizes": lambda: {size: cost(images_of(32, 8, size)) for size in SIZES},
        "images": images,
        "processes": lambda: {str(n): distributed(n) for n in (1, 2)},
    }


def draw(found: dict[str, dict[str, Costs]], path: Path) -> None:
    """Time against arithmetic, with the line of proportion through the largest."""
    keys = {"levels": "L = {}", "sides": "{0}×{0}", "batch": "{}", "sizes": "{}"}
    figure, axes = plt.subplots(1, len(keys), figsize=(4 * len(keys), 3.6), layout="constrained")
    for axis, (key, what) in zip(axes, keys.items(), strict=True):
        rows = found.get(key, {})
        work = [row["gflop"] for row in rows.values()]
        times = [row["ms"] for row in rows.values()]
        axis.loglog(work, times, "o")
        axis.loglog(work, [times[-1] * w / work[-1] for w in work], ":", color="grey", label="in proportion")
        for value, x, y in zip(rows, work, times, strict=True):
            axis.annotate(what.format(value), (x, y), textcoords="offset points", xytext=(5, -9), fontsize=8)
        axis.set(
            xlabel="GFLOP a step", ylabel="ms a step", title=f"as {key} grow".replace("batch grow", "batches grow")
        )
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = HERE / "scale.json"
    kept = json.loads(out.read_text("utf-8")) if out.is_file() and sys.argv[1:] else {}
    for key, measure in curves().items():
        if not sys.argv[1:] or key in sys.argv[1:]:
            kept[key] = measure()
            print(key, json.dumps(kept[key]), flush=True)
            out.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    draw(kept, HERE / "scale.png")
