"""``halikit sample``: draw from the decoder (Fig. 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["sample"]


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
) -> Result:
    """Draw samples and write them as a grid.

    Example: halikit sample runs/digits -n 64 --truncation 1.5
    """
    import torch

    from halikit import plotting
    from halikit.analysis import sampling
    from halikit.errors import InputError
    from halikit.runs.run import Result

    if truncation is not None and not truncation > 0:
        raise InputError(f"--truncation is a positive number of standard deviations, got {truncation}")
    torch.manual_seed(seed)
    images = sampling.sample(run.hierarchy, n, truncation=truncation, noiseless=noiseless)
    values = {"samples": n, "levels": len(run.hierarchy), "truncation": truncation, "noiseless": noiseless}
    return Result("samples", "Samples", values, picture=plotting.grid(images))
