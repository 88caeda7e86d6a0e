"""``halikit evaluate``: figures on a trained model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.model import Model


class Metric(StrEnum):
    """What to measure."""

    LABELS = "labels"
    RECONSTRUCTION = "reconstruction"
    HEALTH = "health"
    SAMPLES = "samples"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(evaluate)


def evaluate(
    run: common.RunArgument,
    metric: Annotated[Metric, typer.Option(help="What to measure.")] = Metric.LABELS,
    data: common.Data = None,
    test: Annotated[bool, typer.Option("--test", help="Measure on the test part instead of validation.")] = False,
    n: Annotated[int, typer.Option("-n", "--number", min=10, help="Samples to draw, data to measure on.")] = 2000,
    classifier: Annotated[str, typer.Option(help="neighbours or network: what judges labels.")] = "neighbours",
    scale: Annotated[
        str | None,
        typer.Option(
            help="Of a Gaussian on a deterministic p(x|z1), for errors in nats: a number, or fit.", show_default=False
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="A feature network in ONNX, for distances of samples, FID and KID.", show_default=False),
    ] = None,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    out: common.Out = None,
    as_json: common.Json = False,
) -> None:
    """Measure a trained model on held-out data.

    labels: how many survive each level and whether samples cover the classes, by a classifier of training data.

    reconstruction: errors of every level, Euclidean, as the discriminator sees them, and in nats.

    health: what each latent is used for, where the two joints differ, alarms. samples: precision, recall and the like.

    Example: halikit evaluate runs/digits-l3 --metric reconstruction --scale fit
    """
    import torch

    from halikit.cli import measures

    common.check_writable(out)

    model, config, trained = common.open_run(run, weights, device)
    loaded = common.open_data(config, data)
    part = loaded.test if test else loaded.held_out
    generator = torch.Generator(model.hierarchy.prior.device).manual_seed(seed)
    asked = measures.Asked(_stood(model, trained), loaded, part, n, classifier, scale, features, generator, seed)
    measure = {
        Metric.LABELS: measures.labels,
        Metric.RECONSTRUCTION: measures.reconstruction,
        Metric.HEALTH: measures.health,
        Metric.SAMPLES: measures.samples,
    }[metric]
    found = measure(asked)
    common.present(
        run,
        f"evaluate-{metric.value}",
        found.title,
        lines=found.lines,
        values={"run": str(run), "weights": weights, "seed": seed} | found.values,
        picture=found.picture,
        out=out,
        as_json=as_json,
    )


def _stood(model: Model, level: int) -> Model:
    """The levels of a model that are trained."""
    from dataclasses import replace

    if level == len(model.hierarchy):
        return model
    return replace(model, hierarchy=model.hierarchy[:level], discriminator=model.discriminator[:level])
