"""Checkpoints: everything that is needed to continue a training exactly, written atomically.

``checkpoints/step-0001000/`` contains ``tensors.safetensors``, ``state.json`` and ``manifest.json``, which has the
sizes and the SHA-256 of the other two and is written last. A checkpoint is written under a temporary name, synced and
renamed. Then its name is written to ``latest``, and old checkpoints are removed. The process may be killed at any time:
the checkpoints stay valid.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from halikit.config import Config
from halikit.earlier import (
    OTHER_NETWORKS,
    columns_of,
    has_other_networks,
    levels_in,
    upgraded_config,
    upgraded_tensors,
)
from halikit.errors import InputError
from halikit.model import unshared
from halikit.utils.files import TEMPORARY, read_bounded, sync_directory, write_atomically, write_synced, writing

__all__ = ["Checkpoint", "CheckpointError", "Checkpoints", "State", "find_checkpoint", "open_checkpoint"]

SCHEMA = 4
MANIFEST, TENSORS, STATE = "manifest.json", "tensors.safetensors", "state.json"
LATEST = "latest"

_NAME = re.compile(r"step-(\d{7,12})")
# Largest JSON file that is read, in bytes; real ones are much smaller.
_LARGEST_JSON = 2**20
_CHUNK = 2**20


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or of another version."""


@dataclass(frozen=True)
class State:
    """The content of a checkpoint.

    Attributes:
        tensors: Weights, averaged weights, states of optimisers, and the losses since the last record, by name.
        facts: The rest, as JSON values: ``step``, ``seconds``, ``rate_share``, ``columns`` (names of the losses in
            the tensor ``unread``), ``config`` and ``surroundings``.
        score: Score by which the best checkpoint is chosen, lower is better; ``None`` if there is no measurement.
        metric: What the score measures; scores of one metric are compared.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    score: float | None = None
    metric: str = "auto"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, verified against the hashes in its manifest.

    Attributes:
        path: Directory of the checkpoint.
        facts: See :class:`State`. A checkpoint of 0.1.0 also has ``level``, the number of levels trained so far.
    """

    path: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of training steps so far."""
        return int(self.facts["step"])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU."""
        with safe_open(self.path / TENSORS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return upgraded_tensors(tensors, self.facts.get("level", 0))


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: The run directory.
        keep: Number of the newest checkpoints to keep. The best one is kept as well.

    Attributes:
        path: Directory of the checkpoints; created with the first one.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.path = run / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints, valid or damaged, in ascending order."""
        if not self.path.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def write(self, state: State) -> Path:
        """Write a checkpoint and its name to ``latest``, and remove old ones.

        If there is a valid checkpoint of this step already, it is not written again.

        Returns:
            The directory of the checkpoint.

        Raises:
            ResourceError: If the disk is full; the incomplete files are removed.
            InputError: If the directory cannot be written to.
        """
        path = self._path_of(state.facts["step"])
        if not path.exists() or _is_damaged(path):
            tensors, facts = save(unshared(state.tensors)), _json(state.facts)
            with writing(path, len(tensors) + len(facts)):
                self._write(path, {TENSORS: tensors, STATE: facts}, state)
        self._finish(state.facts["step"])
        return path

    def newest(self, warn: Callable[[str], None]) -> Checkpoint:
        """The newest valid checkpoint.

        Args:
            warn: Called with a message for each damaged checkpoint that is skipped.

        Raises:
            CheckpointError: If there is no valid one, or the newest was written by a newer version.
        """
        for step in reversed(self.steps()):
            try:
                return open_checkpoint(self._path_of(step))
            except _DamageError as error:
                warn(f"{error}; going on from the checkpoint before it")
        raise CheckpointError(f"there is no good checkpoint in {self.path} to go on from")

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        if step not in self.steps():
            present = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.path}; there are: {present}")
        return open_checkpoint(self._path_of(step))

    def best(self) -> Checkpoint:
        """The checkpoint with the best score.

        Raises:
            CheckpointError: If none has a score, or the best one is damaged.
        """
        step = self._best(self.steps())
        if step is None:
            raise CheckpointError(
                f"no checkpoint in {self.path} was evaluated, so none is the best; checkpoints have a score where "
                "record.checkpoint_every and record.evaluate_every fall on the same step"
            )
        return self.at(step)

    def go_on_from(self, step: int) -> None:
        """Remove the checkpoints of later steps, and complete the last write if its process was killed.

        Args:
            step: Step that the training continues from.
        """
        for later in self.steps():
            if later > step:
                self._remove(later)
        if step in self.steps():
            self._finish(step)

    def _write(self, path: Path, contents: Mapping[str, bytes], state: State) -> None:
        temporary = path.with_name(f".{path.name}{TEMPORARY}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, content in contents.items():
                write_synced(temporary / name, content)
            manifest = {
                "schema": SCHEMA,
                "step": state.facts["step"],
                "score": state.score if state.score is not None and math.isfinite(state.score) else None,
                "metric": state.metric,
                "config": hashlib.sha256(_json(state.facts.get("config"))).hexdigest(),
                "files": {
                    name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                    for name, content in contents.items()
                },
            }
            write_synced(temporary / MANIFEST, _json(manifest))
            sync_directory(temporary)
            # If there is a checkpoint under this name, it is damaged.
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            sync_directory(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _finish(self, step: int) -> None:
        """Write the name of a checkpoint to ``latest``, then remove old checkpoints."""
        write_atomically(self.path / LATEST, self._path_of(step).name + "\n")
        steps = self.steps()
        for step in set(steps) - set(steps[-self.keep :]) - {self._best(steps)}:
            self._remove(step)

    def _best(self, steps: list[int]) -> int | None:
        """The step with the lowest score, by the metric of the newest that has one."""
        found = {step: score for step in steps if (score := _score(self._path_of(step)))}
        if not found:
            return None
        metric = found[max(found)][1]
        return min((score, step) for step, (score, name) in found.items() if name == metric)[1]

    def _remove(self, step: int) -> None:
        # The directory is renamed first, so that an interrupted removal leaves no incomplete checkpoint.
        path = self._path_of(step)
        temporary = path.with_name(f".{path.name}{TEMPORARY}")
        with writing(path):
            shutil.rmtree(temporary, ignore_errors=True)
            path.rename(temporary)
            shutil.rmtree(temporary, ignore_errors=True)

    def _path_of(self, step: int) -> Path:
        return self.path / f"step-{step:07d}"


def find_checkpoint(run: Checkpoints, which: bool | int | str | Path, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that a training continues from.

    Args:
        run: Checkpoints of the run.
        which: ``True`` for the newest valid one, a step, or the path of a checkpoint, of any run.
        warn: Called with a message for each damaged checkpoint that is skipped.

    Raises:
        CheckpointError: If there is no valid one, or the chosen one is missing or damaged.
    """
    if isinstance(which, bool):
        return run.newest(warn)
    text = str(which)
    return run.at(int(text)) if text.isdecimal() else open_checkpoint(Path(text))


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint and verify its files.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged, was written by a newer version, or is of networks that
            are not built any more. For a damaged one the message names the file and the damage.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}")
    manifest = _read_json(path / MANIFEST)
    try:
        schema = int(manifest["schema"])
        files = {name: (int(manifest["files"][name]["size"]), manifest["files"][name]["sha256"]) for name in _CONTENTS}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _DamageError(path / MANIFEST, f"an entry is missing or wrong: {error!r}") from None
    if schema > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer halikit (schema {schema}, this one reads up to {SCHEMA}); update it"
        )
    for name, (size, digest) in files.items():
        _verify(path / name, size, digest)
    facts = _read_json(path / STATE)
    missing = [name for name, kind in _FACTS.items() if not isinstance(facts.get(name), kind)]
    if missing:
        raise _DamageError(path / STATE, f"it has no {', '.join(missing)}")
    try:
        with safe_open(path / TENSORS, "pt") as file:
            levels = levels_in(file.keys())
    except (SafetensorError, OSError) as error:
        raise _DamageError(path / TENSORS, str(error)) from None
    level = facts.get("level", levels)
    if not isinstance(level, int) or level < 1:
        raise _DamageError(path / STATE, f"its level is {level!r}")
    if level < levels:
        raise CheckpointError(
            f"{path} is of a stack that was still growing, with {level} of {levels} levels: only "
            "halikit 0.1.0 can go on with it; this version can use the model in the run"
        )
    config = upgraded_config(facts["config"])
    if schema < SCHEMA and has_other_networks(Config.parse(config, str(path)), schema):
        raise CheckpointError(f"{path} {OTHER_NETWORKS}")
    if "columns" not in facts:
        training = config.get("training")
        method = training.get("method", "adversarial") if isinstance(training, Mapping) else "adversarial"
        facts["columns"] = columns_of(method, has_sleep="level" not in facts)
    if not isinstance(facts["columns"], list):
        raise _DamageError(path / STATE, f"its columns are {facts['columns']!r}")
    return Checkpoint(path, {**facts, "config": config})


