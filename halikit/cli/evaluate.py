"""``halikit evaluate``: measures on trained models, each from a file of :mod:`halikit.measures`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from halikit.cli.run_command import run_command
from halikit.measures import MEASURES, measure

__all__ = ["app"]


class _Measures(TyperGroup):
    """A group of commands that names all measures where the first word is not one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a measure, or an error that names all measures."""
        if args[0] not in self.commands:
            usage = "halikit evaluate MEASURE RUN"
            ctx.fail(f"{args[0]!r} is not a measure; {usage} takes one of {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Measures, no_args_is_help=True, subcommand_metavar="MEASURE RUN...", help="Measure trained models."
)
for _name in MEASURES:
    app.command()(run_command(measure(_name)))
