"""``halikit fit-prior``: a new prior for a finished model, fitted to its encoder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.analysis.quantity import Quantity
    from halikit.model import Model
    from halikit.runs.run import Result, Run

__all__ = ["fit_prior"]

# Draws of z_L for each held-out datum.
_DRAWS = 8


class PriorForm(StrEnum):
    """The kind of a fitted prior."""

    MIXTURE = "mixture"
    FLOW = "flow"


def fit_prior(
    run: common.RunArgument,
    out: Annotated[Path, typer.Option(help="Directory of the new run.", show_default=False)],
    kind: Annotated[
        PriorForm, typer.Option(help="mixture of Gaussians, or flow of coupling layers.")
    ] = PriorForm.MIXTURE,
    components: Annotated[
        int | None,
        typer.Option(min=1, help="Components of the mixture; chosen by held-out likelihood if left out."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=2, help="Coupling layers of the flow; 4 if left out.")] = None,
    data: common.Data = None,
    device: common.Device = "auto",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """Fit a prior to the encoder's own z_L, and save the model with it as a new run that every command takes.

    It helps where the encoder's z_L has another distribution than the prior. The printed numbers say whether it does.

    Example: halikit fit-prior digits --kind mixture --out runs/digits-mixture
    """
    from halikit.runs.derived import check_free, write_derived
    from halikit.runs.run import Run

    source, target = common.open_run(run, "averaged", device, data), Run(out)
    check_free(target)
    options = {"components": components, "layers": layers, "seed": seed}
    fitted, raw = _fitted(source, run, kind.value, options)
    write_derived(target, source, raw, fitted.hierarchy)
    result = _compared(source, common.open_run(out, "averaged", device, data), fitted, seed)
    about: dict[str, Any] = {"run": str(run), "out": str(out), "kind": kind.value, "seed": seed}
    result = result._replace(values=about | result.values)
    common.present(target, result, as_json=as_json)
    if not as_json:
        common.report_path(out)


def _fitted(source: Run, path: Path, kind: str, options: dict[str, Any]) -> tuple[Model, Model]:
    """The model with averaged weights and with raw weights: each has a prior of its own, of equal size."""
    from halikit.analysis.fitted_prior import fit
    from halikit.model import has_raw_weights, load

    with common.progress("fitting the prior"):
        fitted = fit(source.model, source.data, kind, **options)  # type: ignore[arg-type]
        if not has_raw_weights(path):
            return fitted, fitted
        assert fitted.config is not None
        if kind == "mixture":
            options = options | {"components": fitted.config.model.prior_components}
        raw = load(path, weights="raw", device=source.device)
        return fitted, fit(raw, source.data, kind, **options)  # type: ignore[arg-type]


def _compared(before: Run, after: Run, fitted: Model, seed: int) -> Result:
    """Held-out density of z_L and quality of samples, under the old prior and under the new one."""
    from halikit.analysis.fitted_prior import log_density, top_draws
    from halikit.analysis.quantity import Quantity
    from halikit.measures.samples import samples
    from halikit.runs.run import Result

    assert fitted.config is not None
    top, settings = before.hierarchy.spaces[-1], fitted.config.model
    size = (
        f"mixture of Gaussians with {settings.prior_components} components"
        if settings.prior == "mixture"
        else f"flow with {settings.prior_layers} coupling layers"
    )
    part = before.data.held_out
    z = top_draws(before.conditioned(part), part, draws=_DRAWS, seed=seed)
    old, new = (
        log_density(hierarchy.prior, z.flatten(0, 1)).reshape(z.shape[:2]).mean(1)
        for hierarchy in (before.hierarchy, fitted.hierarchy)
    )
    densities = {
        "log_prob_before": Quantity.mean(old, "estimate", "nats"),
        "log_prob_after": Quantity.mean(new, "estimate", "nats"),
        "gain": Quantity.mean(new - old, "estimate", "nats"),
    }
    qualities = {
        name: samples(run, seed=seed).values for name, run in (("samples_before", before), ("samples_after", after))
    }
    lines = [
        f"{size}, fitted to draws of q({top.name}|x)",
        f"log p({top.name}) of held-out data under the old prior: {densities['log_prob_before']}",
        f"log p({top.name}) of held-out data under the new prior: {densities['log_prob_after']}",
        f"KL(q({top.name}) ‖ p({top.name})) is smaller by {densities['gain']}",
    ]
    measures = ("precision", "recall", "density", "coverage")
    lines += [
        f"  {name:10} {_number(qualities['samples_before'][name])} -> {_number(qualities['samples_after'][name])}"
        for name in measures
    ]
    sizes = {"components": settings.prior_components if settings.prior == "mixture" else None}
    sizes |= {"layers": settings.prior_layers if settings.prior == "flow" else None}
    values = sizes | {name: _as_json(quantity) for name, quantity in densities.items()}
    values |= {name: {measure: found[measure] for measure in measures} for name, found in qualities.items()}
    return Result("fit-prior", "The fitted prior", values, lines)


def _number(quantity: dict[str, Any]) -> str:
    return f"{quantity['value']:.3f} ± {quantity['standard_error']:.2g}"


def _as_json(quantity: Quantity) -> dict[str, Any]:
    """The attributes by name; a value that is not finite, which JSON does not have, becomes ``None``."""
    import math

    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in quantity.as_dict().items()
    }
