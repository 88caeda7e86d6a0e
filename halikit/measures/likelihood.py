"""``halikit evaluate likelihood``: log p(x) of held-out data, exact or as a lower bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halikit.measures.shared import MostDraws, OnTest, ProposalName, ProposalOption, Scale, observed

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["likelihood"]


def likelihood(
    run: Run,
    *,
    number: Annotated[int, typer.Option("-n", "--number", min=10, help="Number of held-out data to use.")] = 300,
    test: OnTest = False,
    scale: Scale = None,
    proposal: ProposalOption = ProposalName.mixture,
    draws: MostDraws = 4096,
    seed: int = 0,
) -> Result:
    """Measure log p(x) of each datum, in nats: a lower bound from importance sampling of all latents.

    The number of draws and the effective sample size are printed beside it. An effective sample size near 1 means that
    the bound is loose.

    Example: halikit evaluate likelihood runs/digits --scale fit
    """
    import torch

    from halikit.analysis.likelihood import log_likelihood
    from halikit.errors import InputError
    from halikit.kernels import NoDensityError
    from halikit.runs.run import Result

    generator = torch.Generator(run.hierarchy.prior.device).manual_seed(seed)
    seen = observed(run, number, test, scale, generator)
    try:
        with run.progress("drawing latents") as advance:
            found = log_likelihood(
                seen.hierarchy,
                seen.x,
                most=draws,
                proposal=proposal.value,
                scale=seen.scale,
                generator=generator,
                on_progress=advance,
            )
    except NoDensityError as error:
        hint = "" if scale else " (here: --scale fit, or --scale NUMBER)"
        raise InputError(f"{error}{hint}") from None
    lines = [f"on {len(seen.x):,} held-out data", f"E[log p(x)]{seen.text}", f"  {found}"]
    values = {"number": len(seen.x), "observation_scale": seen.scale} | found.as_dict()
    return Result("evaluate-likelihood", "Log-likelihood", values, lines)
