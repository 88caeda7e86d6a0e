"""Eq. 5 and log p(x) of the digits model that ships, by who draws the states between: python nats.py OUT.json."""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

import halikit as hk
from halikit.analysis.importance import PathsName
from halikit.analysis.likelihood import log_likelihood
from halikit.analysis.reconstruction import fit_observation_scale, reconstruction_error

# Who draws, draws of z_l, draws of the states between; None for doubling.
WAYS: list[tuple[PathsName, int | None, int | None]] = [
    *(("encoder", 16, 64), ("decoder", 16, 64), ("mixture", 16, 64)),
    *(("encoder", 2, 4096), ("decoder", 2, 4096), ("mixture", None, None)),
]


def timed(function: Callable[[], Any]) -> dict[str, Any]:
    """The result of a function as a dictionary, with its wall time and its processor time in seconds."""
    start, busy = time.perf_counter(), time.process_time()
    found = function()
    values = found.as_dict()
    for name in ("values", "effective_sample_sizes"):
        values.pop(name, None)
    wall, processor = time.perf_counter() - start, time.process_time() - busy
    return values | {"wall_seconds": round(wall, 1), "processor_seconds": round(processor, 1)}


def main(out: Path) -> None:
    """Measure on the last 149 held-out digits, with the observation scale fitted on the 148 others."""
    hierarchy = hk.load("digits").hierarchy
    part = hk.data.load("digits").held_out
    x = part.batch(torch.arange(len(part)))
    fitted, x = x[: len(x) // 2], x[len(x) // 2 :]
    scale = fit_observation_scale(hierarchy, fitted, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__, "seed": 0}
    found |= {"data": len(x), "observation_scale": scale, "cores": os.cpu_count(), "reconstruction_error": []}
    for level in range(1, len(hierarchy) + 1):
        for proposal, latents, between in WAYS if level > 1 else WAYS[-1:]:
            generator = torch.Generator().manual_seed(0)
            measure = partial(reconstruction_error, hierarchy, x, level, scale=scale, generator=generator)
            values = timed(partial(measure, num_samples=latents, num_between=between, proposal=proposal))
            found["reconstruction_error"].append({"level": level, "doubled": between is None} | values)
            print(json.dumps(found["reconstruction_error"][-1]), flush=True)
    found["log_likelihood"] = []
    for proposal in get_args(PathsName):
        generator = torch.Generator().manual_seed(0)
        values = timed(partial(log_likelihood, hierarchy, x, scale=scale, proposal=proposal, generator=generator))
        found["log_likelihood"].append(values)
        print(json.dumps(values), flush=True)
    out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
