"""The command line. Importing it, and printing help, needs no torch."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings

import typer

from halikit.cli import (
    benchmark,
    common,
    data,
    encode,
    evaluate,
    explore,
    export,
    innovate,
    inpaint,
    inspect,
    interpolate,
    neighbours,
    presets,
    propositions,
    reconstruct,
    report,
    sample,
    share,
    train,
    traverse,
)
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
    quiet: bool = typer.Option(False, "--quiet", help="Print results and complaints only: no plan, no progress."),
    verbose: bool = typer.Option(False, "--verbose", help="Print the warnings of libraries as well."),
) -> None:
    """Train and use hierarchies of latent variables by adversarially learned inference."""


for _module in (
    train,
    sample,
    reconstruct,
    inpaint,
    traverse,
    innovate,
    interpolate,
    neighbours,
    encode,
    evaluate,
    export,
    report,
    explore,
    inspect,
    presets,
    propositions,
    benchmark,
    data,
    share,
):
    _module.register(app)


_ANYWHERE = ("--debug", "--quiet", "--verbose")


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a bug in halikit, 2 bad usage or input, 3 diverged, 4 out of resources,
    130 and 143 interrupted.
    """
    _make_printable()
    # Wherever they stand: the advice to add --debug comes after a failed command.
    debug, quiet, verbose = (option in sys.argv for option in _ANYWHERE)
    sys.argv = [argument for argument in sys.argv if argument not in _ANYWHERE]
    common.hush(quiet)
    if not verbose and not sys.warnoptions:
        # Behind the filters that are there, so that those of a test go first.
        warnings.filterwarnings("ignore", append=True)
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message()
        # Without arguments the help has been printed, and there is nothing to complain of.
        code = _complain(f"{message}\nsee: {_typed(error)} --help", error.exit_code) if message else error.exit_code
    except HalikitError as error:
        if debug:
            raise
        code = _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has left; Python must not complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        shortage = _shortage(error)
        code = (
            _complain(shortage, 4)
            if shortage
            else _complain(
                f"this is a bug in halikit: {type(error).__name__}: {error}\nrun again as: halikit --debug …", 1
            )
        )
    sys.exit(code)


def _typed(error: typer.TyperException) -> str:
    """The command that was used badly, as one types it."""
    context = getattr(error, "ctx", None)
    return "halikit" + (context.command_path.removeprefix(context.find_root().command_path) if context else "")


def _make_printable() -> None:
    """Let output go nowhere where it is closed, and write ``?`` for what the locale cannot."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _shortage(error: Exception) -> str | None:
    """What ran out, if that is what an error is about; torch's are recognised without importing it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk: {error.filename or error}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return "out of memory; try a smaller training.batch_size, model.hidden or discriminator.width"
    return None


def _complain(message: str, code: int) -> int:
    print(f"halikit: {common.printable(message)}", file=sys.stderr)
    return code
