"""``halikit inpaint``: fill in missing pixels, by a search or as in the paper (section 6.1, Fig. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import torch

    from halikit.analysis.inpainting import InpaintingErrors
    from halikit.runs.run import Result, Run

__all__ = ["inpaint"]


def inpaint(
    run: Run,
    *,
    centre: Annotated[float, typer.Option(help="Share of each side that is missing in the middle.")] = 0.5,
    rectangle: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="TOP LEFT HEIGHT WIDTH", help="Missing rectangle, instead.", show_default=False),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image whose white pixels are missing, instead.", show_default=False)
    ] = None,
    method: Annotated[
        Literal["search", "paper"],
        typer.Option(help="Search for latents that explain the known pixels, or go down the levels as in the paper."),
    ] = "search",
    draws: Annotated[
        int, typer.Option(min=0, help="Searches to average; with 0 one search for the most probable latents.")
    ] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each search.")] = 50,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of images to show.")] = 16,
    measured: Annotated[int, typer.Option(min=2, help="Number of held-out images to measure on.")] = 100,
    seed: int = 0,
) -> Result:
    """Fill in missing pixels of held-out images, and compare the result with the mean training image.

    Example: halikit inpaint runs/digits --centre 0.4

    Example: halikit inpaint runs/digits --rectangle 0 0 8 4 --draws 32

    Example: halikit inpaint runs/digits --method paper
    """
    import torch

    from halikit import plotting
    from halikit.analysis import inpainting
    from halikit.runs.run import Result
    from halikit.utils.tensors import evenly_spaced

    run.check_drawable()
    space = run.hierarchy.spaces[0]
    missing = _missing(space.shape, centre, rectangle, mask)
    part = run.held_out_images(measured)
    hierarchy, x = run.conditioned(part), run.batch(part)
    fill = inpainting.mean_image(run.data.train).to(x.device)
    if method == "paper":
        found = inpainting.inpaint(hierarchy, x, missing, fill=fill)
    else:
        torch.manual_seed(seed)
        with run.progress("searching") as advance:
            found = inpainting.inpaint_by_search(
                hierarchy, x, missing, fill=fill, draws=draws, steps=steps, on_progress=advance
            )
    errors = inpainting.inpainting_errors(x, missing, found)
    places = "pixels" if space.is_image else "positions"
    lines = [f"root mean square error over the {int(missing.sum())} missing of {missing.numel()} {places}"]
    lines += _in_words(errors, draws)
    values = {
        "images": len(x),
        "missing": int(missing.sum()),
        "method": method,
        "error": {name: quantity.as_dict() for name, quantity in errors.steps.items()},
        "mean_fill": errors.baseline.as_dict(),
        "difference": errors.difference.as_dict(),
        "interval_95": list(errors.interval),
    }
    rows = evenly_spaced(n, len(x)).to(x.device)
    steps_shown = {name: images[rows] for name, images in found.steps.items()}
    picture = plotting.inpainting_rows(x[rows], found.masked[rows], steps_shown)
    return Result("inpainting", "Inpainting", values, lines, picture)


def _in_words(errors: InpaintingErrors, draws: int) -> list[str]:
    """A line for each step of the procedure, one for the mean image, and one for the difference."""
    low, high = errors.interval
    names = {"draw": "one draw", "mean": f"mean of {draws}", "mode": "most probable"}
    return [
        *(f"  {names.get(name, f'after {name}'):19}  {quantity}" for name, quantity in errors.steps.items()),
        f"  mean training image  {errors.baseline}",
        f"  difference {errors.difference.value:+.4f}, 95% interval {low:+.4f} to {high:+.4f}",
    ]


def _missing(
    shape: tuple[int, ...], centre: float, rectangle: tuple[int, int, int, int] | None, mask: Path | None
) -> torch.Tensor:
    """What is missing, bool, for all channels: ``(H, W)`` of images."""
    from halikit.analysis import inpainting
    from halikit.errors import InputError

    if rectangle and mask:
        raise InputError("--rectangle and --mask both say what is missing; give one of them")
    if len(shape) != 3 and (rectangle or mask):
        raise InputError(f"--rectangle and --mask are for images; for data of shape {shape} there is --centre")
    if mask:
        return _read_mask(mask, shape)
    try:
        if rectangle:
            return inpainting.rectangle_mask(shape, *rectangle)
        return inpainting.centre_mask(shape, centre)
    except ValueError as error:
        raise InputError(str(error)) from None


def _read_mask(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """What is missing, ``(H, W)``: the image's lighter half, at the size of the data.

    Raises:
        InputError: If it cannot be read, or leaves nothing out.
    """
    import numpy as np
    import torch
    from PIL import Image

    from halikit.errors import InputError

    try:
        with Image.open(path) as image:
            grey = image.convert("L").resize((shape[-1], shape[-2]), Image.Resampling.NEAREST)
    except OSError as error:
        raise InputError(f"cannot read the mask {path}: {error}") from None
    missing = torch.from_numpy(np.asarray(grey) >= 128)
    if not missing.any():
        raise InputError(f"the mask {path} has no white pixel at {shape[-1]}×{shape[-2]}, so nothing is missing")
    return missing
