"""Everything about speed that needs a GPU, in pieces: each result is kept in a JSON file, and what is there is skipped.

    python gpu.py OUT.json                 # ends after about nine minutes; call it again until it says that all is done
    python gpu.py OUT.json --only cifar10  # pieces whose names hold that
    python gpu.py OUT.json --tiny          # tiny models on whatever is there: a test of the script itself

A piece runs in a process of its own, which may fail without harm to the others. Timings are medians of turns that
alternate within the piece; figures of different pieces do not compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import halikit as hk
from halikit.analysis.inference import Inference
from halikit.benchmark.yardstick import Yardstick
from halikit.config import Config, override
from halikit.presets import preset
from halikit.training.batches import Batches
from halikit.utils.files import write_atomically

PRESETS = {"cifar10": 100, "celeba64": 100, "imagenet128": 100}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_TINY = bool(os.environ.get("HALIKIT_GPU_TINY"))
TINY = {"cifar10": (1, 16, 16), "celeba64": (1, 8, 8)}
Step = Callable[[], object]


def config_of(name: str, **settings: object) -> Config:
    """The preset on this device, its whole stack at once; another, tiny one in a test."""
    if not IS_TINY:
        return override(preset(name), {"batch_size": PRESETS[name], **settings})
    tiny = {"data_shape": TINY[name], "levels": 2, "hidden": 4, "widths": (3, 3), "discriminator.width": 16}
    return override(Config(), tiny | {"batch_size": 4, **settings})


def model_of(name: str, **settings: object) -> hk.Model:
    """The preset's model, the same weights each time."""
    torch.manual_seed(0)
    return hk.build(config_of(name, **settings))


def batch_of(name: str) -> torch.Tensor:
    """Random images, the same each time, ``(batch size, C, H, W)``."""
    config = config_of(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(config.training.batch_size, *config.model.data_shape, generator=generator) * 2 - 1
    return x.to(DEVICE)


def trainer_step(name: str, **settings: object) -> Step:
    """A whole step of halikit under these settings."""
    trainer, x = hk.Trainer(model_of(name, **settings)), batch_of(name)
    return lambda: trainer.step(x)


def yardstick_step(name: str, *, half: bool) -> Step:
    """A step of the loop that one would write oneself, eager."""
    model, x = model_of(name), batch_of(name)
    for part in model.parts.values():
        part.to(DEVICE)
    yardstick = Yardstick(model)
    if half:
        for module in (yardstick.hierarchy, *yardstick.games):
            module.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)

    def step() -> object:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            return yardstick.step(x)

    return step


def wait() -> None:
    """Until the GPU has done all."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(step: Step, times: int) -> float:
    """Mean of so many calls."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        step()
    wait()
    return (time.perf_counter() - start) / times


def alternating(steps: dict[str, Step], rounds: int = 12, times: int = 10) -> dict[str, Any]:
    """Median seconds of each, the ratio of the first to each, and how long the first three calls took."""
    rounds, times = (2, 1) if IS_TINY else (rounds, times)
    warm = {name: seconds(step, 1) + seconds(step, 2) * 2 for name, step in steps.items()}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(seconds(step, times))
    first = next(iter(found.values()))
    return {
        name: {
            "seconds": median(each),
            "ratio": median(a / b for a, b in zip(first, each, strict=True)),
            "seconds_of_the_first_calls": warm[name],
        }
        for name, each in found.items()
    }


def timing(name: str) -> dict[str, Any]:
    """The yardstick in both precisions beside halikit, eager and compiled; the matrix rate in the same turns."""
    half = {"precision": "bf16"}
    steps: dict[str, Step] = {
        "yardstick, 32": yardstick_step(name, half=False),
        "yardstick, bf16, channels_last": yardstick_step(name, half=True),
        "halikit, 32": trainer_step(name),
        "halikit, bf16": trainer_step(name, **half),
        "halikit, bf16, compiled": trainer_step(name, **half, compile="default"),
    }
    if DEVICE.type == "cuda":
        side = 8192
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.rand(side, side, device=DEVICE, dtype=dtype)
            steps[f"matrix product of {side}, {dtype}"] = lambda a=a: a @ a
    return alternating(steps)


def compiled(name: str) -> dict[str, Any]:
    """Modes of torch.compile beside halikit as it is, each against its own turns of that."""
    modes = ["reduce-overhead", "max-autotune-no-cudagraphs"][: 2 if DEVICE.type == "cuda" else 1]
    found = {}
    for mode in modes:
        steps = {"eager": trainer_step(name, precision="bf16")}
        steps[mode] = trainer_step(name, precision="bf16", compile=mode)
        found[mode] = alternating(steps)
    return found


def profile(name: str) -> list[dict[str, Any]]:
    """The costliest operations of halikit's step in half precision: share of the time, calls a step."""
    step = trainer_step(name, precision="bf16")
    for _ in range(3):
        step()
    times = 2 if IS_TINY else 10
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(times):
            step()
        wait()
    rows = profiler.key_averages()
    own = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    total = sum(getattr(row, own) for row in rows)
    rows = sorted(rows, key=lambda row: -getattr(row, own))[:20]
    return [{"operation": row.key[:90], "share": getattr(row, own) / total, "calls": row.count / times} for row in rows]


def memory(name: str) -> dict[str, int] | str:
    """Bytes that torch has allocated at most, by setting."""
    if DEVICE.type != "cuda":
        return "needs a GPU"
    ways: dict[str, dict[str, object]] = {
        "32": {},
        "bf16": {"precision": "bf16"},
        "bf16, recompute": {"precision": "bf16", "recompute": True},
        "bf16, accumulate 4": {"precision": "bf16", "accumulate": 4},
    }
    found = {}
    for way, settings in ways.items():
        step = trainer_step(name, **settings)
        torch.cuda.reset_peak_memory_stats()
        step()
        step()
        found[way] = torch.cuda.max_memory_allocated()
    return found


