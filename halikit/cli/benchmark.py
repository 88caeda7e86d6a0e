"""``halikit benchmark``: how fast a step is."""

from __future__ import annotations

from typing import Annotated

import typer

from halikit.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(benchmark)


def benchmark(
    preset: Annotated[str, typer.Option(help="Whose networks and batch size.")] = "digits",
    rounds: Annotated[int, typer.Option(min=3, help="How often each way of stepping has its turn.")] = 20,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as often as needed.")
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Time a step, interleaved with the loop that one would write oneself, and say where its time goes.

    Example: halikit benchmark --preset digits
    """
    from dataclasses import asdict

    import torch
    from rich.table import Table

    from halikit.benchmark import profile_step, time_steps
    from halikit.cli.train import chosen_config, with_data_shape
    from halikit.config import override, parse_assignments
    from halikit.model import build

    config = with_data_shape(override(chosen_config(preset=preset), parse_assignments(assignments or [])))
    torch.set_num_threads(config.training.threads or torch.get_num_threads())
    torch.manual_seed(0)
    model = build(config)
    timings, shares = time_steps(model, rounds=rounds), profile_step(model)[:12]
    if as_json:
        common.print_json(
            {"preset": preset, "timings": list(map(asdict, timings)), "profile": list(map(asdict, shares))}
        )
        return
    out = common.console()
    table = Table("step", box=None, pad_edge=False)
    for title in ("ms", "images/s", "times the first"):
        table.add_column(title, justify="right")
    for timing in timings:
        cells = f"{1000 * timing.seconds:.1f}", f"{timing.images_per_second:,.0f}", f"{timing.ratio:.2f}"
        table.add_row(timing.name, *cells)
    out.print(table)
    table = Table("the single pass, by operation", box=None, pad_edge=False)
    for title in ("share of its time", "calls a step"):
        table.add_column(title, justify="right")
    for share in shares:
        table.add_row(share.operation, f"{share.share:.1%}", f"{share.calls:.0f}")
    out.print()
    out.print(table)
