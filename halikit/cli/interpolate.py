"""``halikit interpolate``: from one image to another, in the latents of every level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from halikit.data import Split
    from halikit.runs.run import Result, Run

__all__ = ["interpolate"]


def interpolate(
    run: Run,
    *,
    level: Annotated[int | None, typer.Option(min=1, help="One level alone; all by default.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of consecutive held-out images.")] = 3,
    start: Annotated[
        int, typer.Option(min=0, help="Index of the first held-out image; the others are evenly spaced.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=2, help="Images from one end to the other.")] = 9,
    spherical: Annotated[bool, typer.Option("--spherical", help="Along great circles instead of lines.")] = False,
) -> Result:
    """Interpolate between pairs of held-out images in the latents of each level; the ends are the images themselves.

    Example: halikit interpolate runs/digits --level 2 --pairs 5
    """
    import torch

    from halikit import plotting
    from halikit.analysis.interpolation import interpolate as interpolated
    from halikit.errors import InputError
    from halikit.runs.run import Result

    run.checked_level(level)
    run.check_drawable()
    part = run.data.held_out[start:].evenly(2 * pairs)
    hierarchy, x, contexts = run.hierarchy, run.batch(part), _contexts(run, part)
    if len(x) < 2 * pairs:
        raise InputError(f"{pairs} pairs from image {start} on need {start + 2 * pairs} held-out images")
    first, second = x[0::2], x[1::2]
    positions = torch.linspace(0, 1, steps).tolist()
    path: Literal["linear", "spherical"] = "spherical" if spherical else "linear"
    levels = [level] if level else list(range(1, len(hierarchy) + 1))
    ends = None if contexts is None else (contexts[0::2], contexts[1::2])
    between = {k: interpolated(hierarchy, first, second, k, positions, path=path, contexts=ends) for k in levels}
    rows = [
        (hierarchy.spaces[k].name, torch.cat([first[i : i + 1], images[i], second[i : i + 1]]))
        for i in range(pairs)
        for k, images in between.items()
    ]
    values = {"levels": levels, "pairs": pairs, "start": start, "positions": positions, "path": path}
    headings = ["x", *(f"{position:.2g}" for position in positions), "x'"]
    name, title = (
        (f"interpolation-z{level}", f"Interpolation in z{level}") if level else ("interpolation", "Interpolation")
    )
    return Result(name, title, values, picture=plotting.labelled_rows(rows, headings))


def _contexts(run: Run, part: Split) -> Tensor | None:
    """The contexts of data as numbers, classes as one-hot vectors, ``(n, K)``."""
    from torch.nn.functional import one_hot

    n, context, size = len(part), run.conditioned(part).context, run.config.model.context_size
    if context is None or size is None:
        return None
    context = context.expand(n, *context.shape[1:])
    return context if context.is_floating_point() else one_hot(context, size).float()
