"""Comparisons of several runs as tables: linear SVMs on features, attributes kept by reconstructions."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.analysis.comparison import Comparison
    from halikit.analysis.svm import SvmScores
    from halikit.data import DataSet
    from halikit.hierarchy import Hierarchy

__all__ = ["Format", "Options", "attributes_table", "svm_table"]

# Rows of an attribute that is rarer than this stand apart by default; classes never do.
_FEWEST = 50


class Format(StrEnum):
    """How to print a table."""

    text = "text"
    csv = "csv"
    latex = "latex"


class Options(NamedTuple):
    """What the tables have in common.

    Attributes:
        data: Spec of other data than the first run's own.
        levels: Sets of levels such as ``1+2``; by default each level, for SVMs all together as well.
        fewest: Positives or negatives in a part below which an attribute stands apart.
        weights: Averaged or raw.
        device: Where.
        seed: Of splits and of weights that are made.
    """

    data: str | None
    levels: list[str] | None
    fewest: int | None
    weights: str
    device: str
    seed: int


def svm_table(runs: list[Path], options: Options) -> tuple[Comparison, dict[str, Any]]:
    """Tables 2 and 6: linear SVMs on the features of every run, on pixels, and on an encoder of random weights.

    Returns:
        The table, and what else there is to say of it.
    """
    from halikit.analysis.svm import compare, feature_scores, questions, random_encoder

    opened = [common.open_run(run, options.weights, options.device) for run in runs]
    data = common.open_data(opened[0][1], options.data)
    fit, test = data.validation or data.train, data.test
    asked = questions(data, fit, test)
    columns: dict[str, SvmScores] = {}

    def add(name: str, hierarchy: Hierarchy, levels: list[int]) -> None:
        with common.progress(f"classifying by {name}") as advance:
            columns[name] = feature_scores(hierarchy, levels, fit, test, asked, seed=options.seed, on_progress=advance)

    for run, (model, config) in zip(runs, opened, strict=True):
        latents = min(len(model.hierarchy), config.model.levels)
        sets = [[level] for level in range(1, latents + 1)] + ([list(range(1, latents + 1))] if latents > 1 else [])
        for levels in _chosen(options.levels) or sets:
            add(f"{run.name} {_name(levels)}", model.hierarchy, levels)
    model, config = opened[0]
    add("pixels", model.hierarchy, [0])
    levels = list(range(1, config.model.levels + 1))
    untrained = random_encoder(config, data.train, seed=options.seed).to(model.hierarchy.prior.device)
    add(f"random weights {_name(levels)}", untrained, levels)
    title = (
        f"balanced accuracy of linear SVMs in percent, {data.spec}: "
        f"fitted on {len(fit):,} images, {len(test):,} test images"
    )
    about = {"regularisation": {name: list(scores.regularisation) for name, scores in columns.items()}}
    return compare(columns, asked, title, fewest=_fewest(options, data)), about


def attributes_table(
    runs: list[Path], options: Options, *, classifier: Path | None, width: int, epochs: int
) -> tuple[Comparison, dict[str, Any]]:
    """Tables 1 and 5: what a classifier of attributes makes of every run's reconstructions, level by level.

    Args:
        runs: Run directories.
        options: See there.
        classifier: File to read the classifier from, or to keep it in once it is trained; by default in the first run.
        width: Of a classifier to be trained.
        epochs: Of its training.

    Returns:
        The table, and what else there is to say of it.
    """
    from halikit.analysis.attributes import (
        fit_classifier,
        load_classifier,
        preservation,
        reconstruction_scores,
        save_classifier,
    )
    from halikit.analysis.svm import questions
    from halikit.errors import InputError
    from halikit.hardware.processes import resolve_device

    opened = [common.open_run(run, options.weights, options.device) for run in runs]
    data = common.open_data(opened[0][1], options.data)
    asked = questions(data, data.train, data.held_out)
    path = classifier or runs[0] / "classifier.safetensors"
    device = resolve_device(options.device)
    if path.exists():
        judge = load_classifier(path, device=device)
        if (judge.shape, judge.names) != (data.shape, asked.names):
            raise InputError(f"{path} is a classifier of other images or attributes than those of {data.spec}")
    else:
        with common.progress("training the classifier") as advance:
            judge = fit_classifier(
                *(data.train, data.held_out, asked),
                spec=data.spec,
                width=width,
                epochs=epochs,
                seed=options.seed,
                device=device,
                on_progress=advance,
            )
        save_classifier(path, judge)
    kept: dict[str, tuple[float, ...]] = {}
    for run, (model, config) in zip(runs, opened, strict=True):
        latents = [[level] for level in range(1, min(len(model.hierarchy), config.model.levels) + 1)]
        for levels in _chosen(options.levels) or latents:
            if len(levels) > 1:
                raise InputError(f"reconstructions come from one level: --level {levels[0]}, not {_name(levels)}")
            with common.progress(f"reconstructing by {run.name} {_name(levels)}"):
                name = f"{run.name} {_name(levels)}"
                kept[name] = reconstruction_scores(judge, model.hierarchy, data.held_out, asked, levels[0])
    title = (
        f"balanced accuracy on {len(data.held_out):,} held-out images of {data.spec} in percent: "
        "the classifier's own on the images themselves (data), and that on reconstructions divided by it"
    )
    about = {"classifier": str(path), "width": judge.width, "trained_on": judge.trained_on}
    return preservation(judge, kept, asked, title, fewest=_fewest(options, data)), about


def show(table: Comparison, about: dict[str, Any], *, form: Format, out: Path | None, as_json: bool) -> None:
    """Print a table, and write it to a file as well where told to."""
    from halikit.utils.files import write_atomically

    written = {Format.text: table.to_text, Format.csv: table.to_csv, Format.latex: table.to_latex}[form]()
    if out is not None:
        write_atomically(out, written if written.endswith("\n") else written + "\n")
    if as_json:
        finite = [None if math.isnan(value) else value for value in table.std]
        common.print_json(
            {
                "models": list(table.models),
                "attributes": list(table.rows),
                "scores": [list(row) for row in table.scores],
                "apart": sorted(table.apart),
                "mean": [None if math.isnan(value) else value for value in table.mean],
                "std": finite,
                "best": [None] * table.unranked + list(table.best),
                **about,
            }
        )
        return
    print(written.rstrip("\n"))


def _chosen(sets: list[str] | None) -> list[list[int]]:
    """Sets of levels from what was typed.

    Raises:
        InputError: If one is none.
    """
    from halikit.errors import InputError

    try:
        return [[int(level) for level in each.split("+")] for each in sets or []]
    except ValueError:
        raise InputError(f"--level takes levels such as 2 or 1+2, got {', '.join(sets or [])}") from None


def _name(levels: list[int]) -> str:
    return "+".join(f"z{level}" for level in levels)


def _fewest(options: Options, data: DataSet) -> int:
    if options.fewest is not None:
        return options.fewest
    return _FEWEST if data.attributes else 1
