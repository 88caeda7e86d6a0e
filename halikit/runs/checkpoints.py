"""Checkpoints: all that a training needs to go on as if it had never stopped, on disk whole or not at all.

``checkpoints/step-0001000/`` holds ``tensors.safetensors``, ``state.json`` and, written last, ``manifest.json`` with
the sizes and SHA-256 of the other two. It is made under another name, synced, and renamed; then ``latest`` names it;
then old ones are removed. A process may be killed between any two of these steps.
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

from halikit.earlier import columns_of, levels_in, upgraded_config, upgraded_tensors
from halikit.errors import InputError
from halikit.model import unshared
from halikit.utils.files import TEMPORARY, read_bounded, sync_directory, write_atomically, write_synced, writing

__all__ = ["Checkpoint", "CheckpointError", "Checkpoints", "State", "find_checkpoint", "open_checkpoint"]

SCHEMA = 3
MANIFEST, TENSORS, STATE = "manifest.json", "tensors.safetensors", "state.json"
LATEST = "latest"

_NAME = re.compile(r"step-(\d{7,12})")
# No honest file of JSON here comes near.
_MOST_JSON = 2**20
_CHUNK = 2**20


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or written by a newer version."""


@dataclass(frozen=True)
class State:
    """What a checkpoint holds.

    Attributes:
        tensors: Weights, averaged weights, states of optimisers and what was seen since the last record, by name.
        facts: The rest, as JSON takes it: ``step``, ``seconds``, ``rate_share``, ``columns`` (names of the losses in
            ``unread``), ``config`` and ``surroundings``.
        score: What the best checkpoint is chosen by, lower is better; ``None`` where nothing was measured.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    score: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are those that its manifest names, to the last bit.

    Attributes:
        path: Its directory.
        facts: See :class:`State`; of a checkpoint of 0.1.0 also ``level``, how many had been trained.
    """

    path: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps played."""
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
        keep: How many of the newest stay; the best one stays as well.

    Attributes:
        path: Their directory; made when the first is written.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.path = run / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, good or not, in order."""
        if not self.path.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def write(self, state: State) -> Path:
        """Write a checkpoint, let ``latest`` name it, and remove old ones. One that is there and good is left alone.

        Raises:
            ResourceError: If the disk is full; nothing is left of the attempt.
            InputError: If the directory cannot be written to.
        """
        path = self._place(state.facts["step"])
        if not path.exists() or _is_damaged(path):
            tensors, facts = save(unshared(state.tensors)), _json(state.facts)
            with writing(path, len(tensors) + len(facts)):
                self._write(path, {TENSORS: tensors, STATE: facts}, state)
        self._settle(state.facts["step"])
        return path

    def newest(self, warn: Callable[[str], None]) -> Checkpoint:
        """The newest good one; says which were passed over.

        Raises:
            CheckpointError: If there is none, or the newest is of a newer version.
        """
        for step in reversed(self.steps()):
            try:
                return open_checkpoint(self._place(step))
            except _DamageError as error:
                warn(f"{error}; going on from the checkpoint before it")
        raise CheckpointError(f"there is no good checkpoint in {self.path} to go on from")

    def at(self, step: int) -> Checkpoint:
        """The one of this step.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.path}; there are: {there}")
        return open_checkpoint(self._place(step))

    def go_on_from(self, step: int) -> None:
        """Remove those of later steps, which the run will write anew, and finish what a killed process had begun."""
        for later in self.steps():
            if later > step:
                self._remove(later)
        if step in self.steps():
            self._settle(step)

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
                "config": hashlib.sha256(_json(state.facts.get("config"))).hexdigest(),
                "files": {
                    name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                    for name, content in contents.items()
                },
            }
            write_synced(temporary / MANIFEST, _json(manifest))
            sync_directory(temporary)
            # Only a damaged one can be in the way.
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            sync_directory(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _settle(self, step: int) -> None:
        """Let ``latest`` name this one; then old ones can go."""
        write_atomically(self.path / LATEST, self._place(step).name + "\n")
        steps = self.steps()
        for step in set(steps) - set(steps[-self.keep :]) - {self._best(steps)}:
            self._remove(step)

    def _best(self, steps: list[int]) -> int | None:
        """The step with the lowest score."""
        scores = {step: score for step in steps if (score := _score(self._place(step))) is not None}
        return min(scores, key=lambda step: scores[step]) if scores else None

    def _remove(self, step: int) -> None:
        # Under another name first: a checkpoint is there whole or not at all.
        path = self._place(step)
        doomed = path.with_name(f".{path.name}{TEMPORARY}")
        with writing(path):
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.path / f"step-{step:07d}"


def find_checkpoint(run: Checkpoints, which: bool | int | str | Path, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that a person means.

    Args:
        run: Those of the run to go on with.
        which: ``True`` for the newest good one, a step, or the path of one, of whichever run.
        warn: Told which damaged ones were passed over.

    Raises:
        CheckpointError: If there is none, or the one that is named is missing or damaged.
    """
    if isinstance(which, bool):
        return run.newest(warn)
    place = str(which)
    return run.at(int(place)) if place.isdecimal() else open_checkpoint(Path(place))


def open_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint.

    Raises:
        CheckpointError: If it is missing, damaged (which file is, and how), or of a newer version.
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
    wrong = [name for name, kind in _FACTS.items() if not isinstance(facts.get(name), kind)]
    if wrong:
        raise _DamageError(path / STATE, f"it has no {', '.join(wrong)}")
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
    """A file of a checkpoint is not what was written."""

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
        found = path.stat().st_size
        if found != size:
            raise _DamageError(path, f"it has {found:,} bytes instead of {size:,}")
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
        values = json.loads(read_bounded(path, _MOST_JSON))
    except OSError as error:
        raise _DamageError(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _DamageError(path, str(error)) from None
    if not isinstance(values, dict):
        raise _DamageError(path, "it is no JSON object")
    return values


def _score(path: Path) -> float | None:
    """What checkpoints are ordered by, the lowest is the best; ``None`` without a score."""
    try:
        score = _read_json(path / MANIFEST)["score"]
        return None if score is None else float(score)
    except (_DamageError, KeyError, TypeError, ValueError):
        return None


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False).encode()
