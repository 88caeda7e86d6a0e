"""``halikit explore``: a web page on this machine to change latents, paint masks and open images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from halikit.data import DataSet
    from halikit.runs.run import Run


def explore(
    run: common.RunArgument,
    data: common.Data = None,
    class_name: common.Class = None,
    attribute: common.Attribute = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for any free port.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address only; open no browser.")] = False,
    weights: common.Weights = "averaged",
    device: common.Device = "auto",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """Open a web page to change latents of any level, fill in painted regions of images, and open image files.

    The page runs on this machine: other machines cannot open it, and it loads nothing from the network.

    Example: halikit explore digits

    Example: halikit explore runs/digits --no-browser --port 8000
    """
    import webbrowser

    from halikit.analysis.inpainting import mean_image
    from halikit.explore import Explorer, Server

    opened = common.open_run(run, weights, device, data, class_name, attribute)
    loaded = _data(opened)
    fill = None if loaded is None or len(loaded.shape) < 2 else mean_image(loaded.train)
    name, contexts = opened.path.resolve().name, _contexts(opened, loaded)
    explorer = Explorer(opened.hierarchy, name, data=loaded, fill=fill, seed=seed, contexts=contexts)
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


def _contexts(run: Run, data: DataSet | None) -> tuple[Tensor, Tensor] | None:
    """What a conditional model is given: for the held-out data, and for samples."""
    if data is None:
        # Without data, only a class that was asked for is known.
        held_out = drawn = run.conditioned_at_random(1, 0).context
    else:
        held_out, drawn = run.conditioned(data.held_out).context, run.conditioned(data.train).context
    return None if held_out is None or drawn is None else (held_out, drawn)


def _data(run: Run) -> DataSet | None:
    """The data of ``--data``, or else the run's own data if they still exist."""
    from halikit.errors import InputError

    try:
        return run.data
    except InputError as error:
        if run.data_spec is not None:
            raise
        common.warn(f"there are no held-out data to choose from: {error}")
        return None
