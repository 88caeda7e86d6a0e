"""``halikit evaluate recovery``: how much of each latent the encoder recovers from the decoder's samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

__all__ = ["recovery"]


def recovery(
    run: Run,
    *,
    number: Annotated[int, typer.Option("-n", "--number", min=10, help="Number of samples to draw.")] = 2000,
    seed: int = 0,
) -> Result:
    """Measure how much of each latent the encoder recovers from the decoder's own samples. It needs no data.

    R² is 1 where a level is recovered and 0 where it is guessed; for classes it is the share recovered.

    Example: halikit evaluate recovery runs/digits
    """
    from halikit.analysis.quantity import without_nan
    from halikit.analysis.recovery import recovery as measured
    from halikit.runs.run import Result
    from halikit.utils.random import seeded

    hierarchy = run.conditioned_at_random(number, seed)
    with seeded(seed, hierarchy.prior.device):
        found = measured(hierarchy, number)
    lines = [f"R² of latents recovered from {found.num_samples:,} samples (estimates): in one step, from x"]
    lines += [
        f"  {space.name}  {one_step:.3f}  {from_x:.3f}"
        for space, one_step, from_x in zip(hierarchy.spaces[1:], found.in_one_step, found.from_x, strict=True)
    ]
    values = {"recovery": without_nan(found.in_one_step), "recovery_from_x": without_nan(found.from_x)}
    return Result("evaluate-recovery", "Latents recovered", {"num_samples": found.num_samples} | values, lines)
