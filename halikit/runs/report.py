"""``report.html``: a run in one self-contained file, from what lies in its directory.

Whatever is found out about a run is kept in its ``figures/``: ``NAME.json`` (title, command, text, values) and, where
there is a picture, ``NAME.png``.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halikit import plotting
from halikit.config import Config
from halikit.earlier import read_config
from halikit.errors import InputError
from halikit.runs.run import read_metrics
from halikit.utils.files import read_bounded, write_atomically

__all__ = ["Finding", "keep", "latest_grids", "read_findings", "write_report"]

FILE_NAME = "report.html"
FOLDER = "figures"

# Of the pictures that training writes.
_GRIDS = {"reconstructions": "Held-out data and their reconstructions", "samples": "Samples"}
_MOST_JSON = 2**24
# What the table of levels holds.
_ON_LEVELS = (
    "Errors are means over held-out data along the conditional means. What is recovered of a latent, 1 at most, is "
    "measured on the decoder’s own samples. All are estimates."
)

# The order in which findings are told; others come last, by name.
_ORDER = (
    "train",
    "reconstructions",
    "samples",
    "inpainting",
    "innovation",
    "traversal",
    "interpolation",
    "neighbours",
)


@dataclass(frozen=True)
class Finding:
    """Something found out about a run.

    Attributes:
        name: Of its files; an older one of that name is replaced.
        title: For people.
        command: What made it.
        lines: What it says.
        values: The same for programs, as JSON takes them.
    """

    name: str
    title: str
    command: str
    lines: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


def keep(run: Path, finding: Finding, picture: NDArray[np.uint8] | None = None) -> Path | None:
    """Write a finding into a run's directory, and tell it in the run's report if there is a whole run.

    Args:
        run: The run directory.
        finding: What to keep.
        picture: ``(height, width, 3)``.

    Returns:
        The picture's file, if there is a picture.

    Raises:
        InputError: If the directory cannot be written to.
        ResourceError: If the disk is full.
    """
    folder = _folder(run)
    path = folder / f"{finding.name}.png"
    if picture is not None:
        plotting.save_png(path, picture)
    write_atomically(folder / f"{finding.name}.json", json.dumps(asdict(finding), indent=1, ensure_ascii=False))
    if (run / "config.toml").is_file() and (run / "metrics.csv").is_file():
        write_report(run)
    return None if picture is None else path


def write_report(run: Path) -> Path:
    """Write ``report.html`` from the config, the metrics, the latest grids and the findings in a run's directory.

    Args:
        run: The run directory.

    Returns:
        The report.

    Raises:
        InputError: If this is no run directory, or a file of it is damaged.
    """
    run = Path(run)
    if not (run / "config.toml").is_file():
        raise InputError(f"there is no run at {run}: expected a directory with config.toml in it")
    config = read_config(run)
    parts = [_summary(run, config), _curves(run, config), _latest_grids(run), _findings(run), _settings(run)]
    page = _PAGE.format(title=escape(run.resolve().name), style=_STYLE, body="\n".join(filter(None, parts)))
    write_atomically(run / FILE_NAME, page)
    return run / FILE_NAME


def _summary(run: Path, config: Config) -> str:
    metrics = read_metrics(run)
    facts = {
        "method": config.training.method,
        "data": config.data.spec,
        "preset": config.preset or "none",
        "levels": str(config.model.levels),
        "steps": f"{config.training.steps:,}, batches of {config.training.batch_size}",
    }
    if config.training.method == "adversarial":
        facts["objective"] = config.training.objective.replace("_", " ")
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
    return f"<h1>{escape(run.resolve().name)}</h1><dl>{listed}</dl>{table}{note}"


def _curves(run: Path, config: Config) -> str:
    drawn = sorted((run / FOLDER).glob("training-*.svg"))
    # They take longer than all the rest, and change only while a run trains.
    if not drawn or drawn[0].stat().st_mtime < (run / "metrics.csv").stat().st_mtime:
        drawn = _draw_curves(run, config)
    images = "".join(_image(path.read_bytes(), "image/svg+xml", path.stem.replace("-", " ")) for path in drawn)
    return f'<h2>Training</h2><div class="curves">{images}</div>' if images else ""


def _draw_curves(run: Path, config: Config) -> list[Path]:
    metrics = read_metrics(run)
    if len(metrics["step"]) < 2:
        return []
    settings = config.training
    game = settings.method, settings.objective, config.discriminator.form
    has_bound = game == ("adversarial", "jensen_shannon", "joint")
    paths = []
    for name, figure in sorted(plotting.training_curves(metrics, has_bound=has_bound).items()):
        paths.append(_folder(run) / f"training-{name}.svg")
        write_atomically(paths[-1], plotting.as_svg(figure))
    return paths


def _folder(run: Path) -> Path:
    """Where findings are, made if need be."""
    folder = run / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror}") from None
    return folder


def latest_grids(run: Path) -> dict[str, Path]:
    """The newest pictures of a run's training, those that there are: ``reconstructions`` and ``samples``."""
    found = {}
    for what in _GRIDS:
        steps = {path.stem.rpartition("-")[2]: path for path in (run / "samples").glob(f"{what}-*.png")}
        numbered = {int(step): path for step, path in steps.items() if step.isascii() and step.isdecimal()}
        if numbered:
            found[what] = numbered[max(numbered)]
    return found


def _latest_grids(run: Path) -> str:
    parts = []
    for what, path in latest_grids(run).items():
        step = int(path.stem.rpartition("-")[2])
        image = _image(path.read_bytes(), "image/png", _GRIDS[what])
        parts.append(f"<h2>{_GRIDS[what]}</h2><p>Averaged weights, step {step:,}.</p>{image}")
    return "".join(parts)


def read_findings(run: Path) -> list[Finding]:
    """What is known of a run, in the order in which it is told.

    Args:
        run: The run directory.

    Raises:
        InputError: If a file of it is damaged.
    """
    files = sorted((run / FOLDER).glob("*.json"), key=lambda path: (*_place(path.stem), path.stem))
    return [_read(file) for file in files]


def _read(file: Path) -> Finding:
    try:
        values = json.loads(read_bounded(file, _MOST_JSON))
        finding = Finding(**values)
        said = (finding.name, finding.title, finding.command, *finding.lines)
        if not all(isinstance(text, str) for text in said) or finding.name != file.stem:
            raise ValueError("it is no finding of that name")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); remove it and make it again") from None
    return finding


def _findings(run: Path) -> str:
    return "".join(_told(run, finding) for finding in read_findings(run))


def _told(run: Path, finding: Finding) -> str:
    picture = run / FOLDER / f"{finding.name}.png"
    image = _image(picture.read_bytes(), "image/png", finding.title) if picture.is_file() else ""
    said = f"<pre>{escape(chr(10).join(finding.lines))}</pre>" if finding.lines else ""
    return f"<h2>{escape(finding.title)}</h2>{image}{said}<pre class='command'>$ {escape(finding.command)}</pre>"


def _settings(run: Path) -> str:
    text = escape((run / "config.toml").read_text("utf-8"))
    return f"<h2>Settings</h2><details><summary>config.toml</summary><pre>{text}</pre></details>"


def _place(name: str) -> tuple[int]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER),)


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
