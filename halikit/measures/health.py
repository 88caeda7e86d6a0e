"""``halikit evaluate health``: what each latent is used for, and where the two joints differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halikit.measures.shared import OnTest, measured_part

if TYPE_CHECKING:
    from halikit.analysis.health import LevelHealth
    from halikit.runs.run import Result, Run

__all__ = ["health"]


def health(
    run: Run,
    *,
    number: Annotated[int, typer.Option("-n", "--number", min=16, help="Number of held-out data to use.")] = 2000,
    test: OnTest = False,
    seed: int = 0,
) -> Result:
    """Examine what each latent is used for and where the two joints differ, and raise alarms.

    Example: halikit evaluate health runs/digits
    """
    from dataclasses import asdict

    from halikit import plotting
    from halikit.analysis.health import examine
    from halikit.runs.run import Result

    part = measured_part(run, test, number)
    x = run.batch(part)
    found = examine(run.conditioned(part), x, seed=seed)
    lines = [f"on {len(x):,} held-out data"]
    lines += [line for level in found.levels for line in _lines(level)]
    lines += [
        f"x   D_JS of data and samples   {found.data.js_bound}, p-value {found.data.p_value:.2g}",
        f"    distance between samples   {found.spread:.3f} of that between data (estimate)",
    ]
    lines += [f"ALARM  {alarm}" for alarm in found.alarms] or ["no alarm"]
    picture = plotting.as_picture(plotting.health(found))
    return Result("evaluate-health", "Health", {"number": len(x)} | asdict(found), lines, picture)


def _lines(level: LevelHealth) -> list[str]:
    name = level.name
    return [
        f"{name}  information on x         {level.information or 'none: it takes 256 data'}",
        f"    error from {name}            {level.error}",
        f"    from another datum's       {level.error_shuffled}",
        f"    entries that hardly vary   {level.dead:.1%} (estimate)",
        f"    recovered from samples     {level.recovery:.3f} in one step, {level.recovery_from_x:.3f} from x; "
        f"error of the decoder {level.decoder_use:.3g} times as large with another sample's {name} (estimates)",
        f"    D_JS of q({name}), p({name})     {level.aggregate.js_bound}, p-value {level.aggregate.p_value:.2g}",
        f"    D_JS of the pair below     {level.pair.js_bound}, p-value {level.pair.p_value:.2g}",
    ]
