"""What the plan says before a training, beside what the training then takes; prints lines of JSON.

python docs/results/plan.py [NAME …]    some minutes; each training runs in a process of its own
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import torch

import halikit as hk
from halikit import data
from halikit.config import Config, override
from halikit.hardware.memory import most_memory
from halikit.presets import families, preset
from halikit.presets.baselines import BASELINES


def trainings() -> dict[str, tuple[Config, int]]:
    """Settings and number of steps by name."""
    digits, mnist = preset("digits"), preset("mnist")
    found = {
        "digits, compiled": (override(digits, {"compile": "default"}), 1000),
        "digits, eager": (override(digits, {"compile": None}), 1000),
        "digits, evidence bound": (BASELINES["vae"](digits), 1000),
        "mnist": (override(mnist, {"compile": None}), 400),
        "mnist_semi": (override(preset("mnist_semi"), {"compile": None}), 400),
        "cifar10": (override(preset("cifar10"), {"batch_size": 16}), 45),
    }
    for side in (32, 64):
        shape = (3, side, side)
        for size, steps in (("tiny", 200), ("small", 120), ("base", 100)):
            config = override(families.fitting(None, shape, None), {"model.data_shape": shape, "model.size": size})
            found[f"{side}×{side}, {size}"] = (config, steps)
    return found


def compared(name: str) -> dict[str, float]:
    """The plan and the training."""
    config, steps = trainings()[name]
    config = override(config, {"steps": steps, "evaluate_every": 500, "log_every": 50})
    torch.manual_seed(0)
    shape = config.model.data_shape or (1, 8, 8)
    images = 2 * torch.rand(2000, *shape) - 1
    data_set = data.load("digits") if shape == (1, 8, 8) else data.from_tensor(images)
    if config.labels:
        parts = {name: getattr(data_set, name) for name in ("train", "test")}
        labelled = {name: replace(part, labels=torch.arange(len(part)) % 10) for name, part in parts.items()}
        data_set = replace(data_set, classes=tuple("0123456789"), **labelled)
    model = hk.build(override(config, {"model.data_shape": shape}))
    with tempfile.TemporaryDirectory() as folder:
        trainer = hk.Trainer(model, data_set, out=f"{folder}/run", on_notice=lambda _: None)
        plan = trainer.plan()
        start = time.perf_counter()
        trainer.fit()
        seconds = time.perf_counter() - start
    assert plan is not None
    memory = most_memory(trainer.hardware.device)
    return {
        "ms_a_step": 1e3 * plan.seconds_per_step,
        "seconds_planned": plan.seconds,
        "seconds": seconds,
        "seconds_ratio": plan.seconds / seconds,
        "gib_planned": plan.memory / 2**30,
        "gib": memory / 2**30,
        "gib_ratio": plan.memory / memory,
        "preparation": plan.preparation,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps({"training": sys.argv[2]} | compared(sys.argv[2])))
    else:
        for name in sys.argv[1:] or trainings():
            subprocess.run([sys.executable, __file__, "--one", name], check=True)
