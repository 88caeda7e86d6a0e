"""``halikit export``: encoder and decoder in files that run without halikit."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from halikit.cli import common


class ExportFormat(StrEnum):
    """The format of exported files."""

    ONNX = "onnx"
    PT2 = "pt2"


def export(
    run: common.RunArgument,
    format: Annotated[ExportFormat, typer.Option(help="onnx, or pt2 for torch.export.load.")] = ExportFormat.ONNX,
    class_name: common.Class = None,
    weights: common.Weights = "averaged",
    out: Annotated[
        Path | None, typer.Option(help="Directory of the files; by default export/ in the run.", show_default=False)
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Export the encoder (x to the means of all levels) and a decoder for each level (z to x), for any batch size.

    Each file is loaded, run and compared with the model. ONNX needs an extra: pip install 'halikit[onnx]'.

    Example: halikit export runs/digits --format pt2 --out exported
    """
    from halikit.runs.export import export as export_to

    common.check_writable(out)
    opened = common.open_run(run, weights, "cpu", class_name=class_name)
    directory = out or opened.exports_folder
    hierarchy = opened.conditioned_at_random(1, 0) if opened.asked else opened.hierarchy
    files = export_to(hierarchy, directory, format=format.value)
    if as_json:
        listed = [
            {"path": str(f.path), "given": f.given, "gives": list(f.gives), "difference": f.difference} for f in files
        ]
        common.print_json({"format": format.value, "path": str(directory), "files": listed})
        return
    for file in files:
        gives = ", ".join(file.gives)
        line = f"{file.path.name}: {file.given} to {gives}; at most {file.difference:.1e} off the model (estimate)"
        common.console().print(line, markup=False)
    common.report_path(directory)
