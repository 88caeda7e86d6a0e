"""``halikit export``: encoder and decoder as files that run without halikit."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from halikit.cli import common


class Format(StrEnum):
    """A kind of file."""

    ONNX = "onnx"
    PT2 = "pt2"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Use a model")(export)


def export(
    run: common.RunArgument,
    format: Annotated[Format, typer.Option(help="onnx, or pt2 as torch.export.load reads it.")] = Format.ONNX,
    weights: common.Weights = "averaged",
    out: Annotated[
        Path | None, typer.Option(help="Directory to write to; by default export/ in the run.", show_default=False)
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Write the encoder (x to the means of all levels) and a decoder for each level (z to x), for batches of any size.

    Each file is run again and compared with the model. ONNX needs the extra: pip install 'halikit[onnx]'.

    Example: halikit export runs/digits --format pt2 --out exported
    """
    from halikit.runs.export import export as export_to

    common.check_writable(out)
    model, _ = common.open_run(run, weights, "cpu")
    directory = out or common.directory_of(run) / "export"
    files = export_to(model.hierarchy, directory, format=format.value)
    if as_json:
        listed = [
            {"path": str(f.path), "given": f.given, "gives": list(f.gives), "difference": f.difference} for f in files
        ]
        common.print_json({"format": format.value, "path": str(directory), "files": listed})
        return
    for file in files:
        gives = ", ".join(file.gives)
        said = f"{file.path.name}: {file.given} to {gives}; at most {file.difference:.1e} off the model (estimate)"
        common.console().print(said, markup=False)
    common.report_path(directory)
