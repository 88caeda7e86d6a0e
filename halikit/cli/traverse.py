"""``halikit traverse``: vary one entry of a latent at a time (section 6.2, Fig. 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["traverse"]


def traverse(
    run: Run,
    *,
    level: Annotated[int | None, typer.Option(min=1, help="Level of the latent; the top by default.")] = None,
    entries: Annotated[
        str | None,
        typer.Option(help="Elements or feature maps, such as 0,5,9; by default those that change the image most."),
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="Number of entries to choose where none are given.")] = 4,
    values: Annotated[str, typer.Option(help="Factors on the entries, or values for them.")] = "-3,-2,-1,0,1,2,3",
    set_to: Annotated[bool, typer.Option("--replace", help="Set entries instead of multiplying them.")] = False,
    n: Annotated[int, typer.Option("-n", "--samples", min=1, help="Prior samples to vary, one row for each.")] = 3,
    seed: int = 0,
) -> Result:
    """Vary entries of a latent drawn from the prior, one at a time, and decode; the last column is not varied.

    Example: halikit traverse runs/digits --level 3 --replace
    """
    import torch
    from einops import rearrange

    from halikit import plotting
    from halikit.analysis import traversal
    from halikit.cli.parse import EXAMINED, entries_of, numbers
    from halikit.runs.run import Result

    level = run.checked_level(level) or len(run.hierarchy)
    run.check_drawable()
    drawn = max(n, EXAMINED)
    hierarchy = run.conditioned_at_random(drawn, seed)
    amounts = numbers("--values", values)
    how: traversal.How = "set" if set_to else "multiply"
    generator = torch.Generator(hierarchy.prior.device).manual_seed(seed)
    z = traversal.base_latents(hierarchy, drawn, level, generator=generator)
    influence = traversal.influence(hierarchy, z, level, [min(amounts), max(amounts)], how=how)
    chosen = entries_of(entries, influence, number)
    shown = hierarchy.rows(slice(n))
    images = traversal.traverse(shown, z[:n], level, chosen, amounts, how=how)
    images = rearrange(images, "n entries ... -> (entries n) ...")
    with torch.no_grad():
        original = shown.decode(z[:n], level)[hierarchy.spaces[0].name]
    name = hierarchy.spaces[level].name
    labels = [f"{name}[{entry}]" for entry in chosen for _ in range(n)]
    repeated = original.repeat(len(chosen), *[1] * (original.dim() - 1))
    lines = [
        f"{name}[{entry}]: root mean square change {float(influence[entry]):.4f} per element, "
        f"at both ends, over {drawn} prior samples (estimate)"
        for entry in chosen
    ]
    about = {"level": level, "entries": chosen, "values": amounts, "how": how, "influence": influence.tolist()}
    title = f"Traversals of {name}, entries {'set' if set_to else 'multiplied'}"
    return Result(f"traversal-{name}", title, about, lines, plotting.strips(labels, images, amounts, repeated))
