"""The command line. Importing it, and printing help, needs no torch."""

from __future__ import annotations

import os
import sys

import typer

from halikit.cli import benchmark, data, evaluate, inspect, presets, reconstruct, sample, train
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
def options(debug: bool = typer.Option(False, "--debug", help="Show a traceback when something goes wrong.")) -> None:
    """Train and use hierarchies of latent variables by adversarially learned inference."""


for _module in (train, sample, reconstruct, evaluate, inspect, presets, benchmark, data):
    _module.register(app)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a bug in halikit, 2 bad usage or input, 3 diverged, 4 out of resources, 130 interrupted.
    """
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        code = _complain(f"{error.format_message()}\nsee: halikit --help", error.exit_code)
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
    except MemoryError:
        if debug:
            raise
        code = _complain("out of memory; try a smaller training.batch_size", 4)
    except Exception as error:
        if debug:
            raise
        code = _complain(
            f"this is a bug in halikit: {type(error).__name__}: {error}\nrun again as: halikit --debug …", 1
        )
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(f"halikit: {message}", file=sys.stderr)
    return code
