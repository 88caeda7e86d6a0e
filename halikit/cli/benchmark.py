"""``halikit benchmark``: measure the speed of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.benchmark.steps import Benchmark, Share


def benchmark(
    preset: Annotated[str, typer.Option(help="Preset with the networks and the batch size.")] = "digits",
    rounds: Annotated[int, typer.Option(min=3, help="Number of turns of each implementation.")] = 20,
    assignments: common.Assignments = None,
    as_json: common.Json = False,
) -> None:
    """Time a training step, compared with a textbook loop and with the speed of the machine.

    All are timed in turns within one run. The time of halikit's step includes the averaging of weights.

    Example: halikit benchmark --preset digits
    """
    from dataclasses import asdict

    import torch

    from halikit.benchmark.steps import peak_memory, profile_step, time_steps
    from halikit.cli.train import chosen_config, with_data_shape
    from halikit.config import override, parse_assignments
    from halikit.errors import InputError
    from halikit.model import build

    config = with_data_shape(override(chosen_config(preset=preset), parse_assignments(assignments or [])))
    if config.model.conditional:
        raise InputError("the textbook loop knows no context: benchmark a model without model.conditional")
    torch.manual_seed(0)
    model = build(config)
    result, shares = time_steps(model, rounds=rounds), profile_step(model)[:12]
    memory = {"textbook": peak_memory(config, of_yardstick=True), "halikit": peak_memory(config)}
    if as_json:
        common.print_json(
            {"preset": preset, **asdict(result), "profile": list(map(asdict, shares)), "peak_memory": memory}
        )
        return
    _print(result, shares, memory)


def _print(result: Benchmark, shares: Sequence[Share], memory: Mapping[str, int]) -> None:
    from rich.table import Table

    out = common.console()
    table = Table("step", box=None, pad_edge=False)
    for title in ("threads", "ms", "images/s", "times the first", "GFLOP", "GFLOP/s", "of the matrix rate"):
        table.add_column(title, justify="right")
    for timing in result.timings:
        table.add_row(
            timing.name,
            str(timing.threads),
            f"{1000 * timing.seconds:.1f}",
            f"{timing.images_per_second:,.0f}",
            f"{timing.ratio:.2f}",
            f"{timing.flop / 1e9:.2f}",
            f"{timing.flop_per_second / 1e9:.1f}",
            f"{timing.rate_fraction:.0%}",
        )
    out.print(table)
    out.print()
    for machine in result.machine:
        out.print(
            f"this machine, threads {machine.threads}: {machine.flop_per_second / 1e9:.1f} GFLOP/s by large matrices, "
            f"{machine.bytes_per_second / 1e9:.1f} GB/s by a large copy"
        )
    out.print(
        f"floor of halikit's step: {1000 * result.seconds_for_arithmetic:.1f} ms of arithmetic, "
        f"{1000 * result.seconds_for_bytes:.1f} ms for the {result.bytes / 1e6:,.0f} MB that it moves at least"
    )
    out.print(f"peak memory: {', '.join(f'{name} {size / 2**20:,.0f} MiB' for name, size in memory.items())}")
    table = Table("halikit's step, by operation", box=None, pad_edge=False)
    for title in ("share of its time", "calls a step"):
        table.add_column(title, justify="right")
    for share in shares:
        table.add_row(share.operation, f"{share.share:.1%}", f"{share.calls:.0f}")
    out.print()
    out.print(table)
