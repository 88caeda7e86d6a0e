"""``halikit evaluate reconstruction``: errors of reconstructions from every level (Eqs. 5 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.measures.shared import MostDraws, Observed, OnTest, ProposalName, ProposalOption, Scale, observed

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from halikit.analysis.quantity import Quantity
    from halikit.analysis.reconstruction import ReconstructionError
    from halikit.runs.run import Result, Run

__all__ = ["reconstruction"]

# Data for the errors in nats above level 1, where each takes up to 4,096 draws.
_MOST_ABOVE = 300


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

    The discriminator also gives lower bounds on the divergence of the two joints. Errors in nats above level 1 are
    upper bounds from importance sampling, on the first 300 data at most. The number of draws and the effective sample
    size are printed beside them.

    Example: halikit evaluate reconstruction runs/digits

    Example: halikit evaluate reconstruction runs/digits --scale fit
    """
    import torch

    from halikit.analysis.quantity import Quantity
    from halikit.analysis.reconstruction import distances, js_bound
    from halikit.runs.run import Result

    discriminator = run.model.discriminator
    generator = torch.Generator(run.hierarchy.prior.device).manual_seed(seed)
    seen = observed(run, number, test, scale, generator)
    hierarchy, x = seen.hierarchy, seen.x
    found = distances(hierarchy, discriminator, x)
    euclidean = [Quantity.root_mean_square(each.square(), "estimate", "per element") for each in found.euclidean]
    embedded = [] if found.embedded is None else [Quantity.mean(each, "estimate") for each in found.embedded]
    nats, refusal = _nats(run, seen, proposal, draws, generator)
    bounds = js_bound(hierarchy, discriminator, x, generator=generator) if discriminator else ()
    values = {
        "number": len(x),
        "euclidean": [quantity.as_dict() for quantity in euclidean],
        "embedded": [quantity.as_dict() for quantity in embedded],
        "nats": None if nats is None else [error.as_dict() for error in nats],
        "nats_refused": refusal,
        "observation_scale": seen.scale,
        "js_lower_bounds": [quantity.as_dict() for quantity in bounds],
    }
    lines = [f"on {len(x):,} held-out data", "root mean square error of x̂, over all elements and data"]
    lines += _per_level(euclidean)
    lines += ["discriminator-embedded distance (Eq. 8)" + ("" if embedded else ": none, there is no discriminator")]
    lines += _per_level(embedded)
    lines += [f"E[−log p(x|z_l)] (Eq. 5){seen.text}"]
    hint = [] if scale else ["  (here: --scale fit, or --scale NUMBER)"]
    lines += [f"  none: {refusal}", *hint] if nats is None else _per_level(nats)
    if bounds:
        lines += ["D_JS of the two joints, from log 2 − L_d/2; at most 0.6931"]
        lines += [f"  joints  {bounds[0]}"] if len(bounds) == 1 else _per_level(bounds)
    return Result("evaluate-reconstruction", "Reconstruction errors", values, lines)


def _per_level(quantities: Sequence[Quantity | ReconstructionError]) -> list[str]:
    return [f"  level {level}  {quantity}" for level, quantity in enumerate(quantities, 1)]


def _nats(
    run: Run, seen: Observed, proposal: ProposalName, draws: int, generator: torch.Generator
) -> tuple[list[ReconstructionError] | None, str | None]:
    """The errors in nats from level 1 up; or ``None``, and why a density is missing."""
    from halikit.analysis.reconstruction import reconstruction_error
    from halikit.kernels import NoDensityError

    def error_of(level: int, on_progress: Callable[[int, int], None]) -> ReconstructionError:
        rows = slice(None if level == 1 else _MOST_ABOVE)
        return reconstruction_error(
            seen.hierarchy.rows(rows),
            seen.x[rows],
            level,
            most=draws,
            proposal=proposal.value,
            scale=seen.scale,
            generator=generator,
            on_progress=on_progress,
        )

    found = []
    try:
        for level in range(1, len(run.hierarchy) + 1):
            with run.progress(f"error in nats from level {level}") as advance:
                found.append(error_of(level, advance))
    except NoDensityError as error:
        return None, str(error)
    return found, None
