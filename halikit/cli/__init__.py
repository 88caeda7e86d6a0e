"""The command line. Importing it, and printing help, needs no torch."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable

import typer

from halikit.cli import common, data, evaluate
from halikit.cli.benchmark import benchmark
from halikit.cli.encode import encode
from halikit.cli.explore import explore
from halikit.cli.export import export
from halikit.cli.fit_prior import fit_prior
from halikit.cli.innovate import innovate
from halikit.cli.inpaint import inpaint
from halikit.cli.inspect import inspect
from halikit.cli.interpolate import interpolate
from halikit.cli.neighbours import neighbours
from halikit.cli.presets import presets
from halikit.cli.propositions import propositions
from halikit.cli.reconstruct import reconstruct
from halikit.cli.report import report
from halikit.cli.run_command import run_command
from halikit.cli.sample import sample
from halikit.cli.share import pull, push
from halikit.cli.train import train
from halikit.cli.traverse import traverse
from halikit.errors import HalikitError

__all__ = ["app", "main"]

app = typer.Typer(
    name="halikit",
    help="Train and use hierarchies of latent variables by adversarially learned inference.",
    epilog="Start with: halikit train --levels 3",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show a traceback when something goes wrong."),
    quiet: bool = typer.Option(False, "--quiet", help="Print results, warnings and errors only: no plan, no progress."),
    verbose: bool = typer.Option(False, "--verbose", help="Print the warnings of libraries as well."),
) -> None:
    """Train and use hierarchies of latent variables by adversarially learned inference."""


_USE, _LOOK = "Use a model", "Look"
app.command(rich_help_panel="Train")(train)
for _function in (sample, reconstruct, inpaint, traverse, innovate, interpolate, neighbours):
    app.command(rich_help_panel=_USE)(run_command(_function))
app.add_typer(evaluate.app, name="evaluate", rich_help_panel=_USE)
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    _USE: (encode, export, fit_prior),
    _LOOK: (report, explore, inspect, presets, propositions, benchmark),
    "Share": (push, pull),
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(data.app, name="data", rich_help_panel=_LOOK)


_ANYWHERE = ("--debug", "--quiet", "--verbose")


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a bug in halikit, 2 bad usage or input, 3 diverged, 4 out of resources,
    130 and 143 interrupted.
    """
    _prepare_streams()
    # Anywhere on the line, because one adds --debug to a command that has failed.
    debug, quiet, verbose = (option in sys.argv for option in _ANYWHERE)
    sys.argv = [argument for argument in sys.argv if argument not in _ANYWHERE]
    common.hush(quiet)
    if not verbose and not sys.warnoptions:
        # After existing filters, so that those of a test come first.
        warnings.filterwarnings("ignore", append=True)
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "")
        # Without arguments the help has been printed, which is no error.
        code = _print_error(f"{message}\nsee: {_typed(error)} --help", error.exit_code) if message else error.exit_code
    except HalikitError as error:
        if debug:
            raise
        code = _print_error(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _print_error("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has closed it; Python must not raise again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        shortage = _shortage(error)
        code = (
            _print_error(shortage, 4)
            if shortage
            else _print_error(
                f"this is a bug in halikit: {type(error).__name__}: {error}\nrun again as: halikit --debug …", 1
            )
        )
    sys.exit(code)


def _typed(error: typer.TyperException) -> str:
    """The command that was misused, as one types it."""
    context = getattr(error, "ctx", None)
    return "halikit" + (context.command_path.removeprefix(context.find_root().command_path) if context else "")


def _prepare_streams() -> None:
    """Drop output where a stream is closed, and write ``?`` for characters that the locale does not have."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _shortage(error: Exception) -> str | None:
    """The resource that ran out, if that is the cause of an error; torch is not imported to recognise its errors."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk: {error.filename or error}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return "out of memory; try a smaller training.batch_size, model.hidden or discriminator.width"
    return None


def _print_error(message: str, code: int) -> int:
    print(f"halikit: {common.terminal_safe(message)}", file=sys.stderr)
    return code
