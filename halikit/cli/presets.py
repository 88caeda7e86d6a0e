"""``halikit presets``: list and print the presets."""

from __future__ import annotations

from typing import Annotated

import typer

from halikit.cli import common


def presets(
    name: Annotated[str | None, typer.Argument(help="Preset to print as TOML.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """List the presets and the sizes of convolutional stacks, or print a preset as TOML.

    Comments in the TOML give the source of each setting of the paper's presets.

    Example: halikit presets digits > mine.toml
    """
    from rich.table import Table

    from halikit.config import to_toml
    from halikit.networks.sizes import SIZES
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
    sizes = Table("--model-size", "channels", "convolutions", "dense units", "units of the discriminator", box=None)
    for size_name, size in SIZES.items():
        sizes.add_row(size_name, *(str(number) for number in size))
    out = common.console()
    out.print(table)
    out.print("\nsizes of convolutional stacks, without a preset: halikit train --levels L --data SPEC")
    out.print(sizes)
