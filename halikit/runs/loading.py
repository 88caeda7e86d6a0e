"""Trained models as ``hk.load`` gives them: from the model file of a run, or from one of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from halikit import model as models
from halikit.model import Model, ModelError
from halikit.runs.checkpoints import Checkpoint, Checkpoints

__all__ = ["load"]


def load(
    run: str | Path,
    *,
    checkpoint: Literal["best", "newest"] | int | None = None,
    weights: Literal["averaged", "raw"] = "averaged",
    device: str | torch.device = "cpu",
    build: Callable[[], Model] | None = None,
) -> Model:
    """Load a trained model, in evaluation mode.

    Args:
        run: A run directory, its ``model.safetensors``, or the name of a model that is part of halikit:
            ``"digits"`` or ``"mnist"``.
        checkpoint: Take the model from a checkpoint in the run directory: ``"best"`` by ``record.best_by``,
            ``"newest"``, or that of a step. By default the model file, which has the last evaluated step.
        weights: ``"averaged"`` for the exponential moving average over training, which gives better pictures;
            ``"raw"`` for the weights after the last step.
        device: Device of the loaded model.
        build: Function that makes the model, for kernels of your own. Other models are built from the config in the
            file. halikit never imports code that a file names.

    Raises:
        ModelError: If the file is missing or damaged, or does not fit the model that was built.
        CheckpointError: If the checkpoint is missing or damaged.
    """
    if checkpoint is None:
        return models.load(run, weights=weights, device=device, build=build)
    found = _checkpoint(Path(run), checkpoint)
    config = found.facts["config"] if found.facts.get("is_built", True) else None
    return models.assemble(found.path, config, found.tensors(), weights=weights, device=device, build=build)


def _checkpoint(run: Path, which: str | int) -> Checkpoint:
    checkpoints = Checkpoints(run, keep=1)
    if which == "best":
        return checkpoints.best()
    if which == "newest":
        return checkpoints.newest(lambda _: None)
    if isinstance(which, int) and not isinstance(which, bool):
        return checkpoints.at(which)
    raise ModelError(f"checkpoint is 'best', 'newest' or the step of a checkpoint, got {which!r}")
