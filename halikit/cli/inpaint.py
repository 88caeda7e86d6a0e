"""``halikit inpaint``: fill in missing pixels (section 6.1, Fig. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    import torch


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(inpaint)


def inpaint(
    run: common.RunArgument,
    data: common.Data = None,
    centre: Annotated[float, typer.Option(help="Share of height and width that is missing, in the middle.")] = 0.5,
    rectangle: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option(metavar="TOP LEFT HEIGHT WIDTH", help="Miss this rectangle instead.", show_default=False),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Miss what is white in this image instead.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many to show.")] = 16,
    measured: Annotated[int, typer.Option(min=2, help="Held-out images to measure on.")] = 500,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Fill in missing pixels of held-out images, level by level from the top, starting from the mean training image.

    Example: halikit inpaint runs/digits --centre 0.4

    Example: halikit inpaint runs/digits --rectangle 0 0 8 4
    """
    from halikit import plotting
    from halikit.analysis import inpainting
    from halikit.errors import InputError

    common.check_writable(out)
    if rectangle and mask:
        raise InputError("--rectangle and --mask both say what is missing; give one of them")
    model, config = common.open_run(run, weights, device)
    hierarchy = model.hierarchy
    shape = hierarchy.spaces[0].shape
    x = common.held_out_images(config, data, measured, hierarchy.prior.device)
    try:
        if mask:
            missing = _read_mask(mask, shape)
        elif rectangle:
            missing = inpainting.rectangle_mask(shape, *rectangle)
        else:
            missing = inpainting.centre_mask(shape, centre)
    except ValueError as error:
        raise InputError(str(error)) from None
    fill = common.mean_image(common.open_data(config, data).train).to(x.device)
    found = inpainting.inpaint(hierarchy, x, missing, fill=fill)
    errors = inpainting.inpainting_errors(x, missing, found)
    low, high = errors.interval
    lines = [f"root mean square error over the {int(missing.sum())} missing of {missing.numel()} pixels"]
    lines += [f"  after {name}      {quantity}" for name, quantity in errors.steps.items()]
    lines += [
        f"  mean training image  {errors.baseline}",
        f"  difference {errors.difference.value:+.4f}, 95% interval {low:+.4f} to {high:+.4f}",
    ]
    values = {
        "images": len(x),
        "missing": int(missing.sum()),
        "error": {name: quantity.as_dict() for name, quantity in errors.steps.items()},
        "mean_fill": errors.baseline.as_dict(),
        "difference": errors.difference.as_dict(),
        "interval_95": [low, high],
    }
    steps = {name: images[:n] for name, images in found.steps.items()}
    picture = plotting.inpainting_rows(x[:n], found.masked[:n], steps)
    common.present(
        run, "inpainting", "Inpainting", lines=lines, values=values, picture=picture, out=out, as_json=as_json
    )


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
