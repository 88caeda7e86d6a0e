"""A run directory as an object: every file name, and what the files hold.

``config.toml``, ``model.safetensors``, ``metrics.csv``, ``samples/*.png``, ``checkpoints/step-*/``, ``tensorboard/``,
``figures/`` with what commands have found, ``report.html``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit import data as datasets
from halikit import plotting
from halikit.config import Config
from halikit.data import DataSet, Split
from halikit.earlier import read_config
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.model import FILE_NAME, PRETRAINED, Model, file_of, levels_of, load
from halikit.runs.checkpoints import Checkpoints
from halikit.runs.context import Asked, rows_at_random
from halikit.settings import ContextKind
from halikit.utils.files import read_bounded, write_atomically

__all__ = ["Finding", "Progress", "Result", "Run"]

# Makes a context for a computation with this label; inside it, a function is called with (done, total).
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

# The largest JSON files that are read, in bytes: the description of a divergence, and a finding.
_LARGEST_DUMP, _LARGEST_FINDING = 2**20, 2**24
# The order of findings in a report; others follow by name.
_ORDER = (
    *("train", "reconstructions", "samples", "inpainting", "innovation", "traversal", "interpolation", "neighbours"),
)


@dataclass(frozen=True)
class Finding:
    """A result of a command on a run.

    Attributes:
        name: Name of its files; a finding of the same name is replaced.
        title: Title for people.
        command: The command that made it.
        lines: The result in words.
        values: The result for programs, as JSON takes it.
    """

    name: str
    title: str
    command: str
    lines: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


class Result(NamedTuple):
    """What a computation on a run gives, for people and for programs.

    Attributes:
        name: Name of the files of the finding that it becomes.
        title: Title for people.
        values: The result for programs, as JSON takes it.
        lines: The result in words.
        picture: ``(height, width, 3)``, if there is one.
        numbers: ``(n, *shape of x)`` float32, which ``--out FILE.npy`` writes instead, if there are any.
    """

    name: str
    title: str
    values: dict[str, Any]
    lines: Sequence[str] = ()
    picture: NDArray[np.uint8] | None = None
    numbers: NDArray[np.float32] | None = None

    @property
    def has_file(self) -> bool:
        """Whether it is a picture or numbers, and not lines alone."""
        return self.picture is not None or self.numbers is not None


class Run:
    """A run directory, opened for reading; data and model are read once, when they are first used.

    Args:
        path: A run directory, the model file in it, or the name of a model that ships with halikit (its directory is
            made when something is written).
        weights: ``"averaged"`` or ``"raw"``.
        device: Where the model is loaded.
        data_spec: Data to use instead of the run's own.
        asked: The class or the attributes that a conditional model is given, in place of those of the data.
        progress: Shows the progress of what takes longer; nothing by default.

    Attributes:
        path: The run directory.
        config_file: The settings.
        model_file: Raw and averaged weights.
        metrics_file: One line for each record.
        divergence_file: What is known of a divergence.
        report_file: The report.
        classifier_file: The classifier of attributes that an evaluation has trained.
        samples_folder: Grids of samples and reconstructions by step.
        figures_folder: Findings.
        events_folder: Event files for TensorBoard.
        exports_folder: Exported models.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        weights: Literal["averaged", "raw"] = "averaged",
        device: str | torch.device = "cpu",
        data_spec: str | None = None,
        asked: Asked | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.given = Path(path)
        self.path: Path = self.given.parent if self.given.is_file() else self.given
        self.weights, self.device, self.data_spec, self.asked = weights, device, data_spec, asked or Asked()
        self.progress = progress or _no_progress
        self.config_file: Path = self.path / "config.toml"
        self.model_file: Path = self.path / FILE_NAME
        self.metrics_file: Path = self.path / "metrics.csv"
        self.divergence_file: Path = self.path / "diverged.json"
        self.report_file: Path = self.path / "report.html"
        self.classifier_file: Path = self.path / "classifier.safetensors"
        self.samples_folder: Path = self.path / "samples"
        self.figures_folder: Path = self.path / "figures"
        self.events_folder: Path = self.path / "tensorboard"
        self.exports_folder: Path = self.path / "export"

    def features_file(self, part: str) -> Path:
        """The features of a part of the data."""
        return self.path / f"features-{part}.safetensors"

    def checkpoints(self, keep: int = 1) -> Checkpoints:
        """The checkpoints.

        Args:
            keep: How many of the newest stay when one is written.
        """
        return Checkpoints(self.path, keep)

    @property
    def is_shipped(self) -> bool:
        """Whether the model is part of halikit."""
        return file_of(self.given).parent == PRETRAINED

    @property
    def is_complete(self) -> bool:
        """Whether the directory has the settings and the metrics of a training."""
        return self.config_file.is_file() and self.metrics_file.is_file()

    @cached_property
    def settings(self) -> Config:
        """The settings in ``config.toml``, or those of a model that is part of halikit.

        Raises:
            InputError: If there is no run, or the file is damaged.
        """
        if not self.config_file.is_file():
            if self.is_shipped:
                return self.config
            raise InputError(f"there is no run at {self.path}: expected a directory with {self.config_file.name} in it")
        return read_config(self.config_file)

    @cached_property
    def model(self) -> Model:
        """The trained model, in evaluation mode.

        Raises:
            InputError: If there is no model, or it was not built from a config.
        """
        model = load(self.given, weights=self.weights, device=self.device)
        if model.config is None:
            raise InputError(
                f"{self.given} holds kernels of its author's own, which the command line cannot build; use hk.load"
            )
        return model

    @property
    def hierarchy(self) -> Hierarchy:
        """The hierarchy of the model."""
        return self.model.hierarchy

    @property
    def config(self) -> Config:
        """The settings that the model was built from."""
        assert self.model.config is not None
        return self.model.config

    def checked_level(self, level: int | None, *, lowest: int = 1) -> int | None:
        """A level that was asked for, if the model has it.

        Raises:
            InputError: If it has not; the message names those that it has.
        """
        levels = len(self.hierarchy)
        if level is not None and not lowest <= level <= levels:
            there = f"level {lowest}" if lowest == levels else f"levels {lowest} to {levels}"
            raise InputError(f"there is no level {level} here: {self.given} has {there}")
        return level

    @property
    def levels(self) -> int:
        """Number of levels of the model.

        Raises:
            ModelError: If the model is missing or damaged.
        """
        return levels_of(self.given)

    @cached_property
    def data(self) -> DataSet:
        """The data set, at the run's size.

        Raises:
            InputError: If it cannot be read or does not fit the model.
        """
        settings, shape = self.config.data, self.config.model.data_shape
        with self.progress("reading the data") as advance:
            spec = self.data_spec or settings.spec
            loaded = datasets.load(
                spec,
                size=settings.size,
                strict=settings.strict,
                kind=settings.kind,
                channels=settings.channels,
                on_progress=advance,
            )
        if loaded.shape != shape:
            raise InputError(f"the model is for data of shape {shape}, but {loaded.spec} has {loaded.shape}")
        return loaded.in_dtype(self.hierarchy.prior.dtype)

    def batch(self, part: Split) -> Tensor:
        """All data of a part, ``(n, *shape of x)``, on the run's device."""
        return part.batch().to(self.hierarchy.prior.device)

    def held_out_images(self, n: int) -> Split:
        """``n`` evenly spaced held-out images, sequences or volumes, or all if there are fewer.

        Raises:
            InputError: If there are no pictures of the data.
        """
        self.check_drawable()
        return self.data.held_out.evenly(n)

    def check_drawable(self) -> None:
        """Refuse data that have no pictures.

        Raises:
            InputError: If the data are neither images nor sequences nor volumes.
        """
        shape = self.hierarchy.spaces[0].shape
        if not plotting.is_drawable(shape):
            raise InputError(
                f"pictures are made of images, sequences and volumes, and this model is for data of shape {shape}; "
                "`halikit sample RUN --out FILE.npy` writes numbers"
            )

    def conditioned(self, part: Split) -> Hierarchy:
        """The hierarchy given the contexts of data, or what was asked for; as it is if the model takes no context.

        Args:
            part: The data.

        Raises:
            InputError: If the data have no such contexts, and none was asked for.
        """
        kind = self.config.model.conditional
        if kind is None:
            return self.hierarchy
        if kind == "labels" and self.asked:
            return self._of_class()
        return self.hierarchy.conditioned(self._context(part, kind).to(self.hierarchy.prior.device))

    def conditioned_at_random(self, n: int, seed: int) -> Hierarchy:
        """The hierarchy given ``n`` contexts for samples: drawn from the training data, or what was asked for.

        Raises:
            InputError: If the data have no such contexts or cannot be read, and none was asked for.
        """
        kind = self.config.model.conditional
        if kind is None:
            return self.hierarchy
        if kind == "labels" and self.asked:
            return self._of_class()
        found = rows_at_random(self._context(self.data.train, kind), n, seed)
        return self.hierarchy.conditioned(found.to(self.hierarchy.prior.device))

    @property
    def context_in_words(self) -> str | None:
        """Where a conditional model's contexts are from; ``None`` if the model takes none."""
        kind = self.config.model.conditional
        if kind is None:
            return None
        if not self.asked:
            return f"{kind} of the data"
        return str(self.asked) + (", other attributes of the data" if kind == "attributes" else "")

    def _of_class(self) -> Hierarchy:
        """The hierarchy given the class that was asked for, for any number of data."""
        size = self.config.model.context_size
        assert size is not None
        try:
            names = self.data.classes
        except InputError:
            # The index of a class needs no data.
            names = ()
        index = self.asked.index(names if len(names) == size else (), size)
        return self.hierarchy.conditioned(torch.tensor([index], device=self.hierarchy.prior.device))

    def _context(self, part: Split, kind: ContextKind) -> Tensor:
        """The contexts of data, with what was asked for."""
        data, size = self.data, self.config.model.context_size
        if (part.labels if kind == "labels" else part.attributes) is None:
            instead = "--class" if kind == "labels" else "other data"
            raise InputError(f"{self.given} is given the {kind} of each datum, and {data.spec} has none; use {instead}")
        if data.context_size(kind) != size:
            raise InputError(f"{self.given} takes {size} {kind}, and {data.spec} has {data.context_size(kind)}")
        return self.asked.changed(part.context(kind), data.attributes)

    def metrics(self) -> dict[str, list[float]]:
        """The columns of ``metrics.csv`` by name; NaN where nothing was measured. Without the file, no rows.

        Raises:
            InputError: If the file is damaged.
        """
        if not self.metrics_file.exists():
            return {"step": [], "seconds": []}
        try:
            with self.metrics_file.open(newline="", encoding="utf-8") as file:
                head, *rows = csv.reader(file)
            if not {"step", "seconds"} <= set(head):
                raise ValueError("it has no columns step and seconds")
            return {name: [float(row[i] or "nan") for row in rows] for i, name in enumerate(head)}
        except (OSError, ValueError, IndexError, csv.Error) as error:
            raise InputError(f"cannot read {self.metrics_file}: {error}") from None

    def divergence(self) -> dict[str, Any] | None:
        """What is known of a divergence; ``None`` if training has not diverged.

        Raises:
            InputError: If the file is damaged.
        """
        if not self.divergence_file.exists():
            return None
        try:
            values = json.loads(read_bounded(self.divergence_file, _LARGEST_DUMP))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{self.divergence_file} is damaged: {error}") from None
        if not isinstance(values, dict):
            raise InputError(f"{self.divergence_file} is damaged: it is not a JSON object")
        return values

    def grids(self) -> dict[str, Path]:
        """The newest pictures of the training, as far as there are any: ``reconstructions`` and ``samples``."""
        found = {}
        for kind in ("reconstructions", "samples"):
            steps = {path.stem.rpartition("-")[2]: path for path in self.samples_folder.glob(f"{kind}-*.png")}
            numbered = {int(step): path for step, path in steps.items() if step.isascii() and step.isdecimal()}
            if numbered:
                found[kind] = numbered[max(numbered)]
        return found

    def findings(self) -> list[Finding]:
        """The findings, in the order of the report.

        Raises:
            InputError: If a file is damaged.
        """
        files = self.figures_folder.glob("*.json")
        order = {name: place for place, name in enumerate(_ORDER)}
        return [
            _finding(file) for file in sorted(files, key=lambda path: (order.get(path.stem, len(order)), path.stem))
        ]

    def picture_of(self, finding: Finding) -> Path:
        """The file of a finding's picture; it is missing where the finding has none."""
        return self.figures_folder / f"{finding.name}.png"

    def keep(self, result: Result, command: str) -> Path | None:
        """Write a result into the directory as a finding.

        Args:
            result: The result.
            command: The command that made it.

        Returns:
            The file of the picture, if there is one.

        Raises:
            InputError: If the directory cannot be written to.
            ResourceError: If the disk is full.
        """
        self.make(self.figures_folder)
        finding = Finding(result.name, result.title, command, result.lines, result.values)
        path = self.picture_of(finding)
        if result.picture is not None:
            plotting.save_png(path, result.picture)
        write_atomically(path.with_suffix(".json"), json.dumps(asdict(finding), indent=1, ensure_ascii=False))
        return None if result.picture is None else path

    def make(self, folder: Path) -> None:
        """Make a folder of the run.

        Raises:
            InputError: If it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {folder}: {error.strerror}") from None


@contextmanager
def _no_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def _finding(file: Path) -> Finding:
    try:
        values = json.loads(read_bounded(file, _LARGEST_FINDING))
        finding = Finding(**values)
        texts = (finding.name, finding.title, finding.command, *finding.lines)
        if not all(isinstance(text, str) for text in texts) or finding.name != file.stem:
            raise ValueError("it is not a finding of that name")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); remove it and make it again") from None
    return finding
