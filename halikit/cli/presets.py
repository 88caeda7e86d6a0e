"""``halikit presets``: list and print the presets."""

from __future__ import annotations

from typing import Annotated

import typer

from halikit.cli import common


def presets(
    name: Annotated[str | None, typer.Argument(help="Preset to print as TOML.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """List the presets, or print one as TOML. Comments give the source of each setting of the paper's presets.

    Example: halikit presets digits > mine.toml
    """
    from rich.table import Table

    from halikit.config import to_toml
    from halikit.presets import PRESETS, comments, preset

    if name is not None:
        config = preset(name)
        if as_json:
            common.print_json(config.model_dump(mode="json"))
        else:
            print(to_toml(config, comments(name)), end="")
        return
    about = {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in PRESETS.items()}
    if as_json:
        common.print_json(about)
        return
    table = Table("preset", "levels", "data", "what it is", box=None)
    for name, line in about.items():
        config = preset(name)
        table.add_row(name, str(config.model.levels), config.data.spec, line)
    common.console().print(table)
