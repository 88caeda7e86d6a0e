"""What several commands share: consoles, output, opening runs."""

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
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from halikit.config import Config
    from halikit.data import DataSet, Split
    from halikit.model import Model

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or digits for the model that ships.", show_default=False)
]
Data = Annotated[str | None, typer.Option(help="Data to use instead of the run's own: digits, mnist:DIR, folder:DIR.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Picture to write; by default in the run's figures/ and its report.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Weights = Annotated[str, typer.Option(help="averaged or raw.")]
Noiseless = Annotated[
    bool, typer.Option("--noiseless", help="Samples: the mean of p(x|z1) in place of a draw, as for an autoencoder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


# How many samples or images entries are chosen by that change most: each takes two decodings an entry.
EXAMINED = 16


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on without a reader: what a command writes to files matters more than what it says."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


_hushed = False
_is_in_progress = False


def hush(quiet: bool) -> None:
    """Print results and complaints only, from now on, or everything."""
    global _hushed
    _hushed = quiet


def is_hushed() -> bool:
    """Whether results and complaints alone are printed."""
    return _hushed


def console(stderr: bool = False) -> Console:
    """A console whose lines are not broken where nobody reads them."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty())


def narrator(stderr: bool = False) -> Console:
    """The console for what is no result: plans, progress, hints; mute under ``--quiet``."""
    narrating = console(stderr)
    narrating.quiet = _hushed
    return narrating


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object."""
    # At once: whoever started the command may wait for it while it goes on.
    print(json.dumps(values, ensure_ascii=False), flush=True)


def printable(text: str) -> str:
    """The text with ``?`` for what a terminal would obey instead of showing it."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def warn(message: str) -> None:
    """Say on stderr what a person should know."""
    console(stderr=True).print(f"halikit: {printable(message)}", markup=False, style="yellow")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal's stderr, with the time left, for what takes longer than a moment.

    Within another it shows nothing: a terminal has room for one.

    Yields:
        What is called with (done, total).
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
    """Say where something was written: the last line a command prints."""
    console().print(str(path), markup=False)


def open_run(run: Path, weights: str, device: str) -> tuple[Model, Config]:
    """The model of a run, and its config.

    Raises:
        InputError: If there is no model, or it was not built from a config.
    """
    from halikit.errors import InputError
    from halikit.hardware.processes import resolve_device
    from halikit.model import load

    model = load(run, weights=weights, device=resolve_device(device))  # type: ignore[arg-type]
    if model.config is None:
        raise InputError(f"{run} holds kernels of its author's own, which the command line cannot build; use hk.load")
    return model, model.config


def open_data(config: Config, spec: str | None) -> DataSet:
    """The data set given, or the run's own, at the run's size.

    Raises:
        InputError: If it cannot be read or does not fit the model.
    """
    from halikit import data
    from halikit.errors import InputError

    settings = config.data
    with progress("reading the data") as advance:
        loaded = data.load(spec or settings.spec, size=settings.size, strict=settings.strict, on_progress=advance)
    if loaded.shape != config.model.data_shape:
        raise InputError(
            f"the model is for data of shape {config.model.data_shape}, but {loaded.spec} has {loaded.shape}"
        )
    return loaded


def directory_of(run: Path) -> Path:
    """The run directory, also of a run that is named by its model file; one to be made for the model that ships."""
    return run.parent if run.is_file() else run


def check_writable(out: Path | None) -> None:
    """Refuse a file whose directory does not exist, before any work is done.

    Raises:
        InputError: If it does not.
    """
    from halikit.errors import InputError

    if out is not None and not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no directory {out.parent}")


def present(
    run: Path,
    name: str,
    title: str,
    *,
    lines: Sequence[str] = (),
    values: dict[str, Any],
    picture: NDArray[np.uint8] | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print what a command has found, and keep it: in ``out``, or else in the run's directory and report.

    Args:
        run: The run.
        name: Of the finding's files.
        title: Of its place in the report.
        lines: What it says.
        values: The same for ``--json``; the picture's ``path`` is added.
        picture: ``(height, width, 3)``.
        out: Where the picture goes instead.
        as_json: Whether to print the values instead of the lines.
    """
    from halikit.errors import InputError
    from halikit.plotting import save_png
    from halikit.runs.report import Finding, keep

    path = out
    if out is not None and picture is not None:
        save_png(out, picture)
    # No directory is made for numbers alone.
    elif picture is not None or directory_of(run).is_dir():
        try:
            path = keep(directory_of(run), Finding(name, title, command_line(), lines, values), picture)
        except InputError as error:
            # The figures are what was asked for; a run that cannot be written to has them all the same.
            if picture is not None:
                raise
            console(stderr=True).print(f"not kept in the report: {error}", markup=False)
    if as_json:
        print_json(values | ({"path": str(path)} if picture is not None else {}))
        return
    for line in lines:
        console().print(line, markup=False)
    if path is not None and picture is not None:
        report_path(path)


def fresh(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3``, … that does not exist."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def check_level(run: Path, level: int | None, levels: int, lowest: int = 1) -> None:
    """Refuse a level that a run does not have.

    Raises:
        InputError: Naming those that it has.
    """
    from halikit.errors import InputError

    if level is not None and not lowest <= level <= levels:
        there = f"level {lowest}" if lowest == levels else f"levels {lowest} to {levels}"
        raise InputError(f"there is no level {level} here: {run} has {there}")


def held_out_images(config: Config, spec: str | None, n: int, device: torch.device) -> Tensor:
    """The first ``n`` held-out images, or all if there are fewer, ``(n, C, H, W)``.

    Raises:
        InputError: If the data are no images, or cannot be read.
    """
    import torch

    from halikit.errors import InputError

    part = open_data(config, spec).held_out
    x = part.batch(torch.arange(min(n, len(part)))).to(device)
    if x.dim() != 4:
        raise InputError(f"pictures are made of images, and this model is for data of shape {tuple(x.shape[1:])}")
    return x


def mean_image(part: Split) -> Tensor:
    """The mean of a part, read in batches, ``(C, H, W)``: what missing pixels hold to begin with."""
    import torch

    total = torch.zeros(part.images.shape[1:], dtype=torch.float64)
    for index in torch.arange(len(part)).split(1000):
        total += part.batch(index).cpu().double().sum(0)
    return (total / len(part)).float()


def command_line() -> str:
    """The command as it was typed, but for what only shapes its output."""
    return shlex.join(["halikit", *(argument for argument in sys.argv[1:] if argument != "--json")])


def numbers(option: str, text: str) -> list[float]:
    """Numbers between commas.

    Raises:
        InputError: If these are none.
    """
    from halikit.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes numbers between commas, such as -1,0,1; got {text!r}") from None


def chosen_entries(text: str | None, influence: Tensor, number: int) -> list[int]:
    """The entries of a latent that were asked for, or those that change most.

    Args:
        text: Indices between commas, if any were given.
        influence: ``(entries,)``, by which to choose otherwise.
        number: How many to choose.

    Raises:
        InputError: If there is no such entry.
    """
    from halikit.errors import InputError

    if text is None:
        return influence.topk(min(number, len(influence))).indices.tolist()
    chosen = numbers("--entries", text)
    if not all(entry.is_integer() and 0 <= entry < len(influence) for entry in chosen):
        raise InputError(f"--entries takes indices from 0 to {len(influence) - 1} between commas, got {text!r}")
    return [int(entry) for entry in chosen]
