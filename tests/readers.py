"""Functions that read untrusted files, each with valid files; test_fuzz.py and fuzz_atheris.py change these files."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from makers import write_cifar10, write_mnist, write_svhn
from test_resume import config, rewritten, trainer

import halikit as hk
from halikit import data
from halikit.config import read_toml, to_toml
from halikit.earlier import read_config
from halikit.errors import InputError
from halikit.runs.report import write_report
from halikit.runs.run import Result, Run

__all__ = ["READERS", "Reader", "survives"]


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        good: Contents of valid files, each with what reading it gives.
        read: Writes other contents to the same place and reads them.
        named: What every complaint names: the file, or what it belongs to.
    """

    good: list[tuple[bytes, object]]
    read: Callable[[bytes], object]
    named: str


def survives(read: Callable[[], object]) -> str | None:
    """Check that reading ends within seconds of processor time, without an error or with a short InputError.

    Returns:
        The message of the error; ``None`` without one.
    """
    began, message = time.process_time(), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except InputError as error:
            message = str(error)
    assert time.process_time() - began < 20
    if message is not None:
        assert 1 <= len(message.splitlines()) <= 3, message[:5000]
        assert len(message) < 2000, message[:5000]
        assert all(line.isprintable() for line in message.split("\n")), ascii(message)
    return message


def _of_file(path: Path, good: list[tuple[bytes, object]], load: Callable[[], object]) -> Reader:
    def read(content: bytes) -> object:
        path.write_bytes(content)
        return load()

    return Reader(good, read, path.name)


def _images(spec: str) -> list[int]:
    """Number of images in each part of a data set."""
    return [len(part) for part in data.load(spec).distinct_parts]


def _of_set(place: Path, name: str, file: str, write: Callable[[Path], object], images: list[int]) -> Reader:
    write(place)
    path = place / file
    reader = _of_file(path, [(path.read_bytes(), images)], lambda: _images(f"{name}:{place}"))
    return replace(reader, named=place.name)


def _run(place: Path) -> Path:
    trainer(config(1, training__steps=2, record__keep_checkpoints=9), place / "run").fit()
    return place / "run"


def _configs(place: Path) -> Reader:
    path = place / "config.toml"
    good = [(to_toml(settings).encode(), settings) for settings in (config(), hk.presets.mnist_semi())]
    return _of_file(path, good, lambda: read_toml(path))


def _models(place: Path) -> Reader:
    path = _run(place) / "model.safetensors"
    return _of_file(path, [(path.read_bytes(), 1)], lambda: len(hk.load(path).hierarchy))


def _checkpoints(place: Path, name: str, *, mends: bool) -> Reader:
    """One file of a checkpoint; with ``mends``, the manifest gets the checksum of the changed file."""
    path = _run(place) / "checkpoints" / "step-0000002"
    manifest = (path / "manifest.json").read_bytes()

    def read(content: bytes) -> int:
        (path / "manifest.json").write_bytes(manifest)
        rewritten(path, name, content) if mends else (path / name).write_bytes(content)
        return trainer(config(1, training__steps=2), place / "run", resume=path, on_notice=lambda _: None).steps

    return Reader([((path / name).read_bytes(), 2)], read, path.name)


def _old(place: Path, file: str) -> Reader:
    """One file of a run of 0.1.0; in a checkpoint, the manifest gets the checksum of the changed file."""
    run = shutil.copytree(Path(__file__).parent / "data" / "run-0.1.0", place / "run")
    path = run / file
    if path.parent == run:
        weights = path.suffix == ".safetensors"
        load = (lambda: len(hk.load(run).hierarchy)) if weights else (lambda: read_config(path).model.levels)
        return _of_file(path, [(path.read_bytes(), 3)], load)
    good = path.read_bytes()
    settings = hk.load(run).config

    def read(content: bytes) -> int:
        rewritten(path.parent, path.name, content)
        return trainer(settings, run, resume=path.parent, on_notice=lambda _: None).steps

    return Reader([(good, 60)], read, path.parent.name)


def _mnist(place: Path, file: str) -> Reader:
    return _of_set(place, "mnist", file, write_mnist, [36, 4, 10])


def _cifar(place: Path, file: str) -> Reader:
    return _of_set(place, "cifar10", file, partial(write_cifar10, n=2), [9, 1, 2])


def _svhn(place: Path, *, compressed: bool) -> Reader:
    write = partial(write_svhn, train=6, test=6, compressed=compressed)
    return _of_set(place, "svhn", "train_32x32.mat", write, [6, 6])


def _packs(place: Path) -> Reader:
    path = place / "some.pack"
    np.savez(place / "some.npz", images=np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4), labels=np.arange(4) % 2)
    data.pack(f"array:{place / 'some.npz'}", path)
    return _of_file(path, [(path.read_bytes(), [3, 1])], lambda: _images(f"pack:{path}"))


def _arrays(place: Path) -> Reader:
    path = place / "some.npz"
    good = []
    for save in (np.savez, np.savez_compressed):
        save(path, images=np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4), labels=np.arange(4) % 2)
        good.append((path.read_bytes(), [3, 1]))
    return _of_file(path, good, lambda: _images(f"array:{path}"))


def _metrics(place: Path) -> Reader:
    run = _run(place)
    path = run / "metrics.csv"
    return _of_file(path, [(path.read_bytes(), [2.0])], lambda: Run(run).metrics()["step"])


def _findings(place: Path) -> Reader:
    """The result of an analysis, which the report of a run shows."""
    run = Run(_run(place))
    run.keep(Result("health", "Health", {}, ["a level", "another"]), "halikit evaluate health run")
    path = run.figures_folder / "health.json"
    write_report(run)  # draws the curves, which are kept
    return _of_file(path, [(path.read_bytes(), run.report_file)], lambda: write_report(Run(run.path)))


def _dumps(place: Path) -> Reader:
    values = {"trouble": "some", "step": 3, "skipped": 4, "learning_rates": [0.1], "gradients_not_finite": []}
    return _of_file(place / "diverged.json", [(json.dumps(values).encode(), values)], lambda: Run(place).divergence())


READERS: dict[str, Callable[[Path], Reader]] = {
    "config": _configs,
    "model": _models,
    "manifest": partial(_checkpoints, name="manifest.json", mends=False),
    "state of a checkpoint": partial(_checkpoints, name="state.json", mends=True),
    "tensors of a checkpoint": partial(_checkpoints, name="tensors.safetensors", mends=True),
    "config of 0.1.0": partial(_old, file="config.toml"),
    "model of 0.1.0": partial(_old, file="model.safetensors"),
    "state of a checkpoint of 0.1.0": partial(_old, file="checkpoints/step-0000060/state.json"),
    "tensors of a checkpoint of 0.1.0": partial(_old, file="checkpoints/step-0000060/tensors.safetensors"),
    "IDX images": partial(_mnist, file="train-images-idx3-ubyte"),
    "IDX labels": partial(_mnist, file="train-labels-idx1-ubyte"),
    "CIFAR": partial(_cifar, file="data_batch_1.bin"),
    "MAT": partial(_svhn, compressed=False),
    "MAT, compressed": partial(_svhn, compressed=True),
    "pack": _packs,
    "array": _arrays,
    "metrics": _metrics,
    "finding": _findings,
    "dump": _dumps,
}
