"""``halikit evaluate labels``: labels that reconstructions keep, and classes that samples cover."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.measures.recovery import recovery
from halikit.measures.shared import OnTest, measured_part

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["Judge", "labels"]


class Judge(StrEnum):
    """Classifier that is fitted to the training data."""

    neighbours = "neighbours"
    network = "network"


def labels(
    run: Run,
    *,
    number: Annotated[int, typer.Option("-n", "--number", min=10, help="Number of samples to draw.")] = 2000,
    test: OnTest = False,
    classifier: Annotated[
        Judge, typer.Option(help="Classifier: the 3 nearest neighbours, or a network with one hidden layer.")
    ] = Judge.neighbours,
    seed: int = 0,
) -> Result:
    """Measure how many labels survive each level, and whether samples cover the classes.

    A classifier fitted to the training data labels reconstructions and samples.
    What `halikit evaluate recovery` measures is included.

    Example: halikit evaluate labels runs/digits

    Example: halikit evaluate labels runs/digits --classifier network --test
    """
    from dataclasses import asdict

    from halikit.analysis.labels import label_scores
    from halikit.runs.run import Result

    part = measured_part(run, test)
    scores = label_scores(
        run.conditioned(part), run.data, part=part, num_samples=number, classifier=classifier.value, seed=seed
    )
    shares = "  ".join(f"{name} {share:.1%}" for name, share in zip(run.data.classes, scores.class_shares, strict=True))
    lines = [
        f"labels kept, of {scores.num_held_out:,} held-out images (the images themselves: {scores.reference:.1%})",
        *(f"  level {level}  {kept:.1%}" for level, kept in enumerate(scores.kept, 1)),
        f"classes of {scores.num_samples:,} samples",
        f"  {shares}",
        "mean distance to the nearest training image",
        f"  samples {scores.sample_distance:.2f}, held-out images {scores.held_out_distance:.2f}",
        "all of these are estimates",
    ]
    if run.config.model.conditional == "labels" and not run.asked:
        lines.append("this model is given the labels, so they are kept where it uses what it is given")
    recovered = recovery(run, number=number, seed=seed)
    values = asdict(scores) | recovered.values
    return Result("evaluate-labels", "Labels kept, classes covered", values, [*lines, *recovered.lines])
