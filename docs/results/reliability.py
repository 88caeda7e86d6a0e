"""What checkpoints cost, what the guard costs, and how training scales to two processes; prints one JSON object.

python docs/results/reliability.py                                           the first two
torchrun --nproc-per-node 2 docs/results/reliability.py --scaling            the third, beside the same with 1
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import halikit as hk
from halikit import data, presets
from halikit.config import Config, override
from halikit.training.processes import is_first


def digits(**changes: object) -> tuple[Config, data.DataSet]:
    """The preset at its size, on one thread."""
    loaded = data.load("digits")
    settings = {"model.data_shape": loaded.shape, "training.threads": 1, "training.device": "cpu"}
    return override(presets.digits(), settings | changes), loaded


def costs(rounds: int = 5, steps: int = 40) -> dict[str, float]:
    """Medians of interleaved rounds: processor time of a step and of its guard, time of a checkpoint both ways."""
    config, loaded = digits()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        trainer = hk.Trainer(hk.build(config), loaded, out=Path(place) / "run")
        x = loaded.train.batch(torch.arange(config.training.batch_size))
        spent: dict[str, list[float]] = {"step": [], "guard": [], "checkpoint": [], "checkpoint_wall": []}
        for _ in range(rounds):
            began = time.process_time()
            for _ in range(steps):
                outcome = trainer.step(x)
            spent["step"].append((time.process_time() - began) / steps)
            began = time.process_time()
            for _ in range(steps):
                trainer._guard.before_step()
                trainer._guard.after_gradients(outcome, ())
            spent["guard"].append((time.process_time() - began) / steps)
            wall, began = time.perf_counter(), time.process_time()
            trainer.save()
            spent["checkpoint"].append(time.process_time() - began)
            spent["checkpoint_wall"].append(time.perf_counter() - wall)
        size = sum(file.stat().st_size for file in Path(place).rglob(f"step-{trainer.steps:07d}/*"))
    median = {f"{name}_seconds": sorted(times)[len(times) // 2] for name, times in spent.items()}
    every = config.training.checkpoint_every
    return median | {
        "checkpoint_bytes": size,
        "checkpoint_every": every,
        "checkpoint_share": median["checkpoint_seconds"] / (every * median["step_seconds"]),
        "checkpoint_share_wall_over_step": median["checkpoint_wall_seconds"] / (every * median["step_seconds"]),
        "guard_share": median["guard_seconds"] / median["step_seconds"],
    }


def scaling(steps: int = 200) -> dict[str, float]:
    """Images a second of all processes together, without evaluations."""
    config, loaded = digits(**{"training.grow_every": None, "training.evaluate_every": 10**6})
    torch.manual_seed(0)
    trainer = hk.Trainer(hk.build(config), loaded)
    trainer.fit(20)
    trainer.processes.wait()
    began = time.perf_counter()
    trainer.fit(steps)
    trainer.processes.wait()
    seconds = time.perf_counter() - began
    return {"processes": trainer.processes.world, "images_per_second": steps * config.training.batch_size / seconds}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = scaling() if "--scaling" in sys.argv else costs()
    if is_first():
        print(json.dumps(found))
