"""``halikit evaluate classes``: whether samples of a conditional model have the class that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["classes"]

# Samples of each class in the picture.
_SHOWN = 16


def classes(
    run: Run,
    *,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of samples of each class.")] = 100,
    neighbours: Annotated[
        int, typer.Option("-k", "--neighbours", min=1, help="Number of nearest training images that vote.")
    ] = 3,
    seed: int = 0,
) -> Result:
    """Measure whether samples of a conditional model have the class that was asked for.

    The nearest training images of a sample vote on its class, in pixels.

    Example: halikit evaluate classes runs/digits_conditional-l3
    """
    from halikit import plotting
    from halikit.analysis.conditioning import class_agreement, samples_of_classes
    from halikit.errors import InputError
    from halikit.runs.run import Result

    if run.config.model.conditional != "labels":
        raise InputError(f"{run.given} is given no classes: train it with --conditional on data with labels")
    if run.asked:
        raise InputError("this measure asks for every class: leave out --class")
    run.conditioned(run.data.train)  # classes that do not fit the model are refused
    found = class_agreement(run.hierarchy, run.data, per_class=number, neighbours=neighbours, seed=seed)
    names = run.data.classes
    lines = [
        f"samples whose {neighbours} nearest training images have the class asked for: {found.mean}",
        "  " + "  ".join(f"{name} {share:.1%}" for name, share in zip(names, found.by_class, strict=True)),
        f"held-out images, by the same vote: {found.reference}",
    ]
    values = {
        "agreement": found.mean.as_dict(),
        "by_class": dict(zip(names, found.by_class, strict=True)),
        "reference": found.reference.as_dict(),
        "neighbours": neighbours,
        "per_class": number,
    }
    picture = None
    if plotting.is_drawable(run.hierarchy.spaces[0].shape):
        shown = samples_of_classes(run.hierarchy, len(names), _SHOWN, seed=seed)
        picture = plotting.labelled_rows(list(zip(names, shown, strict=True)))
    return Result("evaluate-classes", "Samples of each class", values, lines, picture)
