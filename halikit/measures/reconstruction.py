"""``halikit evaluate reconstruction``: errors of reconstructions from every level (Eqs. 5 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.measures.shared import MostDraws, OnTest, ProposalName, ProposalOption, Scale, measured_data

if TYPE_CHECKING:
    import torch

    from halikit.analysis.quantity import Quantity
    from halikit.runs.run import Result, Run

__all__ = ["reconstruction"]


def reconstruction(
    run: Run,
    *,
    number: Annotated[int, typer.Option("-n", "--number", min=10, help="Number of held-out data to use.")] = 2000,
    test: OnTest = False,
    scale: Scale = None,
    proposal: ProposalOption = ProposalName.mixture,
    draws: MostDraws = 4096,
    seed: int = 0,
) -> Result:
    """Measure the reconstruction errors of every level: root mean square, as the discriminator sees them, and in nats.

    The discriminator also gives lower bounds on the divergence of the two joints.

    Example: halikit evaluate reconstruction runs/digits

    Example: halikit evaluate reconstruction runs/digits --scale fit
    """
    import torch

    from halikit.analysis.quantity import Quantity
    from halikit.analysis.reconstruction import distances, js_bound
    from halikit.runs.run import Result

    hierarchy, discriminator = run.hierarchy, run.model.discriminator
    generator = torch.Generator(hierarchy.prior.device).manual_seed(seed)
    observed = _observed(run, measured_data(run, number, test), scale, generator)
    x = observed.x
    found = distances(hierarchy, discriminator, x)
    euclidean = [Quantity.root_mean_square(each.square(), "estimate", "per element") for each in found.euclidean]
    embedded = [] if found.embedded is None else [Quantity.mean(each, "estimate") for each in found.embedded]
    nats, refusal = _nats(run, observed, generator)
    bounds = js_bound(hierarchy, discriminator, x, generator=generator) if discriminator else ()
    values = {
        "number": len(x),
        "euclidean": [quantity.as_dict() for quantity in euclidean],
        "embedded": [quantity.as_dict() for quantity in embedded],
        "nats": None if nats is None else [quantity.as_dict() for quantity in nats],
        "nats_refused": refusal,
        "observation_scale": observed.scale,
        "js_lower_bounds": [quantity.as_dict() for quantity in bounds],
    }
    scale_text = f", observation scale {observed.scale:.4g}{observed.source}" if observed.scale else ""
    lines = [f"on {len(x):,} held-out data", "root mean square error of x̂, over all elements and data"]
    lines += _per_level(euclidean)
    lines += ["discriminator-embedded distance (Eq. 8)" + ("" if embedded else ": none, there is no discriminator")]
    lines += _per_level(embedded)
    lines += [f"E[−log p(x|z_l)] (Eq. 5){scale_text}"]
    lines += [f"  none: {refusal}", "  (here: --scale fit, or --scale NUMBER)"] if nats is None else _per_level(nats)
    if bounds:
        lines += ["D_JS of the two joints, from log 2 − L_d/2; at most 0.6931"]
        lines += [f"  joints  {bounds[0]}"] if len(bounds) == 1 else _per_level(bounds)
    return Result("evaluate-reconstruction", "Reconstruction errors", values, lines)


def _per_level(quantities: Sequence[Quantity]) -> list[str]:
    return [f"  level {level}  {quantity}" for level, quantity in enumerate(quantities, 1)]


def _nats(run: Run, observed: _Observed, generator: torch.Generator) -> tuple[list[Quantity] | None, str | None]:
    """The errors in nats from level 1 up; or ``None``, and why a density is missing."""
    from halikit.analysis.reconstruction import reconstruction_error
    from halikit.errors import InputError
    from halikit.kernels import NoDensityError

    x, scale = observed.x, observed.scale
    levels = range(1, len(run.hierarchy) + 1)
    try:
        found = [reconstruction_error(run.hierarchy, x, level, scale=scale, generator=generator) for level in levels]
    except NoDensityError as error:
        return None, str(error)
    except ValueError as error:
        raise InputError(f"--scale: {error}") from None
    return [error.mean for error in found], None
