"""Runs that are made of a finished run and a changed model, without training."""

from __future__ import annotations

import shutil

from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.model import Model, steps_of
from halikit.runs.run import Run
from halikit.runs.writer import RunWriter

__all__ = ["check_free", "write_derived"]


def check_free(target: Run) -> None:
    """Check that a directory for a new run does not exist, or is empty.

    Raises:
        InputError: If it is a file, or a directory with something in it.
    """
    if target.path.exists() and (not target.path.is_dir() or any(target.path.iterdir())):
        raise InputError(f"{target.path} exists and is not empty: choose another directory with --out, or remove it")


def write_derived(target: Run, source: Run, model: Model, averaged: Hierarchy) -> None:
    """Write a run that every command takes: settings, model, and the metrics of the training it comes from.

    It has no checkpoints, so training cannot go on from it.

    Args:
        target: The new run.
        source: The run that the model comes from.
        model: The changed model with its raw weights; its config is written.
        averaged: The changed hierarchy with averaged weights.

    Raises:
        InputError: If the directory of ``target`` is not empty, or cannot be written to.
        ResourceError: If the disk is full.
    """
    assert model.config is not None
    check_free(target)
    config = model.config
    if source.config_file.is_file():
        # The settings of the training are in the run's own file; those in the model file may be older.
        config = source.settings.model_copy(update={"model": model.config.model})
    writer = RunWriter(target, model)
    writer.describe(config)
    if source.metrics_file.is_file():
        shutil.copyfile(source.metrics_file, target.metrics_file)
    else:
        writer.rewind(0)
    writer.save(averaged, config, steps_of(source.given))
