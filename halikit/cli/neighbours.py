"""``halikit neighbours``: the training images that are nearest in the latents of each level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["neighbours"]


def neighbours(
    run: Run,
    *,
    level: Annotated[int | None, typer.Option(min=0, help="One level alone, 0 for pixels; all by default.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of held-out images.")] = 4,
    k: Annotated[int, typer.Option("-k", "--neighbours", min=1, help="Neighbours of each.")] = 8,
) -> Result:
    """Find the nearest training images of held-out ones in the features of each level, and in pixels.

    Example: halikit neighbours runs/digits -k 10
    """
    import torch

    from halikit import plotting
    from halikit.analysis.neighbours import nearest_neighbours
    from halikit.errors import InputError
    from halikit.runs.run import Result

    run.checked_level(level, lowest=0)
    data, part = run.data, run.held_out_images(n)
    x, hierarchy, context = run.batch(part), run.conditioned(data.train), run.conditioned(part).context
    levels = list(range(len(hierarchy) + 1)) if level is None else [level]
    try:
        found = {j: nearest_neighbours(hierarchy, x, data.train, j, k, context=context) for j in levels}
    except ValueError as error:
        raise InputError(str(error)) from None
    rows = [
        (hierarchy.spaces[j].name, torch.cat([x[i : i + 1], data.train.batch(near.rows[i].cpu()).to(x.device)]))
        for i in range(len(x))
        for j, near in found.items()
    ]
    values: dict[str, Any] = {"levels": levels, "rows": [near.rows.tolist() for near in found.values()]}
    lines = []
    if data.train.labels is not None and part.labels is not None:
        labels, truth = data.train.labels.cpu(), part.labels.cpu()
        shares = [float((labels[near.rows.cpu()] == truth[:, None]).double().mean()) for near in found.values()]
        values["same_label"] = shares
        lines = [
            f"{hierarchy.spaces[j].name}: {share:.0%} of neighbours have the query’s label (estimate, n = {len(x)})"
            for j, share in zip(levels, shares, strict=True)
        ]
    name = "neighbours" if level is None else f"neighbours-{hierarchy.spaces[level].name}"
    return Result(name, "Nearest training images", values, lines, plotting.labelled_rows(rows, ["query"]))