_CONTENTS = (TENSORS, STATE)
_FACTS: dict[str, Any] = {
    "step": int,
    "seconds": int | float,
    "rate_share": int | float,
    "config": dict,
    "surroundings": dict,
}


class _DamageError(CheckpointError):
    """A file of a checkpoint is damaged."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is damaged: {what}")


def _is_damaged(path: Path) -> bool:
    try:
        open_checkpoint(path)
    except _DamageError:
        return True
    return False


def _verify(path: Path, size: int, digest: str) -> None:
    try:
        actual = path.stat().st_size
        if actual != size:
            raise _DamageError(path, f"it has {actual:,} bytes instead of {size:,}")
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    except OSError as error:
        raise _DamageError(path, error.strerror or str(error)) from None
    if hasher.hexdigest() != digest:
        raise _DamageError(path, "its SHA-256 is not that of the manifest")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_bounded(path, _LARGEST_JSON))
    except OSError as error:
        raise _DamageError(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _DamageError(path, str(error)) from None
    if not isinstance(values, dict):
        raise _DamageError(path, "it is no JSON object")
    return values


def _score(path: Path) -> tuple[float, str] | None:
    """The score of a checkpoint, lower is better, and its metric; ``None`` if it has none or is damaged."""
    try:
        manifest = _read_json(path / MANIFEST)
        score = manifest["score"]
        return None if score is None else (float(score), str(manifest.get("metric", "auto")))
    except (_DamageError, KeyError, TypeError, ValueError):
        return None


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False).encode()
