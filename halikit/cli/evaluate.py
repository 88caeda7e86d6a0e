"""``halikit evaluate``: figures on trained models."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from halikit.cli import common
from halikit.cli.tables import Format, Options, attributes_table, show, svm_table


class Metric(StrEnum):
    """What to measure."""

    labels = "labels"
    recovery = "recovery"
    errors = "errors"
    reconstruction = "reconstruction"
    health = "health"
    samples = "samples"
    svm = "svm"
    attributes = "attributes"


class _Measure(NamedTuple):
    """What to measure one run on, and how."""

    test: bool
    number: int
    classifier: str
    scale: str | None
    features: Path | None
    noiseless: bool


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(evaluate)


def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run directories; several are compared.", show_default=False)
    ],
    metric: Annotated[
        Metric,
        typer.Option(
            help="labels: how many labels survive each level, and whether samples cover the classes, by a "
            "classifier of training data. recovery: how much of each latent the encoder recovers from samples. "
            "errors: errors of the model's own classes on the test part. reconstruction: "
            "errors of every level, Euclidean, as the discriminator sees them, and in nats. health: what each latent "
            "is used for, where the two joints differ, alarms. samples: precision, recall and the like. svm: linear "
            "SVMs on encoder features, one per attribute or class, beside pixels and an encoder of random weights. "
            "attributes: attributes or classes that a VGG-16 finds again in reconstructions."
        ),
    ] = Metric.labels,
    data: common.Data = None,
    test: Annotated[bool, typer.Option("--test", help="Measure on the test part, not on validation.")] = False,
    n: Annotated[int, typer.Option("-n", "--number", min=10, help="Samples to draw, data to measure on.")] = 2000,
    views: Annotated[
        int, typer.Option(min=0, help="errors: augmented copies of each image that have a say beside itself.")
    ] = 0,
    classifier: Annotated[str, typer.Option(help="labels: neighbours or network, which judges.")] = "neighbours",
    scale: Annotated[
        str | None,
        typer.Option(help="reconstruction: of a Gaussian on a deterministic p(x|z1), a number or fit."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="samples: a feature network, in ONNX or a classifier that attributes kept, for FID and KID too."
        ),
    ] = None,
    noiseless: common.Noiseless = False,
    level: Annotated[
        list[str] | None,
        typer.Option(metavar="L", help="svm, attributes: levels, such as 1 (svm: or 1+2); as often as needed."),
    ] = None,
    fewest: Annotated[
        int | None,
        typer.Option(min=1, help="svm, attributes: with fewer of either answer in a part, an attribute stands apart."),
    ] = None,
    vgg: Annotated[
        Path | None,
        typer.Option(help="attributes: the VGG-16's file, trained if missing; RUN/classifier.safetensors."),
    ] = None,
    width: Annotated[int, typer.Option(min=1, help="attributes: maps of the VGG-16's first group.")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="attributes: passes to train it.")] = 20,
    form: Annotated[Format, typer.Option("--format", help="svm, attributes: of the table.")] = Format.text,
    out: Annotated[Path | None, typer.Option(help="Write the table, or the picture, here.", show_default=False)] = None,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """Measure trained models: labels that survive, reconstructions, health, few labels, features, attributes.

    Example: halikit evaluate runs/digits-l3

    Example: halikit evaluate runs/ali runs/hali --metric svm --format latex
    """
    if metric is Metric.errors:
        _errors(runs, data, weights=weights, device=device, views=views, seed=seed, as_json=as_json)
        return
    options = Options(data, level, fewest, weights, device, seed)
    if metric not in (Metric.svm, Metric.attributes):
        _measured(metric, runs, options, _Measure(test, n, classifier, scale, features, noiseless), out, as_json)
        return
    if metric is Metric.svm:
        table, about = svm_table(runs, options)
    else:
        table, about = attributes_table(runs, options, classifier=vgg, width=width, epochs=epochs)
    show(table, {"weights": weights, "seed": seed} | about, form=form, out=out, as_json=as_json)


def _measured(
    metric: Metric, runs: list[Path], options: Options, measure: _Measure, out: Path | None, as_json: bool
) -> None:
    """One run, measured on its held-out data."""
    import torch

    from halikit.cli import measures
    from halikit.errors import InputError

    if len(runs) > 1:
        raise InputError(f"--metric {metric.value} measures one run at a time")
    common.check_writable(out)
    model, config = common.open_run(runs[0], options.weights, options.device)
    loaded = common.open_data(config, options.data)
    found = getattr(measures, metric.value)(
        measures.Asked(
            model,
            loaded,
            loaded.test if measure.test else loaded.held_out,
            measure.number,
            measure.classifier,
            measure.scale,
            measure.features,
            measure.noiseless,
            torch.Generator(model.hierarchy.prior.device).manual_seed(options.seed),
            options.seed,
        )
    )
    common.present(
        runs[0],
        f"evaluate-{metric.value}",
        found.title,
        lines=found.lines,
        values={"run": str(runs[0]), "weights": options.weights, "seed": options.seed} | found.values,
        picture=found.picture,
        out=out,
        as_json=as_json,
    )


def _errors(
    runs: list[Path], data: str | None, *, weights: str, device: str, views: int, seed: int, as_json: bool
) -> None:
    from statistics import fmean, stdev

    from halikit.analysis.classification import class_errors

    lines: list[dict[str, Any]] = []
    groups: dict[tuple[str, int | None], list[int]] = {}
    for run in runs:
        model, config = common.open_run(run, weights, device)
        test, augmentation = common.open_data(config, data).test, config.data.augmentation()
        counted = class_errors(model.hierarchy, test, augmentation=augmentation, views=views, seed=seed)
        training = config.training
        about = {"run": str(run), "method": training.method, "labels": training.labels, "seed": training.seed}
        lines.append(
            about | {"errors": counted.errors, "number": counted.number, "errors_by_class": list(counted.by_class)}
        )
        groups.setdefault((training.method, training.labels), []).append(counted.errors)
    summary = [
        {
            "method": method,
            "labels": labels,
            "runs": len(errors),
            "mean": fmean(errors),
            "std": stdev(errors) if len(errors) > 1 else None,
        }
        for (method, labels), errors in groups.items()
    ]
    if as_json:
        common.print_json({"weights": weights, "views": views, "runs": lines, "summary": summary})
        return
    out = common.console()
    for line in lines:
        out.print(
            f"{line['errors']:>6,} errors of {line['number']:,} test images  {line['run']}  ({line['method']}, "
            f"{line['labels'] or 'no'} labels, seed {line['seed']})",
            markup=False,
        )
    for each in summary:
        spread = "" if each["std"] is None else f" ± {each['std']:.1f}"
        number = f"{each['runs']} run{'s' * (each['runs'] != 1)}"
        out.print(f"{each['mean']:.1f}{spread} over {number}: {each['method']}, {each['labels'] or 'no'} labels")
