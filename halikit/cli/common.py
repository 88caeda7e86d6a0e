"""What several commands share: consoles, output, opening runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from halikit.config import Config
    from halikit.data import DataSet
    from halikit.model import Model

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
Data = Annotated[str | None, typer.Option(help="Data to use instead of the run's own: digits, mnist:DIR, folder:DIR.")]
Out = Annotated[
    Path | None, typer.Option(help="Picture to write; by default in the run directory.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Weights = Annotated[str, typer.Option(help="averaged or raw.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a reader: what a command writes to files matters more than what it says."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def console(stderr: bool = False) -> Console:
    """A console whose lines are not broken where nobody reads them."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty())


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(values, ensure_ascii=False))


def printable(text: str) -> str:
    """The text with ``?`` for what a terminal would obey instead of showing it."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def warn(message: str) -> None:
    """Say on stderr what a person should know."""
    console(stderr=True).print(f"halikit: {printable(message)}", markup=False, style="yellow")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal's stderr for what takes longer than a moment; yields what is called with (done, total)."""
    from rich.progress import Progress

    out = console(stderr=True)
    with Progress(console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def report_path(path: Path) -> None:
    """Say where something was written: the last line a command prints."""
    console().print(str(path), markup=False)


def open_run(run: Path, weights: str, device: str) -> tuple[Model, Config, int]:
    """The model of a run, its config, and how many levels are trained.

    Raises:
        InputError: If there is no model, or it was not built from a config.
    """
    from halikit.errors import InputError
    from halikit.model import load, trained_level
    from halikit.training.processes import resolve_device

    model = load(run, weights=weights, device=resolve_device(device))  # type: ignore[arg-type]
    if model.config is None:
        raise InputError(f"{run} holds kernels of its author's own, which the command line cannot build; use hk.load")
    return model, model.config, trained_level(run)


def open_data(config: Config, spec: str | None) -> DataSet:
    """The data set given, or the run's own, at the run's size.

    Raises:
        InputError: If it cannot be read or does not fit the model.
    """
    from halikit import data
    from halikit.errors import InputError

    loaded = data.load(spec or config.data.spec, size=config.data.size, strict=config.data.strict)
    if loaded.shape != config.model.data_shape:
        raise InputError(
            f"the model is for data of shape {config.model.data_shape}, but {loaded.spec} has {loaded.shape}"
        )
    return loaded


def written_to(out: Path | None, run: Path, name: str) -> Path:
    """Where a picture goes.

    Raises:
        InputError: If its directory does not exist.
    """
    from halikit.errors import InputError

    path = out or (run if run.is_dir() else run.parent) / name
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no directory {path.parent}")
    return path
