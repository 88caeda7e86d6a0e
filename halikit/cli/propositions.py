"""``halikit propositions``: check the paper's propositions numerically (sections 3.2 and A.2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.analysis.propositions import Case


def propositions(
    count: Annotated[
        int, typer.Option("-n", "--number", min=1, help="Number of random hierarchies of each kind.")
    ] = 200,
    levels: Annotated[int, typer.Option(min=1, max=6, help="Largest number of levels.")] = 3,
    show: Annotated[int, typer.Option(min=0, help="Number of hierarchies of each kind to print.")] = 2,
    seed: common.Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Picture to write.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """Check Propositions 1 and 2, their underlying identity and both lemmas on random hierarchies; needs no run.

    Example: halikit propositions --out propositions.png
    """
    from dataclasses import asdict

    from halikit import plotting
    from halikit.analysis.propositions import examine, verdicts

    common.check_writable(out)
    cases = examine(count, levels, seed=seed)
    checked = verdicts(cases)
    if out is not None:
        plotting.save_png(out, plotting.as_picture(plotting.propositions(cases)))
    if as_json:
        common.print_json(
            {
                "hierarchies": len(cases),
                "verdicts": [verdict._asdict() for verdict in checked],
                "cases": [asdict(case) for case in cases[: 3 * show]],
                "path": None if out is None else str(out),
            }
        )
        return
    say = common.console().print
    for number, case in enumerate(cases[: 3 * show]):
        say(f"{case.kind} hierarchy {number // 3 + 1}, nats", markup=False)
        for line in _sides(case):
            say(line, markup=False)
    say(f"over {count} hierarchies of each kind ({', '.join(dict.fromkeys(case.kind for case in cases))})")
    for verdict in checked:
        say(
            f"  {verdict.name:24} {verdict.statement:52} {verdict.checked:>5,} checked, "
            f"{verdict.violations} violated, tightest {verdict.tightest:.2e}",
            markup=False,
        )
    if out is not None:
        common.report_path(out)


def _sides(case: Case) -> list[str]:
    head = ("level", "E[L]", "H(x|z)", "KL pair", "KL z", "K", "D_JS", "K D_JS", "E[L]-H")
    lines = ["  " + "".join(f"{name:>11}" for name in head)]
    for term in case.terms:
        numbers = (
            term.error.value,
            term.entropy.value,
            term.kl_pair.value,
            term.kl_latent.value,
            term.constant,
            term.js_joint.value,
            term.constant * term.js_joint.value,
            term.error.value - term.entropy.value,
        )
        lines.append("  " + f"{term.level:>11}" + "".join(f"{number:>11.4g}" for number in numbers))
    return lines
