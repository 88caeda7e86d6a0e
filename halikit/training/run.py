"""A run directory.

``config.toml``, ``model.safetensors``, ``metrics.csv``, ``samples/*.png``, ``checkpoints/step-*/``, ``tensorboard/``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from halikit import plotting
from halikit.config import Config, to_toml
from halikit.errors import InputError, ResourceError
from halikit.files import TEMPORARY, read_bounded, write_atomically, writing
from halikit.hierarchy import Hierarchy
from halikit.model import FILE_NAME, Model, save_model
from halikit.training.checkpoint import Checkpoints, State
from halikit.training.events import Events
from halikit.training.lock import locked

__all__ = ["Record", "Run", "read_dump", "read_metrics"]


# Of the grid of samples.
_COLUMNS = 16
# Of a record: what the methods of training give, and what they measure of held-out data.
_LOSSES = (
    *("d_loss", "g_loss", "rho_q", "rho_p", "sleep_loss", "negative_elbo", "held_out_negative_elbo"),
    *("supervised_loss", "held_out_label_error"),
)
# Of a record, what has a number for each level, and the columns that these have.
_PER_LEVEL = {
    "errors": "error",
    "embedded": "embedded",
    "recovery": "recovery",
    "recovery_from_x": "recovery_from_x",
}

_METRICS, _SAMPLES, DUMP = "metrics.csv", "samples", "diverged.json"
_MOST_JSON = 2**20


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the last steps came to; losses and ρ are means over them, and ``None`` where the method has no such thing.

    Attributes:
        step: Steps played so far.
        seconds: Training time so far, evaluations included.
        skipped: Steps so far that came to NaN or Inf and changed nothing.
        d_loss: ``L_d``, nats under Jensen–Shannon.
        g_loss: ``L_g``, likewise.
        rho_q: Mean ``ρ`` over encoder samples, in [0, 1].
        rho_p: Mean ``ρ`` over decoder samples, in [0, 1].
        sleep_loss: ``S``, nats per element, weighted (:mod:`halikit.sleep`); 0 without a sleep phase.
        negative_elbo: Nats per sample, an estimate of a bound, under batch statistics; see :mod:`halikit.elbo`.
        held_out_negative_elbo: The same on held-out data with averaged weights and running statistics: an estimate,
            with one draw a sample, of an upper bound on ``−log p(x)``; ``None`` where it was not evaluated as well.
        supervised_loss: Eq. 10, nats.
        held_out_label_error: Share of held-out data put into a wrong class, averaged weights, along the means.
        steps_per_second: Over the last steps.
        images_per_second: Likewise.
        errors: Root mean square of ``x − x̂_l`` per element on held-out data, averaged weights, along the means, from
            level 1 up; empty where it was not evaluated, and where no decoder is trained.
        embedded: Mean discriminator-embedded distance ``d_c(x, x̂_l)`` (Eq. 8) on the same data, likewise; empty where
            there is no discriminator as well.
        recovery: How much of the decoder's own ``z_l`` the encoder recovers in one step, averaged weights
            (:mod:`halikit.analysis.recovery`), likewise.
        recovery_from_x: The same from ``x``, along the means, likewise.
    """

    step: int
    seconds: float
    skipped: int
    d_loss: float | None = None
    g_loss: float | None = None
    rho_q: float | None = None
    rho_p: float | None = None
    sleep_loss: float | None = None
    negative_elbo: float | None = None
    held_out_negative_elbo: float | None = None
    supervised_loss: float | None = None
    held_out_label_error: float | None = None
    steps_per_second: float
    images_per_second: float
    errors: tuple[float, ...] = field(default=())
    embedded: tuple[float, ...] = field(default=())
    recovery: tuple[float, ...] = field(default=())
    recovery_from_x: tuple[float, ...] = field(default=())

    @property
    def evaluated(self) -> bool:
        """Whether held-out data were looked at."""
        return bool(self.errors) or any(name.startswith("held_out_") for name in self.losses)

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
        keep: How many of the newest checkpoints stay.
        resumes: Whether to go on with the run that is there; otherwise there must be none.

    Raises:
        InputError: If the directory cannot be made, or already holds a run that is not to be gone on with.

    Attributes:
        checkpoints: Those of the run.
        events: For TensorBoard.
    """

    def __init__(self, path: str | Path, model: Model, *, keep: int, resumes: bool = False) -> None:
        self.path = Path(path)
        self.model = model
        self.checkpoints = Checkpoints(self.path, keep)
        self.events = Events(self.path / "tensorboard")
        names = [name for name in Record.__dataclass_fields__ if name not in _PER_LEVEL]
        latents = model.hierarchy.spaces[1:]
        self._columns = names + [f"{kind}_{space.name}" for kind in _PER_LEVEL.values() for space in latents]
        self._is_ours = resumes
        self._refuse_another()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run directory {self.path}: {error.strerror}") from None

    @contextmanager
    def writing(self, config: Config, step: int, size: int) -> Iterator[None]:
        """Hold the directory for a training that goes on from ``step``; what is there of later steps is removed.

        Args:
            config: See :meth:`describe`.
            step: Steps played so far.
            size: Bytes that one checkpoint takes.

        Raises:
            InputError: If another process holds the directory, or it cannot be written to.
            ResourceError: If there is no room for the checkpoints.
        """
        with locked(self.path):
            # Another one may have come between.
            self._refuse_another()
            self._sweep()
            self.check_room(size)
            self.describe(config)
            self.rewind(step)
            (self.path / DUMP).unlink(missing_ok=True)
            self._is_ours = True
            try:
                yield
            finally:
                self.events.close()

    def rewind(self, step: int) -> None:
        """Remove what is there of steps after ``step``."""
        self.checkpoints.go_on_from(step)
        self.events.rewind(step)
        rows = [row for row in self._rows() if row["step"].isdecimal() and int(row["step"]) <= step]
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, restval="", extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.path / _METRICS, text.getvalue())
        for picture in (self.path / _SAMPLES).glob("*-*.png"):
            number = picture.stem.rpartition("-")[2]
            if number.isdecimal() and int(number) > step:
                picture.unlink(missing_ok=True)

    def check_room(self, size: int) -> None:
        """Refuse to begin what cannot be written to its end.

        Args:
            size: Bytes that one checkpoint takes.

        Raises:
            ResourceError: With what is needed and what is free.
        """
        # Those kept, the best, the one being written, and the model itself twice.
        needed = size * (self.checkpoints.keep + 4)
        own = sum(file.stat().st_size for file in self.checkpoints.path.rglob("*") if file.is_file())
        free = shutil.disk_usage(self.path).free
        if needed - own > free:
            raise ResourceError(
                f"{self.path} has {free / 2**20:,.0f} MiB free, but the run needs {(needed - own) / 2**20:,.0f} MiB: "
                f"{size / 2**20:,.1f} MiB for each checkpoint; lower training.keep, or choose another disk with --out"
            )

    def describe(self, config: Config) -> None:
        """Write ``config.toml``; the settings of training are the user's to repeat even where the kernels are not."""
        write_atomically(self.path / "config.toml", to_toml(config))

    def record(self, record: Record) -> None:
        """Add a line to ``metrics.csv``; empty cells where nothing was measured."""
        values = asdict(record)
        per_level = [values.pop(name) for name in _PER_LEVEL]
        cells = [_cell(value) for value in values.values()]
        for measured in per_level:
            cells += [_cell(value) for value in measured] + [""] * (len(self.model.hierarchy) - len(measured))
        path = self.path / _METRICS
        with writing(path):
            self.path.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerows([self._columns] * is_new)
                table.writerow(cells)
        curves = zip(self._columns, cells, strict=True)
        self.events.scalars({name: float(cell) for name, cell in curves if cell and name != "step"}, record.step)

    def save(self, averaged: Hierarchy, config: Config | None, step: int) -> None:
        """Write the model as it is now, with the config that it can be built from, if any."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_model(self.path / FILE_NAME, self.model, averaged, config=config, step=step)

    def checkpoint(self, state: State) -> Path:
        """Write a checkpoint, the records that it goes on from first."""
        with writing(self.path / _METRICS):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / _METRICS, os.O_RDWR | os.O_CREAT)
            os.fsync(descriptor)
            os.close(descriptor)
        return self.checkpoints.write(state)

    def dump(self, values: Mapping[str, Any]) -> Path:
        """Write what is known of a divergence to ``diverged.json``, which ``halikit inspect`` reads."""
        write_atomically(self.path / DUMP, json.dumps(values, indent=1, allow_nan=False) + "\n")
        return self.path / DUMP

    def pictures(self, samples: Tensor, reconstructions: Mapping[str, Tensor], step: int) -> None:
        """Write grids of samples and reconstructions ``(n, C, H, W)``; nothing where the data are no images."""
        if samples.dim() != 4:
            return
        (self.path / _SAMPLES).mkdir(parents=True, exist_ok=True)
        pictures = {
            "samples": plotting.grid(samples, _COLUMNS),
            "reconstructions": plotting.labelled_rows(reconstructions),
        }
        for name, picture in pictures.items():
            plotting.save_png(self.path / _SAMPLES / f"{name}-{step:07d}.png", picture)
            self.events.picture(name, picture, step)

    def _refuse_another(self) -> None:
        if not self._is_ours and ((self.path / FILE_NAME).exists() or self.checkpoints.steps()):
            raise InputError(
                f"{self.path} already holds a run; go on with it (--resume), choose another directory with --out, "
                "or remove it"
            )

    def _rows(self) -> Iterator[dict[str, str]]:
        """The rows of ``metrics.csv`` that are whole."""
        try:
            with (self.path / _METRICS).open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    if None not in row and None not in row.values() and "step" in row:
                        yield row
        except (FileNotFoundError, csv.Error):
            return

    def _sweep(self) -> None:
        """Remove what a process that was killed had not finished."""
        for path in [*self.path.glob(f".*{TEMPORARY}"), *self.path.glob(f"*/.*{TEMPORARY}")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def read_dump(path: Path) -> dict[str, Any] | None:
    """What :meth:`Run.dump` wrote into a run directory, or ``None`` where training has not diverged.

    Raises:
        InputError: If it is damaged.
    """
    if not (path / DUMP).exists():
        return None
    try:
        values = json.loads(read_bounded(path / DUMP, _MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path / DUMP} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path / DUMP} is damaged: it is no JSON object")
    return values


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_metrics(run: Path) -> dict[str, list[float]]:
    """The columns of a run's ``metrics.csv`` by name, NaN where nothing was measured.

    Raises:
        InputError: If the file is missing or damaged.
    """
    path = Path(run) / _METRICS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        if not {"step", "seconds"} <= set(head):
            raise ValueError("it has no columns step and seconds")
        return {name: [float(row[i] or "nan") for row in rows] for i, name in enumerate(head)}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from None
