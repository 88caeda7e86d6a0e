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

    The classes or attributes of a conditional model are those that you ask for, or drawn from the training data.

    Example: halikit sample runs/digits -n 64 --truncation 1.5

    Example: halikit sample runs/digits_conditional-l3 --class 3
    """
    import torch

    from halikit import plotting
    from halikit.analysis import sampling
    from halikit.errors import InputError
    from halikit.runs.run import Result

    if truncation is not None and not truncation > 0:
        raise InputError(f"--truncation is a positive number of standard deviations, got {truncation}")
    torch.manual_seed(seed)
    hierarchy = run.conditioned_at_random(n, seed)
    images = sampling.sample(hierarchy, n, truncation=truncation, noiseless=noiseless)
    lines = []
    if run.config.model.conditional and not run.asked:
        lines = [f"the {run.config.model.conditional} of the samples are drawn from the training data (seed {seed})"]
    values = {"samples": n, "levels": len(run.hierarchy), "truncation": truncation, "noiseless": noiseless}
    return Result("samples", "Samples", values, lines, picture=plotting.grid(images))
