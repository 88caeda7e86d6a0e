"""``halikit evaluate svm``: linear classifiers on the features of several runs (section 7.1, Tables 2 and 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from halikit.measures.shared import (
    Fewest,
    Levels,
    TableFormat,
    TableFormatOption,
    common_data,
    fewest_for,
    level_name,
    level_sets,
    names_of,
    table_result,
)

if TYPE_CHECKING:
    from halikit.data import DataSet
    from halikit.hierarchy import Hierarchy
    from halikit.runs.run import Result, Run

__all__ = ["svm"]


def svm(
    runs: Sequence[Run],
    *,
    level: Levels = None,
    fewest: Fewest = None,
    format: TableFormatOption = TableFormat.text,
    seed: int = 0,
) -> Result:
    """Compare the features of runs by linear SVMs, one for each attribute or class.

    The table also has the pixels and an encoder with random weights.
    A level such as 1+2 joins the features of levels 1 and 2; by default there is each level alone and all together.

    Example: halikit evaluate svm runs/ali runs/hali

    Example: halikit evaluate svm runs/hali --level 1 --level 1+2 --format latex
    """
    from halikit.analysis.svm import SvmScores, compare, feature_scores, questions_of

    for run in runs:
        _check_not_told(run)
    data = common_data(runs)
    fit, test = data.validation or data.train, data.test
    questions = questions_of(data, fit, test)
    scores: dict[str, SvmScores] = {}
    for name, hierarchy, levels in _columns(runs, data, level_sets(level), seed):
        with runs[0].progress(f"classifying by {name}") as advance:
            scores[name] = feature_scores(hierarchy, levels, fit, test, questions, seed=seed, on_progress=advance)
    title = (
        f"balanced accuracy of linear SVMs in percent, {data.spec}: "
        f"fitted on {len(fit):,} images, {len(test):,} test images"
    )
    table = compare(scores, questions, title, fewest=fewest_for(fewest, data))
    about = {"regularisation": {name: list(found.regularisation) for name, found in scores.items()}}
    return table_result("svm", table, format, about)


def _columns(
    runs: Sequence[Run], data: DataSet, sets: list[list[int]], seed: int
) -> Iterator[tuple[str, Hierarchy, list[int]]]:
    """Name, hierarchy and levels of each column of the table; level 0 is the pixels."""
    from halikit.analysis.svm import random_encoder

    for name, run in zip(names_of(runs), runs, strict=True):
        # Classes on top are not features.
        hierarchy = run.conditioned(data.train)
        latents = list(range(1, min(len(run.hierarchy), run.config.model.levels) + 1))
        default = [[level] for level in latents] + ([latents] if len(latents) > 1 else [])
        for levels in sets or default:
            yield f"{name} {level_name(levels)}", hierarchy, levels
    first = runs[0]
    given = first.conditioned(data.train)
    yield "pixels", given, [0]
    levels = list(range(1, first.config.model.levels + 1))
    untrained = random_encoder(first.config, data.train, seed=seed).to(given.prior.device)
    yield f"random weights {level_name(levels)}", untrained.conditioned(given.context), levels


def _check_not_told(run: Run) -> None:
    """Refuse a model whose features contain the answers, because it was given them.

    Raises:
        InputError: If the model is given the labels or attributes of the data.
    """
    from halikit.errors import InputError

    kind = run.config.model.conditional
    if kind == "attributes" or (kind and not run.asked):
        hint = "; --class K gives all images one class" if kind == "labels" else ""
        raise InputError(f"{run.given} is given the {kind} of the data, so its features contain them{hint}")
