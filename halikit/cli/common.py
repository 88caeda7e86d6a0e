"""Options and functions that the commands share: consoles, output, opening of runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from halikit.runs.run import Result, Run

RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run directory, or digits or mnist for a model that is part of halikit.",
        show_default=False,
    ),
]
RunsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN", help="Run directories, or digits and mnist for the shipped models.", show_default=False
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="File to write; by default the result goes into the run's report.", show_default=False),
]
TableOut = Annotated[Path | None, typer.Option(help="File to write the result to.", show_default=False)]
Data = Annotated[str | None, typer.Option(help="Data to use instead of the run's own: digits, mnist:DIR, folder:DIR.")]
Class = Annotated[
    str | None,
    typer.Option(
        "--class",
        help="Class that a conditional model is given, by name or number, instead of the classes of the data.",
        show_default=False,
    ),
]
Attribute = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        metavar="NAME=0|1",
        help="Attribute that a conditional model is given, such as Smiling=1; may be repeated. The others are those of "
        "the data.",
        show_default=False,
    ),
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any setting; may be repeated.")
]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Weights = Annotated[str, typer.Option(help="averaged or raw.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continue without output if its reader has ended, so that the command still writes its files."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


_hushed = False
_is_in_progress = False


def hush(quiet: bool) -> None:
    """Print only results, warnings and errors from now on if ``quiet``, else everything."""
    global _hushed
    _hushed = quiet


def is_hushed() -> bool:
    """Whether only results, warnings and errors are printed."""
    return _hushed


def console(stderr: bool = False) -> Console:
    """A console on stdout or stderr; its lines are wrapped on a terminal only."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty())


def narrator(stderr: bool = False) -> Console:
    """A console for plans, progress and hints, which ``--quiet`` turns off."""
    narrating = console(stderr)
    narrating.quiet = _hushed
    return narrating


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object."""
    # Flushed, because a program may wait for the object while the command runs on.
    print(json.dumps(values, ensure_ascii=False), flush=True)


def terminal_safe(text: str) -> str:
    """The text with control characters replaced by ``?``."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    console(stderr=True).print(f"halikit: {terminal_safe(message)}", markup=False, style="yellow")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr with the time left, if stderr is a terminal. Nested bars are not shown.

    Yields:
        Function to call with (done, total).
    """
    from rich.progress import Progress

    global _is_in_progress
    out = console(stderr=True)
    is_within, _is_in_progress = _is_in_progress, True
    try:
        with Progress(console=out, disable=is_within or _hushed or not out.is_terminal, transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        _is_in_progress = is_within


def report_path(path: Path) -> None:
    """Print the path of the result, as the last line of a command."""
    console().print(str(path), markup=False)


def open_run(
    path: Path,
    weights: str = "averaged",
    device: str = "cpu",
    data: str | None = None,
    class_name: str | None = None,
    attribute: list[str] | None = None,
) -> Run:
    """Open a run for reading.

    Args:
        path: A run directory, a model file in one, or the name of a model that is part of halikit.
        weights: ``averaged`` or ``raw``.
        device: ``auto``, ``cpu`` or ``cuda``.
        data: Spec of data to use instead of the run's own.
        class_name: Class that a conditional model is given, by name or number.
        attribute: Attributes that a conditional model is given, as NAME=0 or NAME=1.

    Raises:
        InputError: If the device is not available, or the model reads no such class or attributes.
    """
    from halikit.hardware.processes import resolve_device
    from halikit.runs.context import Asked
    from halikit.runs.run import Run

    asked = Asked.parse(class_name, attribute or ())
    run = Run(path, weights=weights, device=resolve_device(device), data_spec=data, asked=asked, progress=progress)  # type: ignore[arg-type]
    if asked:
        asked.check(run.config.model, path)
    return run


def with_context(runs: Sequence[Run], result: Result) -> Result:
    """A result that says what conditional models were given, if any of the runs has one."""
    words = list(dict.fromkeys(words for run in runs if (words := run.context_in_words)))
    if not words:
        return result
    lines = [*result.lines, f"context: {'; '.join(words)}"]
    return result._replace(lines=lines, values={"context": "; ".join(words)} | result.values)


def check_writable(out: Path | None, *, takes_npy: bool = False) -> None:
    """Check an output file before any work is done.

    Args:
        out: The file.
        takes_npy: Whether the command writes numbers into a .npy file.

    Raises:
        InputError: If its directory does not exist, or it is a .npy file and the command writes no numbers.
    """
    from halikit.errors import InputError

    if out is not None and not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no directory {out.parent}")
    if is_npy(out) and not takes_npy:
        raise InputError(f"cannot write {out}: halikit sample alone writes numbers to .npy files; give another name")


def is_npy(out: Path | None) -> bool:
    """Whether an output file is for numbers."""
    return out is not None and out.suffix.lower() == ".npy"


def present(run: Run | None, result: Result, *, out: Path | None = None, as_json: bool = False) -> None:
    """Print the result of a command and write it to files.

    Args:
        run: Run in which the result becomes a finding; ``None`` for a comparison of several runs.
        result: The result.
        out: File to write instead: the numbers if it is a .npy file, or else the picture, or else the lines.
        as_json: Whether to print one JSON object.
    """
    path = _written(result, out) if out is not None else _added_to_run(run, result)
    if as_json:
        print_json(result.values | ({"path": str(path)} if result.has_file else {}))
        return
    for line in result.lines:
        # Not wrapped here: a terminal wraps the long lines of a table by itself.
        console().print(line, markup=False, emoji=False, soft_wrap=True)
    if path is not None and result.has_file:
        report_path(path)


def _written(result: Result, out: Path) -> Path:
    from halikit.plotting import save_png
    from halikit.utils.files import npy_bytes, write_atomically

    if result.numbers is not None and is_npy(out):
        write_atomically(out, npy_bytes(result.numbers))
    elif result.picture is None:
        write_atomically(out, "\n".join(result.lines) + "\n")
    else:
        save_png(out, result.picture)
    return out


def _added_to_run(run: Run | None, result: Result) -> Path | None:
    """Write a result to its run, if possible; returns the file of the picture, if there is one."""
    from halikit.errors import InputError

    # A result without a picture creates no run directory.
    if run is None or (result.picture is None and not run.path.is_dir()):
        return None
    try:
        return keep(run, result, command_line())
    except InputError as error:
        # Without a picture, the result can be printed although the run cannot be written to.
        if result.picture is not None:
            raise
        warn(f"not kept in the report: {error}")
        return None


def keep(run: Run, result: Result, command: str) -> Path | None:
    """Write a result to a run as a finding, and update the report if the run is complete.

    Returns:
        The file of the picture, if there is one.
    """
    from halikit.runs.report import write_report

    path = run.keep(result, command)
    if run.is_complete:
        write_report(run)
    return path


def fresh(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, … that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def command_line() -> str:
    """The command line as it was typed, without ``--json``."""
    return shlex.join(["halikit", *(argument for argument in sys.argv[1:] if argument != "--json")])
