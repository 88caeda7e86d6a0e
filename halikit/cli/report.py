"""``halikit report``: a run in one file that a browser opens."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run


class _Figure(NamedTuple):
    """A result for the report: the command that would make it, and the function behind that command."""

    command: list[str]
    function: Callable[..., Result]
    options: dict[str, Any]


def report(
    run: common.RunArgument,
    make_all: Annotated[bool, typer.Option("--all", help="Make every figure first; takes minutes.")] = False,
    as_json: common.Json = False,
) -> None:
    """Write report.html: settings, curves, grids, errors per level, and the results of commands on the run.

    Example: halikit report runs/digits-l3 --all
    """
    from halikit.runs.report import write_report

    opened = common.open_run(run, device="auto")
    # First, so that a directory that is not a run is refused before anything is made.
    path = write_report(opened)
    made = _make_all(opened) if make_all else []
    if as_json:
        common.print_json({"path": str(path), "made": made})
    else:
        common.report_path(path)


def _make_all(run: Run) -> list[str]:
    """Make every figure; returns the commands that would make them, as one types them."""
    figures, made = list(_figures(run)), []
    with common.progress("making figures") as advance:
        for done, figure in enumerate(figures):
            advance(done, len(figures))
            name, *options = figure.command
            words = [*name.split(), str(run.given), *options]
            result = common.with_context([run], figure.function(run, **figure.options))
            common.keep(run, result, shlex.join(["halikit", *words]))
            made.append(shlex.join(words))
    return made


def _figures(run: Run) -> Iterator[_Figure]:
    from halikit.cli.innovate import innovate
    from halikit.cli.inpaint import inpaint
    from halikit.cli.interpolate import interpolate
    from halikit.cli.neighbours import neighbours
    from halikit.cli.reconstruct import reconstruct
    from halikit.cli.sample import sample
    from halikit.cli.traverse import traverse
    from halikit.measures.classes import classes
    from halikit.measures.health import health
    from halikit.measures.labels import labels
    from halikit.measures.reconstruction import reconstruction
    from halikit.measures.samples import samples
    from halikit.plotting import is_drawable

    for measure in (reconstruction, health, samples):
        yield _Figure([f"evaluate {measure.__name__}"], measure, {})
    if run.data.train.labels is not None and run.data.held_out.labels is not None:
        yield _Figure(["evaluate labels"], labels, {})
    if run.config.model.conditional == "labels":
        yield _Figure(["evaluate classes"], classes, {})
    if not is_drawable(run.hierarchy.spaces[0].shape):
        return
    yield _Figure(["reconstruct"], reconstruct, {})
    yield _Figure(["reconstruct", "--draws", "3"], reconstruct, {"draws": 3})
    for function in (sample, inpaint, interpolate, neighbours):
        yield _Figure([function.__name__], function, {})
    for level in range(len(run.hierarchy), 0, -1):
        yield _Figure(["traverse", "--level", str(level)], traverse, {"level": level})
    for level in range(len(run.hierarchy), 1, -1):
        yield _Figure(["innovate", "--level", str(level)], innovate, {"level": level})
