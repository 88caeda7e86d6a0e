"""``halikit innovate``: edit held-out images between two levels (section 6.3, Fig. 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from halikit.data import DataSet, Split
    from halikit.hierarchy import Hierarchy
    from halikit.runs.run import Result, Run

__all__ = ["innovate"]


def innovate(
    run: Run,
    *,
    level: Annotated[
        int | None, typer.Option(min=1, help="Change this latent, edit the one below; the top by default.")
    ] = None,
    entries: Annotated[
        str | None,
        typer.Option(help="Elements or feature maps, such as 0,5; by default those that change the images most."),
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="Number of entries to choose where none are given.")] = 3,
    towards: Annotated[
        str | None,
        typer.Option(help="A class or an attribute: go along its direction instead.", show_default=False),
    ] = None,
    away: Annotated[
        str | None, typer.Option(help="The class to come from; by default all others.", show_default=False)
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help="Factors (−3 … 3 by default), or lengths along a direction (0 … 2).", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number-of-images", min=1, help="Images to edit, one row for each.")] = 4,
) -> Result:
    """Edit held-out images: change a latent, and add to the level below what that changes, carried down to x.

    Example: halikit innovate runs/digits --level 3

    Example: halikit innovate runs/digits --towards 3 --away 8
    """
    import torch

    from halikit import plotting
    from halikit.analysis.innovation import innovate as edited
    from halikit.runs.run import Result

    level = run.checked_level(level) or len(run.hierarchy)
    name, below = run.hierarchy.spaces[level].name, run.hierarchy.spaces[level - 1].name
    if towards:
        edits = _along_a_direction(run, level, towards, away, alphas, n)
    else:
        edits = _of_entries(run, level, entries, number, alphas, n)
    images = [
        torch.stack([edited(edits.hierarchy, edits.x, level, change).x for change in each], 1)
        for each in edits.changes.values()
    ]
    labels = [label for label in edits.changes for _ in edits.x]
    picture = plotting.strips(labels, torch.cat(images), edits.amounts, torch.cat([edits.x] * len(images)))
    return Result(
        f"innovation-{name}" + (f"-{_as_file_name(towards)}" if towards else ""),
        f"Innovation from {name} to {below}" + (f", towards {towards}" if towards else ""),
        {"level": level, "images": len(edits.x), "alphas": edits.amounts} | edits.values,
        edits.lines,
        picture,
    )


class _Edits(NamedTuple):
    """The hierarchy and the images to edit, the changes by label, and the result in words and for programs."""

    hierarchy: Hierarchy
    x: Tensor
    changes: dict[str, list[Callable[[Tensor], Tensor]]]
    amounts: list[float]
    lines: list[str]
    values: dict[str, Any]


def _of_entries(run: Run, level: int, entries: str | None, number: int, alphas: str | None, n: int) -> _Edits:
    """Multiply entries: those given, or those that change the images most."""
    from halikit.analysis.innovation import influence_on_data, scaling
    from halikit.cli.parse import EXAMINED, entries_of, numbers

    part = run.held_out_images(max(n, EXAMINED))
    hierarchy, x = run.conditioned(part), run.batch(part)
    name = hierarchy.spaces[level].name
    amounts = numbers("--alphas", alphas or "-3,-2,-1,0,1,2,3")
    influence = influence_on_data(hierarchy, x, level, (min(amounts), max(amounts)))
    chosen = entries_of(entries, influence, number)
    lines = [
        f"{name}[{entry}]: root mean square change {float(influence[entry]):.4f} per element, "
        f"at both ends, over {len(x)} held-out images (estimate)"
        for entry in chosen
    ]
    changes = {f"{name}[{entry}]": [scaling(entry, amount) for amount in amounts] for entry in chosen}
    return _Edits(
        hierarchy.rows(slice(n)), x[:n], changes, amounts, lines, {"entries": chosen, "influence": influence.tolist()}
    )


def _along_a_direction(run: Run, level: int, towards: str, away: str | None, alphas: str | None, n: int) -> _Edits:
    """Move held-out images along the difference of the mean latents of two kinds of training data."""
    from halikit.analysis.directions import along, mean_direction
    from halikit.cli.parse import numbers

    data, space = run.data, run.hierarchy.spaces[level]
    amounts = numbers("--alphas", alphas or "0,0.5,1,1.5,2")
    rows, lines = _direction_rows(data, towards, away)
    direction = mean_direction(run.conditioned(data.train), data.train, level, *rows)
    chosen = _coming_from(data, data.held_out, towards, away, n)
    x = data.held_out.batch(chosen).to(run.hierarchy.prior.device)
    lines += [f"the direction has length {float(direction.norm()):.3f} in {space.name}"]
    changes = {f"to {towards}": [along(direction, amount) for amount in amounts]}
    hierarchy = run.conditioned(data.held_out).rows(chosen.to(x.device))
    return _Edits(hierarchy, x, changes, amounts, lines, {"towards": towards, "away": away})


def _direction_rows(data: DataSet, towards: str, away: str | None) -> tuple[tuple[Tensor, Tensor], list[str]]:
    """The training data to go towards and to come from, and a line about them."""
    wanted = _members(data, data.train, towards)
    others = ~wanted if away is None else _members(data, data.train, away)
    line = f"mean of {int(wanted.sum()):,} training images of {towards} less that of {int(others.sum()):,} "
    return (wanted, others), [line + (f"of {away}" if away else "others")]


def _coming_from(data: DataSet, part: Split, towards: str, away: str | None, n: int) -> Tensor:
    """The first held-out images of the kind to come from, ``(n,)`` int64."""
    import torch

    chosen = ~_members(data, part, towards) if away is None else _members(data, part, away)
    return torch.arange(len(part))[chosen.cpu()][:n]


def _members(data: DataSet, part: Split, name: str) -> Tensor:
    """Which data of a part belong to a class or have an attribute, ``(n,)`` bool.

    Raises:
        InputError: If there is no such class or attribute.
    """
    from halikit.errors import InputError

    if name in data.attributes and part.attributes is not None:
        return part.attributes[:, data.attributes.index(name)]
    if name in data.classes and part.labels is not None:
        return part.labels == data.classes.index(name)
    known = [*data.classes, *data.attributes]
    raise InputError(
        f"{data.spec} has no class or attribute {name!r}"
        + (f"; there are {', '.join(known[:12])}{', …' if len(known) > 12 else ''}" if known else ": it has no labels")
    )


def _as_file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
