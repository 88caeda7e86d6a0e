"""``halikit evaluate``: figures on a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

from halikit.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(evaluate)


def evaluate(
    run: common.RunArgument,
    data: common.Data = None,
    test: Annotated[bool, typer.Option("--test", help="Measure on the test part instead of validation.")] = False,
    n: Annotated[int, typer.Option("-n", "--number", min=10, help="Samples to draw.")] = 2000,
    classifier: Annotated[str, typer.Option(help="neighbours or network: what judges labels.")] = "neighbours",
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """How many labels survive each level and whether samples cover the classes, by a classifier of training data.

    Example: halikit evaluate runs/digits-l3
    """
    from dataclasses import asdict
    from typing import cast, get_args

    from halikit.analysis.labels import LabelClassifier, label_scores
    from halikit.errors import InputError

    if classifier not in get_args(LabelClassifier):
        raise InputError(f"--classifier is {' or '.join(get_args(LabelClassifier))}, got {classifier!r}")
    model, config, trained = common.open_run(run, weights, device)
    loaded = common.open_data(config, data)
    part = loaded.test if test else loaded.held_out
    scores = label_scores(
        model.hierarchy[:trained],
        loaded,
        part=part,
        num_samples=n,
        classifier=cast(LabelClassifier, classifier),
        seed=seed,
    )
    if as_json:
        common.print_json({"run": str(run), "weights": weights, "seed": seed} | asdict(scores))
        return
    out = common.console()
    out.print(
        f"labels kept, of {scores.num_held_out:,} held-out images (the images themselves: {scores.reference:.1%})"
    )
    for level, kept in enumerate(scores.kept, 1):
        out.print(f"  level {level}  {kept:.1%}")
    shares = "  ".join(f"{name} {share:.1%}" for name, share in zip(loaded.classes, scores.class_shares, strict=True))
    out.print(f"classes of {scores.num_samples:,} samples\n  {shares}", markup=False)
    out.print(
        f"distance to the nearest training image\n  samples {scores.sample_distance:.2f}, "
        f"held-out images {scores.held_out_distance:.2f}"
    )