def agreement(name: str) -> dict[str, float]:
    """Relative distance of the gradients of a step from those of an eager one, without noise and TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ways: dict[str, dict[str, object]] = {
        "the same again": {},
        "recompute": {"recompute": True},
        "channels_last": {"memory_format": "channels_last"},
        "compiled": {"compile": "default"},
        "reduce-overhead": {"compile": "reduce-overhead"},
        "bf16": {"precision": "bf16"},
    }
    expected = gradients_of(name, {})
    found = {way: gradients_of(name, settings) for way, settings in ways.items()}
    return {way: float((actual - expected).norm() / expected.norm()) for way, actual in found.items()}


def gradients_of(name: str, settings: dict[str, object]) -> torch.Tensor:
    """Both players' gradients after a step without any noise, ``(parameters,)`` float64."""
    model = model_of(name, **settings, encoder_noise=0.0)
    for part in model.parts.values():
        for module in part.modules():
            if hasattr(module, "threshold"):
                module.threshold = 0
    # Draws lie in memory as the maps do, so that another format would draw other noise: here all of it is taken away.
    model.discriminator.noise.scale = 0.0
    hk.GaussianKernel.sample = lambda self, given, *, generator=None: self.mean(given)  # type: ignore[method-assign]
    hk.Trainer(model).step(batch_of(name))
    parameters = (p for part in model.parts.values() for p in part.parameters())
    return torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])


def synchronisation(name: str) -> str:
    """Steps under torch's own watch: whatever makes the host wait for the GPU raises."""
    if DEVICE.type != "cuda":
        return "needs a GPU"
    steps = [trainer_step(name), trainer_step(name, precision="bf16", accumulate=2)]
    for step in steps:
        step()
    torch.cuda.set_sync_debug_mode("error")
    for step in steps:
        step()
        step()
    torch.cuda.set_sync_debug_mode("default")
    return "no step waits"


def loading(name: str) -> dict[str, Any]:
    """Training from images on the GPU, and from a file with and without a thread of its own: seconds a step."""
    shape = config_of(name).model.data_shape
    assert shape is not None
    n = 64 if IS_TINY else 20_000
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = hk.data.from_tensor(torch.zeros(4, *shape))
    part = hk.data.Split(images)
    found = {}
    ways = {"resident": (True, 0), "host": (False, 0), "host, ahead": (False, 2)}
    for way, (resident, prefetch) in ways.items():
        there = replace(data, train=part.to(DEVICE, resident=resident))
        trainer = hk.Trainer(model_of(name, precision="bf16"))
        size, steps = trainer.config.training.batch_size, 3 if IS_TINY else 100
        # Not by the trainer, which would move the images to the GPU where there is room for them.
        batches = Batches(there, hk.data.Augmentation(), trainer.hardware, size=size, seed=0, prefetch=prefetch)
        start = time.perf_counter()
        with batches.starting_at(0) as prepared:
            for _ in range(steps):
                trainer.step(*next(prepared))
            wait()
        found[way] = {"seconds": (time.perf_counter() - start) / steps, "with": "the first steps"}
    return found


def inference(name: str) -> dict[str, Any]:
    """Encoding and sampling, images in batches, as they are and compiled: seconds for all."""
    hierarchy = model_of(name).hierarchy.to(DEVICE).eval()
    x = batch_of(name).repeat(1 if IS_TINY else 20, 1, 1, 1)
    size = len(x) // 2
    plain, made = Inference(hierarchy, batch_size=size), Inference(hierarchy, batch_size=size, compile="default")
    return {
        "images": len(x),
        "encode": alternating({"eager": lambda: plain.encode(x), "compiled": lambda: made.encode(x)}, times=2),
        "sample": alternating(
            {"eager": lambda: plain.sample(len(x)), "compiled": lambda: made.sample(len(x))}, times=2
        ),
    }


KINDS = (synchronisation, timing, profile, memory, agreement, compiled, loading, inference)


def pieces() -> dict[str, Callable[[], Any]]:
    """All of them by name."""
    names = TINY if IS_TINY else PRESETS
    return {f"{name}/{kind.__name__}": (lambda k=kind, n=name: k(n)) for name in names for kind in KINDS}


def main() -> None:
    """Play the pieces that are missing, as far as the time goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--piece")
    options = parser.parse_args()
    if options.piece:
        write_atomically(options.out, json.dumps(pieces()[options.piece]()))
        return
    if options.tiny:
        os.environ["HALIKIT_GPU_TINY"] = "1"
        globals()["IS_TINY"] = True
    end = time.monotonic() + 60 * options.minutes
    kept = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
    kept["device"] = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    kept["torch"] = torch.__version__
    wanted = [name for name in pieces() if options.only in name]
    for name in wanted:
        left = end - time.monotonic()
        if "result" in kept.get(name, {}) or left < 20:
            continue
        print(name, flush=True)
        kept[name] = run(name, left)
        write_atomically(options.out, json.dumps(kept, indent=1))
    missing = [name for name in wanted if "result" not in kept.get(name, {})]
    print(f"missing: {', '.join(missing)}; call again" if missing else "all is done")


def run(name: str, left: float) -> dict[str, Any]:
    """One piece in a process of its own: its result, or the end of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "piece.json"
        command = [sys.executable, __file__, str(out), "--piece", name]
        start = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return {"failed": f"not done within {left:.0f} s"}
        if done.returncode:
            return {"failed": done.stderr[-1500:]}
        return {"result": json.loads(out.read_text("utf-8")), "seconds": time.monotonic() - start}


if __name__ == "__main__":
    main()
