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
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Reconstruct held-out data from every level and write inputs above reconstructions.

    Example: halikit reconstruct runs/digits --level 2
    """
    import torch

    from halikit import plotting
    from halikit.errors import InputError

    model, config, trained = common.open_run(run, weights, device)
    if level is not None and level > trained:
        raise InputError(f"{run} has {trained} trained levels; there is no level {level}")
    path = common.written_to(out, run, "reconstructions.png")
    held_out = common.open_data(config, data).held_out
    index = torch.arange(min(len(held_out), 1000))
    hierarchy = model.hierarchy[:trained]
    x = held_out.batch(index).to(hierarchy.prior.device)
    torch.manual_seed(seed)
    with torch.no_grad():
        rebuilt = {k: hierarchy.reconstruct(x, k, sample=draw) for k in range(1, trained + 1)}
    errors = [float((x - image).square().mean().sqrt()) for image in rebuilt.values()]
    if level:
        picture = plotting.alternating_columns(x[:n], rebuilt[level][:n])
    else:
        picture = plotting.labelled_rows({"x": x[:n]} | {f"z{k}": image[:n] for k, image in rebuilt.items()})
    plotting.save_png(path, picture)
    if as_json:
        said = {
            "path": str(path),
            "levels": trained,
            "shown": level,
            "rms_error": errors,
            "images": len(x),
            "drawn": draw,
        }
        common.print_json(said)
        return
    for k, error in enumerate(errors, 1):
        common.console().print(
            f"level {k}: root mean square error {error:.4f} per pixel, over {len(x)} held-out images"
        )
    common.report_path(path)
