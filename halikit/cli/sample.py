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
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Draw samples and write them as a grid.

    Example: halikit sample runs/digits -n 64
    """
    import torch

    from halikit import plotting

    model, _, level = common.open_run(run, weights, device)
    path = common.written_to(out, run, "samples.png")
    torch.manual_seed(seed)
    with torch.no_grad():
        images = model.hierarchy[:level].sample(n)
    plotting.save_png(path, plotting.grid(images))
    if as_json:
        common.print_json({"path": str(path), "samples": n, "levels": level, "weights": weights, "seed": seed})
    else:
        common.report_path(path)
