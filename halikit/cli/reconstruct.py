"""``halikit reconstruct``: held-out data through every level and back (section 3.2, Figs. 1 and 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["reconstruct"]


def reconstruct(
    run: Run,
    *,
    level: Annotated[int | None, typer.Option(min=1, help="One level alone; all by default.")] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of images to show.")] = 16,
    draw: Annotated[bool, typer.Option("--draw", help="Draw every state instead of following the means.")] = False,
    draws: Annotated[
        int, typer.Option(min=1, help="Decode each image this many times by sampling: what a level leaves open.")
    ] = 1,
    seed: int = 0,
) -> Result:
    """Reconstruct held-out images from every level, and show them below the originals.

    Example: halikit reconstruct runs/digits --level 2

    Example: halikit reconstruct runs/digits --draws 4
    """
    import torch

    from halikit import plotting
    from halikit.analysis.inference import Inference
    from halikit.analysis.reconstruction import draws as decoded
    from halikit.runs.run import Result
    from halikit.utils.tensors import evenly_spaced

    run.checked_level(level)
    part = run.held_out_images(1000)
    hierarchy, x = run.conditioned(part), run.batch(part)
    names = [space.name for space in hierarchy.spaces]
    levels = range(1, len(hierarchy) + 1)
    torch.manual_seed(seed)
    with torch.no_grad():
        means = Inference(hierarchy)
        rebuilt = {k: hierarchy.reconstruct(x, k, sample=True) if draw else means.reconstruct(x, k) for k in levels}
    errors = [float((x - images).square().mean().sqrt()) for images in rebuilt.values()]
    lines = [
        f"level {k}: root mean square error {error:.4f} over the elements of {len(x)} held-out images (estimate)"
        for k, error in enumerate(errors, 1)
    ]
    values = {"levels": len(hierarchy), "shown": level, "rms_error": errors, "images": len(x), "drawn": draw}
    shown = evenly_spaced(n, len(x)).to(x.device)
    rows = {"x": x[shown]} | {names[k]: images[shown] for k, images in rebuilt.items()}
    picture = plotting.alternating_columns(x[shown], rebuilt[level][shown]) if level else plotting.labelled_rows(rows)
    if draws > 1:
        several = {k: decoded(hierarchy, x, k, draws) for k in levels}
        deviations = [float(images.std(0).square().mean().sqrt()) for images in several.values()]
        lines += [
            f"level {k}: standard deviation {deviation:.4f} per element among {draws} draws from one z{k} (estimate)"
            for k, deviation in enumerate(deviations, 1)
        ]
        values |= {"standard_deviation_of_draws": deviations}
        wanted = {level: several[level]} if level else several
        drawn = [(names[k], images[shown]) for k, each in wanted.items() for images in each]
        picture = plotting.labelled_rows([("x", x[shown]), *drawn])
    title = "Reconstructions" + (f" from level {level}" if level else "") + (", several draws" if draws > 1 else "")
    name = "reconstructions" + (f"-z{level}" if level else "") + ("-draws" if draws > 1 else "")
    return Result(name, title, values | {"draws": draws}, lines, picture)
