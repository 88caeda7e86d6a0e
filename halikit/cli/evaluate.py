"""``halikit evaluate``: figures on a trained model."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from halikit.cli import common

if TYPE_CHECKING:
    import torch

    from halikit.data import DataSet, Split
    from halikit.model import Model


class Metric(StrEnum):
    """What to measure."""

    LABELS = "labels"
    RECONSTRUCTION = "reconstruction"


class _Asked(NamedTuple):
    """What is to be measured on."""

    model: Model
    data: DataSet
    part: Split
    number: int
    classifier: str
    scale: str | None
    generator: torch.Generator
    seed: int


class _Found(NamedTuple):
    """What came out, for people and for programs."""

    title: str
    lines: list[str]
    values: dict[str, Any]


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
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """Measure a trained model.

    Labels: how many survive each level and whether samples cover the classes, by a classifier of training data.

    Example: halikit evaluate runs/digits-l3

    Example: halikit evaluate runs/digits-l3 --metric reconstruction --scale fit
    """
    import torch

    model, config, trained = common.open_run(run, weights, device)
    loaded = common.open_data(config, data)
    part = loaded.test if test else loaded.held_out
    generator = torch.Generator(model.hierarchy.prior.device).manual_seed(seed)
    asked = _Asked(_stood(model, trained), loaded, part, n, classifier, scale, generator, seed)
    measure = {Metric.LABELS: _labels, Metric.RECONSTRUCTION: _reconstruction}[metric]
    title, lines, values = measure(asked)
    common.present(
        run,
        f"evaluate-{metric.value}",
        title,
        lines=lines,
        values={"run": str(run), "weights": weights, "seed": seed} | values,
        as_json=as_json,
    )


def _stood(model: Model, level: int) -> Model:
    """The levels of a model that are trained."""
    from dataclasses import replace

    if level == len(model.hierarchy):
        return model
    return replace(model, hierarchy=model.hierarchy[:level], discriminator=model.discriminator[:level])


def _labels(asked: _Asked) -> _Found:
    from dataclasses import asdict
    from typing import cast, get_args

    from halikit.analysis.labels import LabelClassifier, label_scores
    from halikit.errors import InputError

    if asked.classifier not in get_args(LabelClassifier):
        raise InputError(f"--classifier is {' or '.join(get_args(LabelClassifier))}, got {asked.classifier!r}")
    scores = label_scores(
        asked.model.hierarchy,
        asked.data,
        part=asked.part,
        num_samples=asked.number,
        classifier=cast(LabelClassifier, asked.classifier),
        seed=asked.seed,
    )
    shares = "  ".join(
        f"{name} {share:.1%}" for name, share in zip(asked.data.classes, scores.class_shares, strict=True)
    )
    lines = [
        f"labels kept, of {scores.num_held_out:,} held-out images (the images themselves: {scores.reference:.1%})",
        *(f"  level {level}  {kept:.1%}" for level, kept in enumerate(scores.kept, 1)),
        f"classes of {scores.num_samples:,} samples\n  {shares}",
        f"distance to the nearest training image\n  samples {scores.sample_distance:.2f}, "
        f"held-out images {scores.held_out_distance:.2f}",
    ]
    return _Found("Labels kept, classes covered", lines, asdict(scores))


def _reconstruction(asked: _Asked) -> _Found:
    import torch

    from halikit.analysis.quantity import Quantity
    from halikit.analysis.reconstruction import distances, js_bound, reconstruction_error
    from halikit.kernels import NoDensityError

    hierarchy, discriminator = asked.model.hierarchy, asked.model.discriminator
    x = asked.part.batch(torch.arange(min(asked.number, len(asked.part)))).to(hierarchy.prior.device)
    scale, x, fitted = _observation_scale(asked, x)
    levels = range(1, len(hierarchy) + 1)
    found = distances(hierarchy, discriminator, x)
    euclidean = [Quantity.mean(values, "estimate", "per element") for values in found.euclidean]
    embedded = [Quantity.mean(values, "estimate") for values in found.embedded]
    nats: list[Quantity] | None = None
    refusal = None
    try:
        nats = [
            reconstruction_error(hierarchy, x, level, scale=scale, generator=asked.generator).mean for level in levels
        ]
    except NoDensityError as error:
        refusal = str(error)
    bounds = js_bound(hierarchy, discriminator, x, generator=asked.generator)
    lines = [f"on {len(x):,} held-out data", "root mean square of x − x̂"]
    lines += [f"  level {level}  {quantity}" for level, quantity in zip(levels, euclidean, strict=True)]
    lines += ["discriminator-embedded distance (Eq. 8)"]
    lines += [f"  level {level}  {quantity}" for level, quantity in zip(levels, embedded, strict=True)]
    lines += ["E[−log p(x|z_l)] (Eq. 5)" + (f", observation scale {scale:.4g}{fitted}" if scale else "")]
    if nats is None:
        lines += [f"  none: {refusal}", "  (here: --scale fit, or --scale NUMBER)"]
    else:
        lines += [f"  level {level}  {quantity}" for level, quantity in zip(levels, nats, strict=True)]
    names = ["joints"] if len(bounds) == 1 else [f"level {level}" for level in levels]
    lines += ["D_JS of the two joints, from log 2 − L_d/2; at most 0.6931"]
    lines += [f"  {name}  {quantity}" for name, quantity in zip(names, bounds, strict=True)]
    values = {
        "number": len(x),
        "euclidean": [quantity.as_dict() for quantity in euclidean],
        "embedded": [quantity.as_dict() for quantity in embedded],
        "nats": None if nats is None else [quantity.as_dict() for quantity in nats],
        "nats_refused": refusal,
        "observation_scale": scale,
        "js_lower_bounds": [quantity.as_dict() for quantity in bounds],
    }
    return _Found("Reconstruction errors", lines, values)


def _observation_scale(asked: _Asked, x: torch.Tensor) -> tuple[float | None, torch.Tensor, str]:
    """The scale asked for, the data left to measure on, and where the scale is from."""
    from halikit.analysis.reconstruction import fit_observation_scale
    from halikit.errors import InputError

    if asked.scale is None:
        return None, x, ""
    if asked.scale == "fit":
        half = len(x) // 2
        scale = fit_observation_scale(asked.model.hierarchy, x[:half], generator=asked.generator)
        return scale, x[half:], f", fitted on {half:,} others"
    try:
        scale = float(asked.scale)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise InputError(f"--scale takes a positive number or fit, got {asked.scale!r}")
    return scale, x, ""
