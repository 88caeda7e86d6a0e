"""``halikit push`` and ``halikit pull``: upload runs to the Hugging Face hub, and download them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halikit.cli import common


def push(
    run: common.RunArgument,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Name of the model on the hub.", show_default=False)],
    to: Annotated[Path | None, typer.Option(help="Write the files into this folder instead of uploading them.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence in the model card, such as apache-2.0.", show_default=False)
    ] = None,
    replace_card: Annotated[bool, typer.Option("--replace-card", help="Replace the model card on the hub.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Push a run of halikit",
    as_json: common.Json = False,
) -> None:
    """Upload a run to the Hugging Face hub: model, settings, metrics, figures, and a model card made from them.

    Log in first: hf auth login. Please complete the licence and the limits in the card.

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
        typer.Argument(metavar="USER/NAME", help="A model on the hub, or a folder of push --to.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.", show_default=False)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """Download a run from the Hugging Face hub into a run directory.

    No downloaded file is executed or unpickled.

    Example: halikit pull me/digits --out runs/theirs
    """
    from halikit.runs import hub

    _quieten()
    path = hub.pull(repo, out or common.fresh(Path("runs") / Path(repo).name), revision=revision)
    common.print_json({"path": str(path)}) if as_json else common.report_path(path)


def _quieten() -> None:
    """Disable the library's progress bars if there is no terminal, or under ``--quiet``."""
    if common.console(stderr=True).is_terminal and not common.is_hushed():
        return
    try:
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError:
        return
    disable_progress_bars()
