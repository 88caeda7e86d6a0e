"""``report.html``: a run in one self-contained file, made of what lies in its directory."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from halikit import plotting
from halikit.config import to_toml
from halikit.runs.run import Finding, Run
from halikit.utils.files import write_atomically

__all__ = ["write_report"]


# Titles of the pictures that training writes.
_GRIDS = {"reconstructions": "Held-out data and their reconstructions", "samples": "Samples"}
# The note below the table of levels.
_ON_LEVELS = (
    "Errors are means over held-out data along the conditional means. The recovery of a latent, at most 1, is "
    "measured on the decoder’s own samples. All are estimates."
)


def write_report(run: Run) -> Path:
    """Write ``report.html`` from the settings, the metrics, the latest grids and the findings of a run.

    Args:
        run: The run.

    Returns:
        The file.

    Raises:
        InputError: If this is not a run directory, or a file of it is damaged.
    """
    _ = run.settings  # what is not a run is refused first
    parts = [
        _summary(run),
        _curves(run),
        _latest_grids(run),
        *(_about(run, each) for each in run.findings()),
        _settings(run),
    ]
    page = _PAGE.format(title=escape(run.path.resolve().name), style=_STYLE, body="\n".join(filter(None, parts)))
    run.make(run.path)
    write_atomically(run.report_file, page)
    return run.report_file


def _summary(run: Run) -> str:
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
    columns = {
        "error": "root mean square error per element",
        "embedded": "embedded distance (Eq. 8)",
        "recovery": "recovered in one step",
        "recovery_from_x": "recovered from x",
    }
    names = [name.removeprefix("error_") for name in metrics if name.startswith("error_")]
    measured = {title: [_last(metrics.get(f"{kind}_{name}", [])) for name in names] for kind, title in columns.items()}
    measured = {title: values for title, values in measured.items() if any(value is not None for value in values)}
    rows = [
        [name, *("" if values[i] is None else f"{values[i]:.4g}" for values in measured.values())]
        for i, name in enumerate(names)
    ]
    table = _table(["level", *measured], rows) if measured else ""
    note = f"<p>{_ON_LEVELS}</p>" if table else ""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<h1>{escape(run.path.resolve().name)}</h1><dl>{listed}</dl>{table}{note}"


def _curves(run: Run) -> str:
    if not run.metrics_file.exists():
        return ""
    drawn = sorted(run.figures_folder.glob("training-*.svg"))
    # Drawing takes longer than all the rest, and curves change only while a run trains.
    if not drawn or drawn[0].stat().st_mtime < run.metrics_file.stat().st_mtime:
        drawn = _draw_curves(run)
    images = "".join(_image(path.read_bytes(), "image/svg+xml", path.stem.replace("-", " ")) for path in drawn)
    return f'<h2>Training</h2><div class="curves">{images}</div>' if images else ""


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


def _latest_grids(run: Run) -> str:
    parts = []
    for what, path in run.grids().items():
        step = int(path.stem.rpartition("-")[2])
        image = _image(path.read_bytes(), "image/png", _GRIDS[what])
        parts.append(f"<h2>{_GRIDS[what]}</h2><p>Averaged weights, step {step:,}.</p>{image}")
    return "".join(parts)


def _about(run: Run, finding: Finding) -> str:
    picture = run.picture_of(finding)
    image = _image(picture.read_bytes(), "image/png", finding.title) if picture.is_file() else ""
    text = f"<pre>{escape(chr(10).join(finding.lines))}</pre>" if finding.lines else ""
    return f"<h2>{escape(finding.title)}</h2>{image}{text}<pre class='command'>$ {escape(finding.command)}</pre>"


def _settings(run: Run) -> str:
    text = escape(to_toml(run.settings) if run.is_shipped else run.config_file.read_text("utf-8"))
    return f"<h2>Settings</h2><details><summary>config.toml</summary><pre>{text}</pre></details>"


def _last(values: Iterable[float]) -> float | None:
    measured = [value for value in values if value == value]
    return measured[-1] if measured else None


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table>{row(head, "th")}{body}</table></div>'


def _image(content: bytes, kind: str, description: str) -> str:
    source = f"data:{kind};base64,{b64encode(content).decode()}"
    return f'<div class="picture"><img alt="{escape(description)}" src="{source}"></div>'


_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { opacity: .7; }
dd { margin: 0; overflow-wrap: anywhere; }
.picture { overflow-x: auto; min-width: 0; }
.picture img { display: block; max-width: max(100%, 40rem); height: auto; background: white; }
.curves img { max-width: 100%; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid; font-weight: 600; }
pre { font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.command { opacity: .75; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
