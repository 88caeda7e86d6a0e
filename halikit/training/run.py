"""A run directory: ``config.toml``, ``model.safetensors``, ``metrics.csv`` and ``samples/*.png``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from halikit import plotting
from halikit.config import Config, to_toml
from halikit.errors import InputError
from halikit.files import write_atomically
from halikit.hierarchy import Hierarchy
from halikit.model import FILE_NAME, Model, save_model

__all__ = ["Record", "Run"]


# Of the grid of samples.
_COLUMNS = 16
# Of a record: what the methods of training give, and what they measure of held-out data.
_LOSSES = (
    *("d_loss", "g_loss", "rho_q", "rho_p", "negative_elbo", "held_out_negative_elbo"),
    *("supervised_loss", "held_out_label_error"),
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the last steps came to; losses and ρ are means over them, and ``None`` where the method has no such thing.

    Attributes:
        step: Steps played so far.
        level: Levels that play.
        seconds: Training time so far, evaluations included.
        d_loss: ``L_d``, nats under Jensen–Shannon.
        g_loss: ``L_g``, likewise.
        rho_q: Mean ``ρ`` over encoder samples, in [0, 1].
        rho_p: Mean ``ρ`` over decoder samples, in [0, 1].
        negative_elbo: Nats per sample, an estimate of a bound, under batch statistics; see :mod:`halikit.elbo`.
        held_out_negative_elbo: The same on held-out data with averaged weights and running statistics: an estimate,
            with one draw a sample, of an upper bound on ``−log p(x)``; ``None`` where it was not evaluated as well.
        supervised_loss: Eq. 10, nats.
        held_out_label_error: Share of held-out data put into a wrong class, averaged weights, along the means.
        steps_per_second: Over the last steps.
        images_per_second: Likewise.
        errors: Root mean square of ``x − x̂_l`` per element on held-out data, averaged weights, along the means, from
            level 1 up; empty where it was not evaluated.
    """

    step: int
    level: int
    seconds: float
    d_loss: float | None = None
    g_loss: float | None = None
    rho_q: float | None = None
    rho_p: float | None = None
    negative_elbo: float | None = None
    held_out_negative_elbo: float | None = None
    supervised_loss: float | None = None
    held_out_label_error: float | None = None
    steps_per_second: float
    images_per_second: float
    errors: tuple[float, ...] = field(default=())

    @property
    def losses(self) -> dict[str, float]:
        """The losses and what goes with them, by name, as far as the method has them and they were measured."""
        values = {name: getattr(self, name) for name in _LOSSES}
        return {name: value for name, value in values.items() if value is not None}


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
        names = [name for name in Record.__dataclass_fields__ if name != "errors"]
        self._columns = names + [f"error_{space.name}" for space in model.hierarchy.spaces[1:]]
        self._append(self._columns, new=True)

    def describe(self, config: Config) -> None:
        """Write ``config.toml``; the settings of training are the user's to repeat even where the kernels are not."""
        write_atomically(self.path / "config.toml", to_toml(config))

    def record(self, record: Record) -> None:
        """Add a line to ``metrics.csv``; empty cells where nothing was measured."""
        values = asdict(record)
        errors = values.pop("errors")
        cells = [_cell(value) for value in [*values.values(), *errors]]
        self._append(cells + [""] * (len(self._columns) - len(cells)))

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


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def reconstruction_errors(hierarchy: Hierarchy, x: Tensor) -> tuple[float, ...]:
    """Root mean square of ``x − x̂_l`` per element along the means, from level 1 up.

    Args:
        hierarchy: In evaluation mode.
        x: ``(n, *shape of x)``.
    """
    with torch.no_grad():
        return tuple(
            float((x - hierarchy.reconstruct(x, level)).square().mean().sqrt())
            for level in range(1, len(hierarchy) + 1)
        )
