"""``halikit neighbours``: which training images a level takes for alike."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from halikit.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(neighbours)


def neighbours(
    run: common.RunArgument,
    data: common.Data = None,
    level: Annotated[int | None, typer.Option(min=0, help="One level alone, 0 for pixels; all by default.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Held-out images to look for.")] = 4,
    k: Annotated[int, typer.Option("-k", "--neighbours", min=1, help="Neighbours of each.")] = 8,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Find the nearest training images of held-out ones in the features of each level, and in pixels.

    Example: halikit neighbours runs/digits -k 10
    """
    import torch

    from halikit import plotting
    from halikit.analysis.neighbours import nearest_neighbours
    from halikit.errors import InputError

    common.check_writable(out)
    model, config = common.open_run(run, weights, device)
    common.check_level(run, level, len(model.hierarchy), lowest=0)
    hierarchy = model.hierarchy
    loaded = common.open_data(config, data)
    x = common.held_out_images(config, data, n, hierarchy.prior.device)
    levels = range(len(model.hierarchy) + 1) if level is None else [level]
    try:
        found = {j: nearest_neighbours(hierarchy, x, loaded.train, j, k) for j in levels}
    except ValueError as error:
        raise InputError(str(error)) from None
    rows = []
    for i in range(len(x)):
        for j, near in found.items():
            images = loaded.train.batch(near.rows[i].cpu()).to(x.device)
            rows.append((hierarchy.spaces[j].name, torch.cat([x[i : i + 1], images])))
    values: dict[str, Any] = {"levels": list(levels), "rows": [near.rows.tolist() for near in found.values()]}
    lines = []
    if loaded.train.labels is not None and loaded.held_out.labels is not None:
        truth = loaded.held_out.labels[: len(x)].cpu()
        values["same_label"] = [
            float((loaded.train.labels.cpu()[near.rows.cpu()] == truth[:, None]).double().mean())
            for near in found.values()
        ]
        lines = [
            f"{hierarchy.spaces[j].name}: {share:.0%} of neighbours have the query’s label (estimate, n = {len(x)})"
            for j, share in zip(levels, values["same_label"], strict=True)
        ]
    common.present(
        run,
        "neighbours" + ("" if level is None else f"-{hierarchy.spaces[level].name}"),
        "Nearest training images",
        lines=lines,
        values=values,
        picture=plotting.labelled_rows(rows, ["query"]),
        out=out,
        as_json=as_json,
    )
