"""``halikit evaluate errors``: wrong classes on the test part, by the model's own classifier (Eq. 9, Table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["errors"]


def errors(
    runs: Sequence[Run],
    *,
    views: Annotated[
        int, typer.Option(min=0, help="Number of augmented copies of each image to average the probabilities over.")
    ] = 0,
    seed: int = 0,
) -> Result:
    """Count the test images that models with classes on top assign to a wrong class.

    Runs with the same method and number of labels are summarised: mean and standard deviation over their seeds.

    Example: halikit evaluate errors runs/labels

    Example: halikit evaluate errors runs/labels-0 runs/labels-1 --views 16
    """
    from halikit.runs.run import Result

    counted = [_counted(run, views, seed) for run in runs]
    groups: dict[tuple[str, int | None], list[int]] = {}
    for each in counted:
        groups.setdefault((each["method"], each["labels"]), []).append(each["errors"])
    summary = [_summary(method, labels, found) for (method, labels), found in groups.items()]
    lines = [
        f"{each['errors']:>6,} errors of {each['number']:,} test images  {each['run']}  ({each['method']}, "
        f"{each['labels'] or 'no'} labels, seed {each['seed']})"
        for each in counted
    ]
    for each in summary:
        deviation = "" if each["std"] is None else f" ± {each['std']:.1f}"
        number = f"{each['runs']} run{'s' * (each['runs'] != 1)}"
        lines.append(f"{each['mean']:.1f}{deviation} over {number}: {each['method']}, {each['labels'] or 'no'} labels")
    return Result("evaluate-errors", "Wrong classes", {"views": views, "runs": counted, "summary": summary}, lines)


def _counted(run: Run, views: int, seed: int) -> dict[str, Any]:
    from halikit.analysis.classification import class_errors

    config = run.config
    augmentation = config.data.augmentation()
    found = class_errors(run.hierarchy, run.data.test, augmentation=augmentation, views=views, seed=seed)
    return {
        "run": str(run.given),
        "method": config.training.method,
        "labels": config.labels.number if config.labels else None,
        "seed": config.training.seed,
        "errors": found.errors,
        "number": found.number,
        "errors_by_class": list(found.by_class),
    }


def _summary(method: str, labels: int | None, errors: list[int]) -> dict[str, Any]:
    from statistics import fmean, stdev

    deviation = stdev(errors) if len(errors) > 1 else None
    return {"method": method, "labels": labels, "runs": len(errors), "mean": fmean(errors), "std": deviation}
