"""``halikit inspect``: the networks of a run or a preset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.analysis.summary import Part, Summary
    from halikit.model import Model


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|PRESET",
            help="A run directory, digits or mnist for a model that is part of halikit, or preset:NAME for a preset.",
            show_default=False,
        ),
    ],
    as_json: common.Json = False,
) -> None:
    """Print spaces, networks, parameters and cost of every level and of the discriminator.

    For a run that has diverged, print the data about the divergence as well. A preset may be named without ``preset:``
    if no run or model has its name.

    Example: halikit inspect digits

    Example: halikit inspect preset:mnist
    """
    from dataclasses import asdict

    import torch

    from halikit.analysis.summary import summarise
    from halikit.cli.train import chosen_config, with_data_shape
    from halikit.model import build, describe, file_of, load, size_of
    from halikit.presets import PRESETS
    from halikit.runs.run import Run

    run = Run(what)
    diverged = run.divergence()
    if diverged and not run.model_file.exists():
        # Training diverged before the first evaluation, so there is no model.
        _print_divergence(diverged, as_json)
        return
    name = what.removeprefix("preset:")
    if name != what or (name in PRESETS and not file_of(what).is_file()):
        config = with_data_shape(chosen_config(preset=name))
        # Only shapes are needed.
        with torch.device("meta"):
            model = build(config)
    else:
        model = load(what)
    summary = summarise(model)
    totals = {
        name: {quantity: sum(getattr(part, quantity) for part in parts) for quantity in ("parameters", "multiply_adds")}
        for name, parts in summary.groups.items()
    }
    if as_json:
        described = {
            name: [
                asdict(part) | {"parameters": part.parameters, "multiply_adds": part.multiply_adds} for part in parts
            ]
            for name, parts in summary.groups.items()
        }
        spaces = {space.name: list(space.shape) for space in summary.spaces}
        about = {"what": what, "levels": len(model.hierarchy), "spaces": spaces, "networks": describe(model)}
        about["size"] = size_of(model)
        common.print_json(about | described | {"totals": totals} | ({"diverged": diverged} if diverged else {}))
        return
    _print_summary(model, summary, totals)
    if diverged:
        common.console().print()
        _print_divergence(diverged)


def _print_summary(model: Model, summary: Summary, totals: dict[str, dict[str, int]]) -> None:
    from halikit.model import describe

    out = common.console()
    out.print(str(model.hierarchy), markup=False)
    out.print("spaces    " + "  ".join(map(str, summary.spaces)), markup=False)
    out.print(f"networks  {describe(model)}", markup=False)
    for name, parts in summary.groups.items():
        for part in parts:
            _print_part(name, part)
    out.print()
    for name, total in totals.items():
        out.print(
            f"{name:13}  {total['parameters']:>11,} parameters  {total['multiply_adds'] / 1e6:>9,.2f} M multiply-adds"
        )
    parameters = sum(total["parameters"] for total in totals.values())
    cost = sum(total["multiply_adds"] for total in totals.values())
    out.print(
        f"in all         {parameters:>11,} parameters  {cost / 1e6:>9,.2f} M multiply-adds to encode, decode and judge "
        "one image (forward; linear maps and convolutions counted)"
    )


def _print_divergence(diverged: dict[str, Any], as_json: bool = False) -> None:
    if as_json:
        common.print_json({"diverged": diverged})
        return
    out = common.console()
    out.print("diverged")
    for name, value in diverged.items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        # The file may come from an untrusted source.
        out.print(common.terminal_safe(f"  {name.replace('_', ' ')}: {text}"), markup=False)


def _print_part(group: str, part: Part) -> None:
    from rich.table import Table

    title = f"{group}  {part.name}" + (f"  {part.kind}" if part.kind else "")
    table = Table(box=None, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for name in ("operation", "kernel", "strides"):
        table.add_column(name, no_wrap=True)
    for name in ("maps", "BN/WN", "dropout"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("nonlinearity", "output"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "multiply-adds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in part.rows:
        table.add_row(
            row.operation,
            row.kernel,
            row.strides,
            "" if row.maps is None else str(row.maps),
            row.norm,
            "" if row.dropout is None else f"{row.dropout:.1f}",
            row.nonlinearity,
            "×".join(map(str, row.output)),
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
        )
    table.add_row(*[""] * 8, f"{part.parameters:,}", f"{part.multiply_adds:,}", style="dim")
    out = common.console()
    out.print()
    # The table may be wider than the terminal, because a narrow table would truncate numbers.
    out.width = max(out.width, out.measure(table, options=out.options.update(width=1000)).maximum)
    out.print(table)
