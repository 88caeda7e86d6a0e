"""What is around the training step, each beside the obvious alternative, in turns; writes around.json.

python docs/results/around.py --pack PACK [--images TAR]    some minutes, and nothing else should run beside it

The pack holds images of 32×32, for the inference of a convolutional stack and for reading; the archive is where they
came from. Rates are medians of alternating turns on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import halikit as hk
from halikit import data
from halikit.analysis.inference import Inference
from halikit.config import override
from halikit.data.image import SUFFIXES, decode
from halikit.data.tree import open_tree
from halikit.presets import families

HERE = Path(__file__).parent
ROUNDS = 7
Call = Callable[[], object]


def seconds(call: Call) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rates(calls: dict[str, Call], images: int) -> dict[str, float]:
    """Images per second of each, medians of alternating turns after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(seconds(call))
    return {name: images / median(times) for name, times in found.items()}


def inference(hierarchy: hk.Hierarchy, x: torch.Tensor, few: int) -> dict[str, dict[str, float]]:
    """Encoding, sampling and reconstructing: one by one, all at once, in batches, in bfloat16, compiled."""
    plain, made = Inference(hierarchy, batch_size=128), Inference(hierarchy, batch_size=128, compile="default")
    n, top = len(x), len(hierarchy)

    def half(call: Call) -> Call:
        def autocast() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                call()

        return autocast

    def alone(call: Callable[[torch.Tensor], object]) -> Call:
        return lambda: [call(row[None]) for row in x[:few]]

    whole: dict[str, tuple[Callable[[torch.Tensor], object], Callable[[Inference], object]]] = {
        "encode": (hierarchy.encode, lambda by: by.encode(x)),
        "sample": (lambda rows: hierarchy.sample(len(rows)), lambda by: by.sample(n)),
        "reconstruct": (lambda rows: hierarchy.reconstruct(rows, top), lambda by: by.reconstruct(x, top)),
    }
    found = {}
    with torch.no_grad():
        for name, (call, batched) in whole.items():
            ways = {
                "all at once": partial(call, x),
                "batches of 128": partial(batched, plain),
                "batches, bfloat16": half(partial(batched, plain)),
                "batches, compiled": partial(batched, made),
            }
            found[name] = rates({"one by one": alone(call)}, few) | rates(ways, n)
    return found


def processor(command: list[str]) -> dict[str, float]:
    """Wall and processor time of a command, the best of three."""
    import resource

    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return {"wall_s": min(w for w, _ in found), "processor_s": min(p for _, p in found)}


def commands(folder: Path) -> dict[str, dict[str, float]]:
    """Starting, evaluating and reporting, as whole commands."""
    halikit, python = [sys.executable, "-m", "halikit"], [sys.executable, "-c"]
    run = str(folder / "run")
    train = [*halikit, "train", "--levels", "3", "--set", "compile=none", "--out"]
    subprocess.run([*train, run, "--steps", "400"], check=True, capture_output=True)
    timed = {"python -c 'import torch'": [*python, "import torch"], "halikit --help": [*halikit, "--help"]}
    timed["import halikit"] = [*python, "import halikit"]
    timed["halikit train --steps 1"] = [*train, str(folder / "one"), "--steps", "1"]
    for metric in ("reconstruction", "health", "samples", "recovery", "labels", "svm"):
        timed[f"halikit evaluate {metric}"] = [*halikit, "evaluate", metric, run]
    timed["halikit report --all"] = [*halikit, "report", run, "--all"]
    return {name: processor(command) for name, command in timed.items()}


def packed(pack: str, archive: str) -> dict[str, float]:
    """Images per second of an epoch from a pack, and decoded from the archive's bytes in memory."""
    train = data.load(f"pack:{pack}").train
    order = data.order(len(train), 0, 0)[:2048]
    with open_tree(Path(archive), SUFFIXES) as tree:
        contents = [tree.read(file) for file in tree.in_storage_order(tree.files)[:512]]
    decoded = rates({"decoded from the originals": lambda: [decode(content, 32) for content in contents]}, 512)
    return decoded | rates({"from the pack": lambda: [train.batch(index) for index in order.split(128)]}, 2048)


def main() -> None:
    """Measure everything, and write it as it comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", required=True)
    parser.add_argument("--images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}

    def keep(name: str, result: object) -> None:
        found[name] = result
        print(name, json.dumps(result), flush=True)
        (HERE / "around.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")

    digits = hk.load("digits").hierarchy.eval()
    x = data.load("digits").train.batch(torch.arange(1280))
    keep("digits, three levels", inference(digits, x, 128))
    shape = (3, 32, 32)
    config = override(families.fitting(None, shape, None), {"model.data_shape": shape, "model.size": "tiny"})
    faces = data.load(f"pack:{options.pack}").train.batch(torch.arange(512))
    keep("32×32, four levels", inference(hk.build(config).hierarchy.eval(), faces, 32))
    if options.images:
        keep("reading", packed(options.pack, options.images))
    with tempfile.TemporaryDirectory() as folder:
        keep("commands", commands(Path(folder)))


if __name__ == "__main__":
    main()
