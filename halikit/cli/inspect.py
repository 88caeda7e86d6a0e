"""``halikit inspect``: what a run or a preset is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.summary import Part


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(inspect)


def inspect(
    what: Annotated[str, typer.Argument(metavar="RUN|PRESET", help="A run directory or a preset.", show_default=False)],
    as_json: common.Json = False,
) -> None:
    """Print every level's spaces, networks, parameters and cost, and the discriminator's wiring.

    Example: halikit inspect digits
    """
    from dataclasses import asdict
    from pathlib import Path

    from halikit.cli.train import chosen_config, with_data_shape
    from halikit.model import build, load
    from halikit.networks.ladder import describe
    from halikit.presets import PRESETS
    from halikit.summary import summarise

    if what in PRESETS and not Path(what).is_dir():
        model = build(with_data_shape(chosen_config(preset=what)))
    else:
        model = load(what)
    summary = summarise(model)
    parts = {"encoder": summary.encoder, "decoder": summary.decoder, "discriminator": summary.discriminator}
    if as_json:
        described = {
            name: [
                asdict(part) | {"parameters": part.parameters, "multiply_adds": part.multiply_adds} for part in group
            ]
            for name, group in parts.items()
        }
        spaces = {space.name: list(space.shape) for space in summary.spaces}
        common.print_json({"what": what, "levels": len(model.hierarchy), "spaces": spaces, **described})
        return
    out = common.console()
    out.print(str(model.hierarchy), markup=False)
    if model.config is not None:
        out.print(f"ladder  {describe(model.hierarchy.spaces, model.config.model.family)}", markup=False)
    out.print("spaces  " + "  ".join(map(str, summary.spaces)), markup=False)
    for name, group in parts.items():
        for part in group:
            _print_part(name, part)
    modules = model.hierarchy, model.discriminator
    total = sum(parameter.numel() for module in modules for parameter in module.parameters())
    cost = sum(part.multiply_adds for group in parts.values() for part in group)
    out.print(
        f"\nin all  {total:,} parameters; {cost / 1e6:,.2f} M multiply-adds to encode, decode and judge one image "
        "(forward; linear maps and convolutions counted)"
    )


def _print_part(group: str, part: Part) -> None:
    from rich.table import Table

    title = f"{group}  {part.name}" + (f"  {part.kind}" if part.kind else "")
    table = Table(
        "operation", "output", box=None, title=title, title_justify="left", title_style="bold", pad_edge=False
    )
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    for layer in part.layers:
        output = "×".join(map(str, layer.output))
        table.add_row(layer.operation, output, f"{layer.parameters:,}", f"{layer.multiply_adds:,}")
    table.add_row("", "", f"{part.parameters:,}", f"{part.multiply_adds:,}", style="dim")
    out = common.console()
    out.print()
    out.print(table)
