"""``halikit traverse``: vary one entry of a latent at a time (section 6.2, Fig. 6)."""

from __future__ import annotations

from typing import Annotated

import typer

from halikit.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(traverse)


def traverse(
    run: common.RunArgument,
    level: Annotated[int | None, typer.Option(min=1, help="Whose latent; the top by default.")] = None,
    entries: Annotated[
        str | None,
        typer.Option(help="Elements or feature maps, such as 0,5,9; by default those that change most."),
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="How many to choose where none are given.")] = 4,
    values: Annotated[str, typer.Option(help="What entries are multiplied by, or set to.")] = "-3,-2,-1,0,1,2,3",
    set_to: Annotated[bool, typer.Option("--replace", help="Set entries instead of multiplying them.")] = False,
    n: Annotated[int, typer.Option("-n", "--samples", min=1, help="Prior samples to vary, a row each.")] = 3,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Vary entries of a latent drawn from the prior, one at a time, and decode; the last column is not varied.

    Example: halikit traverse runs/digits --level 3 --replace
    """
    import torch

    from halikit import plotting
    from halikit.analysis import traversal

    common.check_writable(out)
    model, _ = common.open_run(run, weights, device)
    level = level or len(model.hierarchy)
    common.check_level(run, level, len(model.hierarchy))
    hierarchy = model.hierarchy
    amounts = common.numbers("--values", values)
    how: traversal.How = "set" if set_to else "multiply"
    generator = torch.Generator(hierarchy.prior.device).manual_seed(seed)
    z = traversal.base_latents(hierarchy, max(n, common.EXAMINED), level, generator=generator)
    influence = traversal.influence(hierarchy, z, level, [min(amounts), max(amounts)], how=how)
    chosen = common.chosen_entries(entries, influence, number)
    z = z[:n]
    images = traversal.traverse(hierarchy, z, level, chosen, amounts, how=how).transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        original = hierarchy.decode(z, level)[hierarchy.spaces[0].name]
    name = hierarchy.spaces[level].name
    picture = plotting.strips(
        [f"{name}[{entry}]" for entry in chosen for _ in range(n)],
        images,
        amounts,
        original.repeat(len(chosen), *[1] * (original.dim() - 1)),
    )
    said = {
        "level": level,
        "entries": chosen,
        "values": amounts,
        "how": how,
        "influence": influence.tolist(),
    }
    lines = [
        f"{name}[{entry}]: root mean square change {float(influence[entry]):.4f} per pixel, "
        f"at both ends, over {max(n, common.EXAMINED)} prior samples (estimate)"
        for entry in chosen
    ]
    title = f"Traversals of {name}, entries {'set' if set_to else 'multiplied'}"
    common.present(
        run,
        f"traversal-{name}",
        title,
        lines=lines,
        values=said,
        picture=picture,
        out=out,
        as_json=as_json,
    )
