"""``halikit explore``: a page on this machine to move latents, paint masks and open images on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.config import Config
    from halikit.data import DataSet


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Look")(explore)


def explore(
    run: common.RunArgument,
    data: common.Data = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for one that is free.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, and open no browser.")] = False,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """Open a page on which you move latents of any level, paint over what is to be filled in, and open images.

    The page is this machine's alone: nobody else can ask for it, and it asks nobody else for anything.

    Example: halikit explore digits

    Example: halikit explore runs/digits --no-browser --port 8000
    """
    import webbrowser

    from halikit.explore import Explorer, Server

    model, config = common.open_run(run, weights, device)
    found = _data(config, data)
    explorer = Explorer(
        model.hierarchy,
        common.directory_of(run).resolve().name,
        data=found,
        fill=None if found is None or len(found.shape) != 3 else common.mean_image(found.train),
        seed=seed,
    )
    with Server(explorer, port, on_error=common.warn) as server:
        common.narrator(stderr=True).print("Ctrl-C ends it; meanwhile the page is at", style="dim")
        if as_json:
            common.print_json({"url": server.url})
        else:
            common.console().print(server.url, markup=False)
        if not no_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _data(config: Config, spec: str | None) -> DataSet | None:
    """The data to pick from: those asked for, or the run's own if they are still there."""
    from halikit.errors import InputError

    try:
        return common.open_data(config, spec)
    except InputError as error:
        if spec is not None:
            raise
        common.warn(f"there are no held-out data to pick from: {error}")
        return None
