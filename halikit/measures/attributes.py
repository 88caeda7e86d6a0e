"""``halikit evaluate attributes``: attributes that reconstructions keep (section 5.2, Tables 1 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    from halikit.analysis.attributes import Classifier
    from halikit.analysis.svm import Questions
    from halikit.data import DataSet
    from halikit.runs.run import Result, Run

__all__ = ["attributes"]


def attributes(
    runs: Sequence[Run],
    *,
    level: Levels = None,
    fewest: Fewest = None,
    vgg: Annotated[
        Path | None,
        typer.Option(
            help="File of the classifier, which is trained and written if there is none; classifier.safetensors in the "
            "first run by default.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        int, typer.Option(min=1, help="Feature maps of the classifier's first group: 64 in VGG-16, fewer to save time.")
    ] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train the classifier.")] = 20,
    format: TableFormatOption = TableFormat.text,
    seed: int = 0,
) -> Result:
    """Measure which attributes or classes a VGG-16 finds again in the reconstructions of each level.

    Example: halikit evaluate attributes runs/hali

    Example: halikit evaluate attributes runs/ali runs/hali --vgg vgg.safetensors --width 16
    """
    from halikit.analysis.attributes import preservation
    from halikit.analysis.svm import questions_of
    from halikit.errors import InputError

    sets = level_sets(level)
    joined = [levels for levels in sets if len(levels) > 1]
    if joined:
        raise InputError(f"a reconstruction is from one level: --level {joined[0][0]}, not {level_name(joined[0])}")
    data = common_data(runs)
    questions = questions_of(data, data.train, data.held_out)
    path = vgg or runs[0].classifier_file
    classifier = _classifier(runs[0], data, questions, path, width, epochs, seed)
    title = (
        f"balanced accuracy on {len(data.held_out):,} held-out images of {data.spec} in percent: on the images "
        "themselves (data), and on reconstructions relative to that"
    )
    kept = _kept(runs, data, questions, classifier, [levels[0] for levels in sets])
    table = preservation(classifier, kept, questions, title, fewest=fewest_for(fewest, data))
    about = {"classifier": str(path), "width": classifier.width, "trained_on": classifier.trained_on}
    return table_result("attributes", table, format, about)


def _kept(
    runs: Sequence[Run], data: DataSet, questions: Questions, classifier: Classifier, levels: list[int]
) -> dict[str, tuple[float, ...]]:
    """The scores of reconstructions by the name of run and level."""
    from halikit.analysis.attributes import reconstruction_scores

    kept = {}
    for name, run in zip(names_of(runs), runs, strict=True):
        hierarchy = run.conditioned(data.held_out)
        for level in levels or range(1, min(len(run.hierarchy), run.config.model.levels) + 1):
            run.checked_level(level)
            column = f"{name} {level_name([level])}"
            with run.progress(f"reconstructing by {column}"):
                kept[column] = reconstruction_scores(classifier, hierarchy, data.held_out, questions, level)
    return kept


def _classifier(
    run: Run, data: DataSet, questions: Questions, path: Path, width: int, epochs: int, seed: int
) -> Classifier:
    """The classifier in a file; trained and written there if there is none."""
    from halikit.analysis.attributes import fit_classifier, load_classifier, save_classifier
    from halikit.errors import InputError

    if path.exists():
        classifier = load_classifier(path, device=run.device)
        if (classifier.shape, classifier.names) != (data.shape, questions.names):
            raise InputError(f"{path} is a classifier of other images or attributes than those of {data.spec}")
        return classifier
    run.make(path.parent)
    with run.progress("training the classifier") as advance:
        classifier = fit_classifier(
            *(data.train, data.held_out, questions),
            spec=data.spec,
            width=width,
            epochs=epochs,
            seed=seed,
            device=run.device,
            on_progress=advance,
        )
    save_classifier(path, classifier)
    return classifier
