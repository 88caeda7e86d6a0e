"""A run directory: ``config.toml``, ``model.safetensors``, ``metrics.csv`` and ``samples/*.png``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from halikit import plotting
from halikit.config import Config, to_toml
from halikit.errors import InputError
from halikit.files import write_atomically
from halikit.hierarchy import Hierarchy
from halikit.model import FILE_NAME, Model, save_model

__all__ = ["Record", "Run", "read_metrics"]


# Of the grid of samples.
_COLUMNS = 16


@dataclass(frozen=True)
class Record:
    """What the last steps came to; losses and ρ are means over them.

    Attributes:
        step: Steps played so far.
        level: Levels that play.
        seconds: Training time so far, evaluations included.
        d_loss: ``L_d``, nats under Jensen–Shannon.
        g_loss: ``L_g``, likewise.
        rho_q: Mean ``ρ`` over encoder samples, in [0, 1].
        rho_p: Mean ``ρ`` over decoder samples, in [0, 1].
        steps_per_second: Over the last steps.
        images_per_second: Likewise.
        errors: Root mean square of ``x − x̂_l`` per element on held-out data, averaged weights, along the means, from
            level 1 up; empty where it was not evaluated.
        embedded: Mean discriminator-embedded distance ``d_c(x, x̂_l)`` (Eq. 8) on the same data, likewise.
    """

    step: int
    level: int
    seconds: float
    d_loss: float
    g_loss: float
    rho_q: float
    rho_p: float
    steps_per_second: float
    images_per_second: float
    errors: tuple[float, ...] = field(default=())
    embedded: tuple[float, ...] = field(default=())


class Run:
    """Writes the files of one training.

    Args:
        path: The run directory, made where it is missing.
        model: What trains.

    Raises:
        InputError: If the directory cannot be written to, or already holds a run.
    """

    def __init__(self, path: str | Path, model: Model) -> None:
        self.path = Path(path)
        self.model = model
        if (self.path / FILE_NAME).exists():
            raise InputError(f"{self.path} already holds a run; choose another directory with --out, or remove it")
        try:
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run directory {self.path}: {error.strerror}") from None
        names = [name for name in Record.__dataclass_fields__ if name not in ("errors", "embedded")]
        latents = model.hierarchy.spaces[1:]
        self._columns = names + [f"{kind}_{space.name}" for kind in ("error", "embedded") for space in latents]
        self._append(self._columns, new=True)

    def describe(self, config: Config) -> None:
        """Write ``config.toml``; the settings of training are the user's to repeat even where the kernels are not."""
        write_atomically(self.path / "config.toml", to_toml(config))

    def record(self, record: Record) -> None:
        """Add a line to ``metrics.csv``; empty cells where nothing was measured."""
        values = asdict(record)
        per_level = [values.pop("errors"), values.pop("embedded")]
        cells = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values.values()]
        levels = len(self.model.hierarchy)
        for measured in per_level:
            cells += [f"{value:.6g}" for value in measured] + [""] * (levels - len(measured))
        self._append(cells)

    def save(self, averaged: Hierarchy, config: Config | None, step: int, level: int) -> None:
        """Write the model as it is now, with the config that it can be built from, if any."""
        save_model(self.path / FILE_NAME, self.model, averaged, config=config, step=step, level=level)

    def pictures(self, samples: Tensor, reconstructions: Mapping[str, Tensor], step: int) -> None:
        """Write sample and reconstruction grids of this step; nothing where the data are no images."""
        if samples.dim() != 4:
            return
        plotting.save_png(self.path / "samples" / f"samples-{step:07d}.png", plotting.grid(samples, _COLUMNS))
        rows = plotting.labelled_rows(reconstructions)
        plotting.save_png(self.path / "samples" / f"reconstructions-{step:07d}.png", rows)

    def _append(self, cells: list[str], *, new: bool = False) -> None:
        with (self.path / "metrics.csv").open("w" if new else "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)


def read_metrics(run: Path) -> dict[str, list[float]]:
    """The columns of a run's ``metrics.csv`` by name, NaN where nothing was measured.

    Raises:
        InputError: If the file is missing or damaged.
    """
    path = Path(run) / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        return {name: [float(row[i] or "nan") for row in rows] for i, name in enumerate(head)}
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
