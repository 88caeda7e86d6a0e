"""``halikit interpolate``: from one image to another, through every level."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from halikit.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(interpolate)


def interpolate(
    run: common.RunArgument,
    data: common.Data = None,
    level: Annotated[int | None, typer.Option(min=1, help="One level alone; all by default.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of held-out images, the first with the next.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="Held-out image to begin with.")] = 0,
    steps: Annotated[int, typer.Option(min=2, help="Images from one to the other.")] = 9,
    spherical: Annotated[bool, typer.Option("--spherical", help="Along great circles instead of lines.")] = False,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Interpolate between pairs of held-out images in the latents of each level; the ends are the images themselves.

    Example: halikit interpolate runs/digits --level 2 --pairs 5
    """
    import torch

    from halikit import plotting
    from halikit.analysis.interpolation import interpolate as interpolated
    from halikit.errors import InputError

    common.check_writable(out)
    model, config = common.open_run(run, weights, device)
    common.check_level(run, level, len(model.hierarchy))
    hierarchy = model.hierarchy
    x = common.held_out_images(config, data, start + 2 * pairs, hierarchy.prior.device)[start:]
    if len(x) < 2 * pairs:
        raise InputError(f"{pairs} pairs from image {start} on need {start + 2 * pairs} held-out images")
    first, second = x[0::2], x[1::2]
    positions = torch.linspace(0, 1, steps).tolist()
    path: Literal["linear", "spherical"] = "spherical" if spherical else "linear"
    rows = []
    levels = [level] if level else range(1, len(hierarchy) + 1)
    between = {k: interpolated(hierarchy, first, second, k, positions, path=path) for k in levels}
    for i in range(pairs):
        for k, images in between.items():
            rows.append((hierarchy.spaces[k].name, torch.cat([first[i : i + 1], images[i], second[i : i + 1]])))
    headings = ["x", *(f"{position:.2g}" for position in positions), "x'"]
    common.present(
        run,
        "interpolation" + (f"-z{level}" if level else ""),
        "Interpolation" + (f" in z{level}" if level else ""),
        values={"levels": list(levels), "pairs": pairs, "start": start, "positions": positions, "path": path},
        picture=plotting.labelled_rows(rows, headings),
        out=out,
        as_json=as_json,
    )
