"""``halikit sample``: draw from the decoder (Fig. 2)."""

from __future__ import annotations

from typing import Annotated

import typer

from halikit.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(sample)


def sample(
    run: common.RunArgument,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many.")] = 100,
    truncation: Annotated[
        float | None, typer.Option(help="Cut the prior off at so many standard deviations.", show_default=False)
    ] = None,
    noiseless: common.Noiseless = False,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Draw samples and write them as a grid.

    Example: halikit sample runs/digits -n 64 --truncation 1.5
    """
    import torch

    from halikit import plotting
    from halikit.analysis import sampling
    from halikit.errors import InputError

    common.check_writable(out)
    if truncation is not None and not truncation > 0:
        raise InputError(f"--truncation is a positive number of standard deviations, got {truncation}")
    model, _ = common.open_run(run, weights, device)
    torch.manual_seed(seed)
    images = sampling.sample(model.hierarchy, n, truncation=truncation, noiseless=noiseless)
    about = {"truncation": truncation, "noiseless": noiseless}
    values = {"samples": n, "levels": len(model.hierarchy), "weights": weights, "seed": seed} | about
    common.present(run, "samples", "Samples", values=values, picture=plotting.grid(images), out=out, as_json=as_json)
