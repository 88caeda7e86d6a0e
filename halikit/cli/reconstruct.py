"""``halikit reconstruct``: held-out data through every level and back (section 3.2, Figs. 1 and 7)."""

from __future__ import annotations

from typing import Annotated

import typer

from halikit.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(reconstruct)


def reconstruct(
    run: common.RunArgument,
    data: common.Data = None,
    level: Annotated[
        int | None, typer.Option(min=1, help="One level alone, in alternating columns; all by default.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many to show.")] = 16,
    draw: Annotated[bool, typer.Option("--draw", help="Draw every state instead of following the means.")] = False,
    draws: Annotated[
        int, typer.Option(min=1, help="So many decodings of each image, drawn: what a level leaves free.")
    ] = 1,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Reconstruct held-out data from every level and write inputs above reconstructions.

    Example: halikit reconstruct runs/digits --level 2

    Example: halikit reconstruct runs/digits --draws 4
    """
    import torch

    from halikit import plotting
    from halikit.analysis.inference import Inference
    from halikit.analysis.reconstruction import draws as drawn

    common.check_writable(out)
    model, config = common.open_run(run, weights, device)
    common.check_level(run, level, len(model.hierarchy))
    hierarchy = model.hierarchy
    x = common.held_out_images(config, data, 1000, hierarchy.prior.device)
    torch.manual_seed(seed)
    levels = range(1, len(hierarchy) + 1)
    with torch.no_grad():
        means = Inference(hierarchy)
        rebuilt = {k: hierarchy.reconstruct(x, k, sample=True) if draw else means.reconstruct(x, k) for k in levels}
    errors = [float((x - image).square().mean().sqrt()) for image in rebuilt.values()]
    lines = [
        f"level {k}: root mean square error {error:.4f} per pixel, over {len(x)} held-out images (estimate)"
        for k, error in enumerate(errors, 1)
    ]
    values = {
        "levels": len(hierarchy),
        "shown": level,
        "rms_error": errors,
        "images": len(x),
        "drawn": draw,
        "draws": draws,
    }
    if draws > 1:
        several = {k: drawn(hierarchy, x, k, draws) for k in levels}
        free = [float(images.std(0).square().mean().sqrt()) for images in several.values()]
        lines += [
            f"level {k}: standard deviation {deviation:.4f} per pixel among {draws} draws from one z{k} (estimate)"
            for k, deviation in enumerate(free, 1)
        ]
        values["standard_deviation_of_draws"] = free
        shown = {level: several[level]} if level else several
        rows = [("x", x[:n])] + [(hierarchy.spaces[k].name, images[:n]) for k, each in shown.items() for images in each]
        picture = plotting.labelled_rows(rows)
    elif level:
        picture = plotting.alternating_columns(x[:n], rebuilt[level][:n])
    else:
        picture = plotting.labelled_rows(
            {"x": x[:n]} | {hierarchy.spaces[k].name: image[:n] for k, image in rebuilt.items()}
        )
    title = "Reconstructions" + (f" from level {level}" if level else "") + (", several draws" if draws > 1 else "")
    name = "reconstructions" + (f"-z{level}" if level else "") + ("-draws" if draws > 1 else "")
    common.present(run, name, title, lines=lines, values=values, picture=picture, out=out, as_json=as_json)
