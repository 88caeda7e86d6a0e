"""Writes the files of one training into a run directory."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halikit import plotting
from halikit.config import Config, to_toml
from halikit.errors import InputError, ResourceError
from halikit.hierarchy import Hierarchy
from halikit.model import Model, save_model
from halikit.runs.checkpoints import State
from halikit.runs.lock import locked
from halikit.runs.loggers import Pictures
from halikit.runs.record import Record, cells_of, columns
from halikit.runs.run import Run
from halikit.utils.files import TEMPORARY, write_atomically, writing

__all__ = ["RunWriter"]


class RunWriter:
    """Writes the files of one training into a run directory.

    Args:
        run: The run directory; created if it is missing.
        model: The model that is trained.
        extra: Names of extra losses, for the columns of ``metrics.csv``.
        keep: Number of the newest checkpoints to keep.
        resumes: Whether to continue the run in the directory; otherwise there must be none.

    Raises:
        InputError: If the directory cannot be created, or has a run already and ``resumes`` is false.

    Attributes:
        run: The run directory.
        checkpoints: The checkpoints of the run.
    """

    def __init__(
        self, run: Run, model: Model, *, extra: Sequence[str] = (), keep: int = 3, resumes: bool = False
    ) -> None:
        self.run, self.model = run, model
        self.checkpoints = run.checkpoints(keep)
        self._latents = [space.name for space in model.hierarchy.spaces[1:]]
        self._columns = columns(self._latents, extra)
        self._is_ours = resumes
        self._refuse_another()
        run.make(run.path)

    @contextmanager
    def writing(self, config: Config, step: int, size: int) -> Iterator[None]:
        """Lock the directory for a training that starts at ``step``; files of later steps are removed.

        Args:
            config: See :meth:`describe`.
            step: Number of steps so far.
            size: Size of one checkpoint in bytes.

        Raises:
            InputError: If another process has locked the directory, or it cannot be written to.
            ResourceError: If the checkpoints do not fit on the disk.
        """
        with locked(self.run.path):
            # Another training may have written to the directory since the check in __init__.
            self._refuse_another()
            self._sweep()
            self.check_room(size)
            self.describe(config)
            self.rewind(step)
            self.run.divergence_file.unlink(missing_ok=True)
            self._is_ours = True
            yield

    def rewind(self, step: int) -> None:
        """Remove the files and rows of steps after ``step``."""
        self.checkpoints.go_on_from(step)
        rows = [row for row in self._rows() if row["step"].isdecimal() and int(row["step"]) <= step]
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, restval="", extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.run.metrics_file, text.getvalue())
        for picture in self.run.samples_folder.glob("*-*.png"):
            number = picture.stem.rpartition("-")[2]
            if number.isdecimal() and int(number) > step:
                picture.unlink(missing_ok=True)

    def check_room(self, size: int) -> None:
        """Check that the checkpoints fit on the disk.

        Args:
            size: Size of one checkpoint in bytes.

        Raises:
            ResourceError: If they do not fit; the message has the needed and the free space.
        """
        # The newest checkpoints, the best one, the one that is being written, and the model file twice.
        needed = size * (self.checkpoints.keep + 4)
        own = sum(file.stat().st_size for file in self.checkpoints.path.rglob("*") if file.is_file())
        free, mebi = shutil.disk_usage(self.run.path).free, 2**20
        if needed - own > free:
            raise ResourceError(
                f"{self.run.path} has {free / mebi:,.0f} MiB free, but the run needs {(needed - own) / mebi:,.0f} MiB: "
                f"{size / mebi:,.1f} MiB for each checkpoint; "
                "lower record.keep_checkpoints, or choose another disk with --out"
            )

    def describe(self, config: Config) -> None:
        """Write ``config.toml``, also for kernels of the user's own, so that the training can be repeated."""
        write_atomically(self.run.config_file, to_toml(config))

    def record(self, record: Record) -> None:
        """Add a row to ``metrics.csv``; cells without a measurement are empty."""
        path = self.run.metrics_file
        cells = cells_of(record, self._latents)
        with writing(path):
            self.run.path.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
                if is_new:
                    table.writeheader()
                table.writerow(cells)

    def save(self, averaged: Hierarchy, config: Config | None, step: int) -> None:
        """Write the model file.

        Args:
            averaged: The hierarchy with averaged weights.
            config: Config that the model can be built from; ``None`` for kernels of the user's own.
            step: Number of steps so far.
        """
        self.run.path.mkdir(parents=True, exist_ok=True)
        save_model(self.run.model_file, self.model, averaged, config=config, step=step)

    def checkpoint(self, state: State) -> Path:
        """Write a checkpoint, after ``metrics.csv`` is synced to disk."""
        with writing(self.run.metrics_file):
            self.run.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.run.metrics_file, os.O_RDWR | os.O_CREAT)
            os.fsync(descriptor)
            os.close(descriptor)
        return self.checkpoints.write(state)

    def dump(self, values: Mapping[str, Any]) -> Path:
        """Write the data about a divergence to ``diverged.json``, which ``halikit inspect`` prints."""
        write_atomically(self.run.divergence_file, json.dumps(values, indent=1, allow_nan=False) + "\n")
        return self.run.divergence_file

    def pictures(self, pictures: Pictures, step: int) -> None:
        """Write pictures by name."""
        self.run.samples_folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            plotting.save_png(self.run.samples_folder / f"{name}-{step:07d}.png", picture)

    def _refuse_another(self) -> None:
        if not self._is_ours and (self.run.model_file.exists() or self.checkpoints.steps()):
            raise InputError(
                f"{self.run.path} already holds a run; go on with it (--resume), choose another directory with --out, "
                "or remove it"
            )

    def _rows(self) -> Iterator[dict[str, str]]:
        """The complete rows of ``metrics.csv``."""
        try:
            with self.run.metrics_file.open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    if None not in row and None not in row.values() and "step" in row:
                        yield row
        except (FileNotFoundError, csv.Error):
            return

    def _sweep(self) -> None:
        """Remove unfinished files of a process that was killed."""
        for path in [*self.run.path.glob(f".*{TEMPORARY}"), *self.run.path.glob(f"*/.*{TEMPORARY}")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
