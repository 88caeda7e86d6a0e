"""``halikit push`` and ``halikit pull``: runs to a hub and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halikit.cli import common


def push(
    run: common.RunArgument,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="What it is called there.", show_default=False)],
    to: Annotated[
        Path | None, typer.Option(help="Write what would be pushed into this folder, and push nothing.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Show a model that is new there to nobody else.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="For the card, such as apache-2.0.", show_default=False)
    ] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Write a new card over the one that is there.")
    ] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Push a run of halikit",
    as_json: common.Json = False,
) -> None:
    """Upload a run to the Hugging Face hub: model, settings, metrics, figures, and a card made of them.

    Log in first: hf auth login. What the card says of licence and limits is yours to complete.

    Example: halikit push runs/digits me/digits --to folder

    Example: halikit push runs/digits me/digits --private
    """
    from halikit.runs import hub

    _quieten()
    if to is not None:
        folder = hub.bundle(run, to, repo=repo, licence=licence)
        common.print_json({"path": str(folder)}) if as_json else common.report_path(folder)
        return
    url = hub.push(run, repo, private=private, licence=licence, replace_card=replace_card, message=message)
    common.print_json({"url": url}) if as_json else common.console().print(url, markup=False)


def pull(
    repo: Annotated[
        str,
        typer.Argument(metavar="USER/NAME", help="A model of the hub, or a folder of push --to.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.", show_default=False)] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """Download a run from the Hugging Face hub into a directory that every command takes for one.

    Nothing that it downloads is executed or unpickled.

    Example: halikit pull me/digits --out runs/theirs
    """
    from halikit.runs import hub

    _quieten()
    path = hub.pull(repo, out or common.fresh(Path("runs") / Path(repo).name), revision=revision)
    common.print_json({"path": str(path)}) if as_json else common.report_path(path)


def _quieten() -> None:
    """No bars of the library's where nobody sees them."""
    if common.console(stderr=True).is_terminal and not common.is_hushed():
        return
    try:
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError:
        return
    disable_progress_bars()
