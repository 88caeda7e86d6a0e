"""``halikit sample``: draw from the decoder (Fig. 2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["sample"]

# Samples that are drawn at a time.
_DRAWN = 500


def sample(
    run: Run,
    *,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of samples.")] = 100,
    truncation: Annotated[
        float | None, typer.Option(help="Truncate the prior at this many standard deviations.", show_default=False)
    ] = None,
    noiseless: Annotated[
        bool, typer.Option("--noiseless", help="Take the mean of p(x|z1) instead of a draw, as for an autoencoder.")
    ] = False,
    seed: int = 0,
    out: Path | None = None,
) -> Result:
    """Draw samples, and write them as a grid (PNG) or, with --out FILE.npy, as numbers (n, *shape of x), float32.

    The classes or attributes of a conditional model are those that you ask for, or drawn from the training data.

    Example: halikit sample runs/digits -n 64 --truncation 1.5

    Example: halikit sample runs/digits -n 1000 --out samples.npy

    Example: halikit sample runs/digits_conditional-l3 --class 3
    """
    import torch

    from halikit import plotting
    from halikit.analysis import sampling
    from halikit.analysis.batched import sampled_parts
    from halikit.errors import InputError
    from halikit.runs.run import Result

    if truncation is not None and not truncation > 0:
        raise InputError(f"--truncation is a positive number of standard deviations, got {truncation}")
    as_numbers = common.is_npy(out)
    if not as_numbers:
        run.check_drawable()
    torch.manual_seed(seed)
    parts = sampled_parts(run.conditioned_at_random(n, seed), n, _DRAWN)
    images = torch.cat(
        [sampling.sample(part, some, truncation=truncation, noiseless=noiseless) for some, part in parts]
    )
    values = {"samples": n, "levels": len(run.hierarchy), "truncation": truncation, "noiseless": noiseless}
    kind = run.config.model.conditional
    lines = (
        [f"the {kind} of the samples are drawn from the training data (seed {seed})"] if kind and not run.asked else []
    )
    if as_numbers:
        return Result("samples", "Samples", values, lines, numbers=images.float().cpu().numpy())
    return Result("samples", "Samples", values, lines, picture=plotting.grid(images))
