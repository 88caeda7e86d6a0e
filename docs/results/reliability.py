"""What reliability costs, how training scales to two processes, and what ImageNet at 128×128 needs; prints JSON.

python docs/results/reliability.py                                           checkpoints and guard
torchrun --nproc-per-node 2 docs/results/reliability.py --scaling digits     two processes beside one;
torchrun --nproc-per-node 2 docs/results/reliability.py --scaling cifar10    the same on convolutions
python docs/results/reliability.py --imagenet                                memory and storage of a run of imagenet128
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import torch

import halikit as hk
from halikit import data, presets
from halikit.algorithm import play
from halikit.config import Config, override
from halikit.hardware.processes import is_first
from halikit.optimisation.guard import Guard
from halikit.training.batches import Batches


def digits(**changes: object) -> tuple[Config, data.DataSet]:
    """The preset at its size, on one thread."""
    loaded = data.load("digits")
    settings = {"model.data_shape": loaded.shape, "hardware.threads": 1, "hardware.device": "cpu"}
    return override(presets.digits(), settings | changes), loaded


def costs(rounds: int = 5, steps: int = 40) -> dict[str, float]:
    """Medians of interleaved rounds: processor time of a step and of its guard, time of a checkpoint both ways."""
    config, loaded = digits()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        trainer = hk.Trainer(hk.build(config), loaded, out=Path(place) / "run")
        x = loaded.train.batch(torch.arange(config.training.batch_size))
        guard = Guard(trainer.model.parts.values(), trainer.hardware.processes)
        spent: dict[str, list[float]] = {"step": [], "guard": [], "checkpoint": [], "checkpoint_wall": []}
        for _ in range(rounds):
            began = time.process_time()
            for _ in range(steps):
                losses = trainer.step(x)
            spent["step"].append((time.process_time() - began) / steps)
            began = time.process_time()
            for _ in range(steps):
                guard.before_step()
                guard.after_gradients(losses.values(), ())
            spent["guard"].append((time.process_time() - began) / steps)
            wall, began = time.perf_counter(), time.process_time()
            trainer.save()
            spent["checkpoint"].append(time.process_time() - began)
            spent["checkpoint_wall"].append(time.perf_counter() - wall)
        size = sum(file.stat().st_size for file in Path(place).rglob(f"step-{trainer.steps:07d}/*"))
    medians = {f"{name}_seconds": median(times) for name, times in spent.items()}
    every = config.record.checkpoint_every
    return medians | {
        "checkpoint_bytes": size,
        "checkpoint_every": every,
        "checkpoint_share": medians["checkpoint_seconds"] / (every * medians["step_seconds"]),
        "checkpoint_share_wall_over_step": medians["checkpoint_wall_seconds"] / (every * medians["step_seconds"]),
        "guard_share": medians["guard_seconds"] / medians["step_seconds"],
    }


def scaling(config: Config, loaded: data.DataSet, steps: int, rounds: int = 5) -> dict[str, object]:
    """Two processes beside one, in turns: medians of images a second, and of processor seconds a step in each.

    The batch is the same, so each of two processes has half of it. While one trains alone the other one sleeps.
    """
    changes = {"hardware.threads": 1, "hardware.device": "cpu"}
    config = override(config, changes | {"record.evaluate_every": 10**6, "record.log_every": 10**6})
    torch.manual_seed(0)
    together = hk.Trainer(hk.build(config), loaded)
    processes = together.hardware.processes
    world, os.environ["WORLD_SIZE"] = processes.world, "1"
    alone = hk.Trainer(hk.build(config), loaded)
    os.environ["WORLD_SIZE"] = str(world)

    def timed(trainer: hk.Trainer) -> tuple[float, float]:
        batches = Batches(
            loaded, data.Augmentation(), trainer.hardware, size=config.training.batch_size, seed=config.training.seed
        )
        with batches.starting_at(trainer.steps) as prepared:
            processes.wait()
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(steps):
                trainer.step(next(prepared).x)
        return time.perf_counter() - wall, time.process_time() - processor

    found: dict[str, list[tuple[float, float]]] = {"together": [], "alone": []}
    timed(together)
    for turn in range(rounds + 1):
        found["together"].append(timed(together))
        if is_first():
            found["alone"].append(timed(alone))
        else:
            processes.wait()
        if not turn:  # the first is for warmth
            found = {name: [] for name in found}
    if not is_first():
        return {}
    of = steps * config.training.batch_size
    walls = {name: [wall / steps for wall, _ in pairs] for name, pairs in found.items()}
    processor = {name: median(used / steps for _, used in pairs) for name, pairs in found.items()}
    return {
        "batch": config.training.batch_size,
        "steps": steps,
        "rounds": rounds,
        "images_per_second": {name: of / steps / median(times) for name, times in walls.items()},
        "ratio": median(b / a for a, b in zip(walls["together"], walls["alone"], strict=True)),
        "ratios": [b / a for a, b in zip(walls["together"], walls["alone"], strict=True)],
        "processor_seconds_per_step": processor,
        "processor_ratio": processor["alone"] / processor["together"],
        "load": os.getloadavg()[0],
    }


def conv() -> tuple[Config, data.DataSet]:
    """The networks of cifar10 on random images, in batches that a processor can play."""
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return override(presets.cifar10(), {"training.batch_size": 16}), data.from_tensor(images)


def imagenet() -> dict[str, object]:
    """What a run of imagenet128 keeps, counted on the real networks: bytes, and of activations bytes an image."""
    config = presets.imagenet128()
    torch.manual_seed(0)
    model = hk.build(config)
    parameters = {p.untyped_storage().data_ptr() for part in model.parts.values() for p in part.parameters()}
    kept: dict[int, dict[int, int]] = {}
    for n in (2, 4):
        seen = kept[n] = {}

        def look(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = torch.rand(n, 3, 128, 128) * 2 - 1
        with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
            play(model.hierarchy, model.discriminator, x)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        images = data.from_tensor(torch.rand(256, 3, 128, 128) * 2 - 1)
        trainer = hk.Trainer(model, images, settings=override(config, {"hardware.device": "cpu"}), out=place)
        # Optimisers have a state once they have made a step, of however few images.
        trainer.step(images.train.batch(torch.arange(2)))
        began = time.perf_counter()
        trainer.save()
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(place).rglob("step-*/*"))
    return {
        "activation_bytes_per_image": (sum(kept[4].values()) - sum(kept[2].values())) // 2,
        "weights_bytes": sum(p.nbytes for part in model.parts.values() for p in part.parameters()),
        "checkpoint_bytes": size,
        "checkpoint_seconds": seconds,
        "steps": config.training.steps,
        "batch": config.training.batch_size,
        "precision": config.hardware.precision,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "--scaling" in sys.argv:
        found = scaling(*conv(), steps=1) if "cifar10" in sys.argv else scaling(*digits(), steps=8)
    else:
        found = imagenet() if "--imagenet" in sys.argv else costs()
    if is_first():
        print(json.dumps(found))
