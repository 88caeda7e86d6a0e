"""Functions that read untrusted files, each with valid files; test_fuzz.py and fuzz_atheris.py change these files."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
    """Contents of valid files, and a function that writes other contents to the same place and reads them."""

    good: list[bytes]
    read: Callable[[bytes], object]


def survives(read: Callable[[], object]) -> None:
    """Check that reading ends within seconds of processor time, without an error or with a short InputError."""
    began, message = time.process_time(), "no error"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except InputError as error:
            message = str(error)
    assert 1 <= len(message.splitlines()) <= 3, message[:5000]
    assert len(message) < 2000, message[:5000]
    assert all(line.isprintable() for line in message.split("\n")), ascii(message)
    assert time.process_time() - began < 20


def _of_file(path: Path, good: list[bytes], load: Callable[[], object]) -> Reader:
    def read(content: bytes) -> None:
        path.write_bytes(content)
        load()

    return Reader(good, read)


def _of_set(place: Path, name: str, file: str, write: Callable[[Path], object]) -> Reader:
    write(place)
    path = place / file
    return _of_file(path, [path.read_bytes()], lambda: data.load(f"{name}:{place}"))


def _run(place: Path) -> Path:
    trainer(config(1, training__steps=2, record__keep_checkpoints=9), place / "run").fit()
    return place / "run"


def _configs(place: Path) -> Reader:
    path = place / "config.toml"
    good = [to_toml(settings).encode() for settings in (config(), hk.presets.mnist_semi())]
    return _of_file(path, good, lambda: read_toml(path))


def _models(place: Path) -> Reader:
    path = _run(place) / "model.safetensors"
    return _of_file(path, [path.read_bytes()], lambda: hk.load(path))


def _checkpoints(place: Path, name: str, *, mends: bool) -> Reader:
    """One file of a checkpoint; with ``mends``, the manifest gets the checksum of the changed file."""
    path = _run(place) / "checkpoints" / "step-0000002"
    manifest = (path / "manifest.json").read_bytes()

    def read(content: bytes) -> None:
        (path / "manifest.json").write_bytes(manifest)
        rewritten(path, name, content) if mends else (path / name).write_bytes(content)
        trainer(config(1, training__steps=2), place / "run", resume=path, on_notice=lambda _: None)

    return Reader([(path / name).read_bytes()], read)


def _old(place: Path, file: str) -> Reader:
    """One file of a run of 0.1.0; in a checkpoint, the manifest gets the checksum of the changed file."""
    run = shutil.copytree(Path(__file__).parent / "data" / "run-0.1.0", place / "run")
    path = run / file
    if path.parent == run:
        load = (lambda: hk.load(run)) if path.suffix == ".safetensors" else (lambda: read_config(path))
        return _of_file(path, [path.read_bytes()], load)
    good = path.read_bytes()
    settings = hk.load(run).config

    def read(content: bytes) -> None:
        rewritten(path.parent, path.name, content)
        trainer(settings, run, resume=path.parent, on_notice=lambda _: None)

    return Reader([good], read)


def _mnist(place: Path, file: str) -> Reader:
    return _of_set(place, "mnist", file, write_mnist)


def _cifar(place: Path, file: str) -> Reader:
    return _of_set(place, "cifar10", file, partial(write_cifar10, n=2))


def _svhn(place: Path, *, compressed: bool) -> Reader:
    return _of_set(place, "svhn", "train_32x32.mat", partial(write_svhn, train=6, test=6, compressed=compressed))


def _packs(place: Path) -> Reader:
    path = place / "some.pack"
    np.savez(place / "some.npz", images=np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4), labels=np.arange(4) % 2)
    data.pack(f"array:{place / 'some.npz'}", path)
    return _of_file(path, [path.read_bytes()], lambda: data.load(f"pack:{path}"))


def _arrays(place: Path) -> Reader:
    path = place / "some.npz"
    good = []
    for save in (np.savez, np.savez_compressed):
        save(path, images=np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4), labels=np.arange(4) % 2)
        good.append(path.read_bytes())
    return _of_file(path, good, lambda: data.load(f"array:{path}"))


def _metrics(place: Path) -> Reader:
    run = _run(place)
    return _of_file(run / "metrics.csv", [(run / "metrics.csv").read_bytes()], lambda: Run(run).metrics())


def _findings(place: Path) -> Reader:
    """The result of an analysis, which the report of a run shows."""
    run = Run(_run(place))
    run.keep(Result("health", "Health", {}, ["a level", "another"]), "halikit evaluate health run")
    path = run.figures_folder / "health.json"
    write_report(run)  # draws the curves, which are kept
    return _of_file(path, [path.read_bytes()], lambda: write_report(Run(run.path)))


def _dumps(place: Path) -> Reader:
    values = {"trouble": "some", "step": 3, "skipped": 4, "learning_rates": [0.1], "gradients_not_finite": []}
    return _of_file(place / "diverged.json", [json.dumps(values).encode()], lambda: Run(place).divergence())


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
