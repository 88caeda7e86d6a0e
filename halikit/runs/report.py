"""``report.html``: a run in one self-contained file, made of what lies in its directory."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from halikit import plotting
from halikit.config import to_toml
from halikit.runs.run import Run
from halikit.utils.files import write_atomically

__all__ = ["write_report"]


# Titles of the pictures that training writes.
_GRIDS = {"reconstructions": "Held-out data and their reconstructions", "samples": "Samples"}


def write_report(run: Run) -> Path:
    """Write ``report.html`` from the settings, the metrics, the latest grids and the findings of a run.

    Args:
        run: The run.

    Returns:
        The file.

    Raises:
        InputError: If this is not a run directory, or a file of it is damaged.
    """
    facts = _facts(run)  # what is not a run is refused first
    levels, measured = _levels(run)
    templates = Environment(
        loader=PackageLoader("halikit", "runs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html").render(
        title=run.path.resolve().name,
        facts=facts,
        levels=levels,
        measured=measured,
        curves=_curves(run),
        grids=[
            {"title": _GRIDS[what], "step": f"{int(path.stem.rpartition('-')[2]):,}", "source": _png(path)}
            for what, path in run.grids().items()
        ],
        findings=[
            (each, _png(picture) if (picture := run.picture_of(each)).is_file() else None) for each in run.findings()
        ],
        settings=to_toml(run.settings) if run.is_shipped else run.config_file.read_text("utf-8"),
    )
    run.make(run.path)
    write_atomically(run.report_file, page + "\n")
    return run.report_file


def _facts(run: Run) -> dict[str, str]:
    """What was trained on what, and for how long."""
    config, metrics = run.settings, run.metrics()
    facts = {
        "method": config.training.method,
        "data": config.data.spec,
        "preset": config.preset or "none",
        "levels": str(config.model.levels),
        "steps": f"{config.training.steps:,}, batches of {config.training.batch_size}",
    }
    if config.plays:
        facts["objective"] = config.game.objective.replace("_", " ")
    if metrics["step"]:
        facts["trained"] = f"{metrics['step'][-1]:,.0f} steps in {metrics['seconds'][-1] / 60:.1f} minutes"
    return facts


def _levels(run: Run) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the levels, and by heading what was last measured at each; empty where nothing was."""
    metrics = run.metrics()
    columns = {
        "error": "root mean square error per element",
        "embedded": "embedded distance (Eq. 8)",
        "recovery": "recovered in one step",
        "recovery_from_x": "recovered from x",
    }
    names = [name.removeprefix("error_") for name in metrics if name.startswith("error_")]
    measured = {title: [_last(metrics.get(f"{kind}_{name}", [])) for name in names] for kind, title in columns.items()}
    return names, {title: values for title, values in measured.items() if any(values)}


def _curves(run: Run) -> dict[str, str]:
    """The curves of training by name, for the page."""
    if not run.metrics_file.exists():
        return {}
    drawn = sorted(run.figures_folder.glob("training-*.svg"))
    # Drawing takes longer than all the rest, and curves change only while a run trains.
    if not drawn or drawn[0].stat().st_mtime < run.metrics_file.stat().st_mtime:
        drawn = _draw_curves(run)
    return {path.stem.replace("-", " "): _source(path, "image/svg+xml") for path in drawn}


def _draw_curves(run: Run) -> list[Path]:
    metrics, config = run.metrics(), run.settings
    if len(metrics["step"]) < 2:
        return []
    is_plain = (config.game.objective, config.discriminator.games) == ("jensen_shannon", "joint")
    run.make(run.figures_folder)
    paths = []
    for name, figure in sorted(plotting.training_curves(metrics, has_bound=config.plays and is_plain).items()):
        paths.append(run.figures_folder / f"training-{name}.svg")
        write_atomically(paths[-1], plotting.as_svg(figure))
    return paths


def _last(values: Iterable[float]) -> str:
    measured = [value for value in values if value == value]
    return f"{measured[-1]:.4g}" if measured else ""


def _png(path: Path) -> str:
    return _source(path, "image/png")


def _source(path: Path, kind: str) -> str:
    """A picture as an address that contains it."""
    return f"data:{kind};base64,{b64encode(path.read_bytes()).decode()}"
