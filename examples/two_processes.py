"""Two processes, one model: ``torchrun --nproc-per-node 2 examples/two_processes.py``."""

from pathlib import Path

import torch
import typer

import halikit as hk
from halikit.config import override
from halikit.hardware.processes import is_first


def main(steps: int = 9500, out: Path = Path("runs/two")) -> float:
    """Train as one process would: the launcher's variables say how many there are. Returns the error of level 1."""
    torch.manual_seed(0)  # every process begins with the same weights; the noise of a step differs by rank
    config = override(hk.presets.digits(), {"training.steps": steps})
    trainer = hk.Trainer(hk.build(config), "digits", out=out)
    # The batch is that of all processes together: with two of them each takes 64 of the 128.
    trainer.fit()

    digits = hk.data.load("digits")
    x = digits.held_out.batch(torch.arange(len(digits.held_out)))
    error = (x - trainer.averaged.reconstruct(x, level=1)).square().mean().sqrt().item()
    if is_first():
        print(f"error {error:.4f}; the run is in {out}")
    return error


if __name__ == "__main__":
    typer.run(main)
