"""``halikit report``: a run in one file that a browser opens."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.data import DataSet


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(report)


def report(
    run: common.RunArgument,
    make_all: Annotated[bool, typer.Option("--all", help="Make every figure first; minutes.")] = False,
    as_json: common.Json = False,
) -> None:
    """Write report.html: settings, curves, grids, errors per level, and what commands have found, with the commands.

    Example: halikit report runs/digits-l3 --all
    """
    from halikit.runs.report import write_report

    # First, so that what is no run is told before anything is made.
    path = write_report(common.directory_of(run))
    made = _make_everything(run) if make_all else []
    if as_json:
        common.print_json({"path": str(path), "made": made})
    else:
        common.report_path(path)


def _make_everything(run: Path) -> list[str]:
    """Run every command that finds something out about a run; returns them as one types them."""
    from halikit.cli import app

    model, config = common.open_run(run, "averaged", "auto")
    hierarchy = model.hierarchy
    commands = list(_commands(len(hierarchy), common.open_data(config, None), hierarchy.spaces[0].is_image))
    typed = sys.argv
    try:
        with common.progress("making figures") as advance:
            for done, (name, *options) in enumerate(commands):
                advance(done, len(commands))
                # As if it had been typed: a finding says what made it.
                sys.argv = ["halikit", name, str(run), *options]
                with redirect_stdout(io.StringIO()):
                    app(sys.argv[1:], standalone_mode=False)
    finally:
        sys.argv = typed
    return [shlex.join([name, str(run), *options]) for name, *options in commands]


def _commands(levels: int, data: DataSet, has_images: bool) -> Iterator[list[str]]:
    for metric in ("reconstruction", "health", "samples"):
        yield ["evaluate", "--metric", metric]
    if data.train.labels is not None and data.held_out.labels is not None:
        yield ["evaluate"]
    if not has_images:
        return
    yield ["reconstruct"]
    yield ["reconstruct", "--draws", "3"]
    yield ["sample"]
    yield ["inpaint"]
    yield ["interpolate"]
    yield ["neighbours"]
    for level in range(levels, 0, -1):
        yield ["traverse", "--level", str(level)]
    for level in range(levels, 1, -1):
        yield ["innovate", "--level", str(level)]
