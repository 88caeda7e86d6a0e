"""Files of strangers: whatever is in them, a clean error or a sound result, in bounded memory and time."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import _no_child_survives as _no_child_survives
from children import fork, limit_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import write_cifar10, write_mnist, write_svhn
from safetensors.torch import save
from test_resume import config, rewritten, trainer

import halikit as hk
from halikit import data
from halikit.config import read_toml, to_toml
from halikit.errors import InputError
from halikit.model import ModelError, save_model

CASES = int(os.environ.get("HALIKIT_FUZZ_CASES", "60"))
QUICK = settings(max_examples=CASES, suppress_health_check=list(HealthCheck), deadline=None)

# What may happen to a file: bytes changed, cut out or put in, the end cut off, or all of it replaced.
Change = Callable[[bytes], bytes]


@st.composite
def changes(draw: st.DrawFn) -> Change:
    kind = draw(st.sampled_from(["flip", "cut", "insert", "truncate", "number", "replace"]))
    place, content = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=40))
    number = struct.pack(
        draw(st.sampled_from(["<I", ">I", "<Q", ">Q"])), draw(st.sampled_from([0, 1, 2**31, 2**32 - 1]))
    )

    def change(before: bytes) -> bytes:
        at = int(place * len(before))
        return {
            "flip": before[:at] + bytes(b ^ 0x41 for b in before[at : at + len(content)]) + before[at + len(content) :],
            "cut": before[:at] + before[at + len(content) :],
            "insert": before[:at] + content + before[at:],
            "truncate": before[:at],
            "number": before[:at] + number + before[at + len(number) :],
            "replace": content,
        }[kind]

    return change


def survives(read: Callable[[], object]) -> None:
    """A clean error in a few lines, or none, within seconds."""
    began, said = time.monotonic(), "fine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except InputError as error:
            said = str(error)
    assert 1 <= len(said.splitlines()) <= 3
    assert len(said) < 2000
    assert time.monotonic() - began < 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "run"
    trainer(config(1, training__steps=2, training__keep=9), path).fit()
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changed")


@QUICK
@given(change=changes())
def test_configs(place: Path, change: Change) -> None:
    path = place / "config.toml"
    path.write_bytes(change(to_toml(config()).encode()))
    survives(lambda: read_toml(path))


@QUICK
@given(change=changes())
def test_models(run: Path, place: Path, change: Change) -> None:
    path = place / "model.safetensors"
    path.write_bytes(change((run / "model.safetensors").read_bytes()))
    survives(lambda: hk.load(path))


@QUICK
@given(
    change=changes(), name=st.sampled_from(["manifest.json", "state.json", "tensors.safetensors"]), mends=st.booleans()
)
def test_checkpoints(run: Path, place: Path, change: Change, name: str, mends: bool) -> None:
    shutil.rmtree(place / "run", ignore_errors=True)
    shutil.copytree(run, place / "run")
    path = place / "run" / "checkpoints" / "step-0000002"
    content = change((path / name).read_bytes())
    (path / name).write_bytes(content)
    if mends and name != "manifest.json":
        rewritten(path, name, content)  # a stranger can compute a checksum
    survives(lambda: trainer(config(1, training__steps=2), place / "run", resume=path, on_notice=lambda _: None))


def damaged_set(place: Path, name: str, write: Callable[[Path], object], pattern: str, change: Change) -> None:
    shutil.rmtree(place / name, ignore_errors=True)
    write(place / name)
    for path in sorted((place / name).rglob(pattern)):
        path.write_bytes(change(path.read_bytes()))
    survives(lambda: data.load(f"{name}:{place / name}"))


@QUICK
@given(change=changes())
def test_idx(place: Path, change: Change) -> None:
    damaged_set(place, "mnist", write_mnist, "*images*", change)


@QUICK
@given(change=changes())
def test_cifar(place: Path, change: Change) -> None:
    damaged_set(place, "cifar10", write_cifar10, "*batch_1*", change)


@QUICK
@given(change=changes(), compressed=st.booleans())
def test_mat(place: Path, change: Change, compressed: bool) -> None:
    write = lambda root: write_svhn(root, train=6, test=6, compressed=compressed)  # noqa: E731
    damaged_set(place, "svhn", write, "train*", change)


@QUICK
@given(change=changes())
def test_packs(place: Path, change: Change) -> None:
    path = place / "digits.pack"
    path.unlink(missing_ok=True)
    data.pack("digits", path)
    path.write_bytes(change(path.read_bytes()))
    survives(lambda: data.load(f"pack:{path}"))


def bounded(read: Callable[[], object]) -> None:
    """In 300 MiB more than there is, and a minute of time, it is refused."""

    def check() -> None:
        limit_memory(300)
        with pytest.raises(InputError) as error:
            read()
        print(error.value)

    child = fork(check)
    assert child.wait(60) == 0, child.said


def model_with(path: Path, **changed: object) -> Path:
    """A good model file whose config says something else."""
    torch.manual_seed(0)
    model = hk.build(config(1))
    save_model(path, model, model.hierarchy, config=config(1), step=1, level=1)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"]["halikit"])
    for name, value in changed.items():
        section, key = name.split("__")
        about["config"][section][key] = value
    header["__metadata__"]["halikit"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"model__hidden": 10**9},
        {"model__hidden": 10**18},
        {"model__levels": 10**9},
        {"model__depth": 10**9},
        {"model__widths": [10**9]},
        {"model__data_shape": [1, 10**9, 10**9]},
        {"model__data_shape": [10**15]},
        {"model__family": "conv", "model__maps": 10**9},
        {"discriminator__width": 10**9},
        {"discriminator__depth": 10**9},
    ],
    ids=str,
)
def test_a_model_larger_than_its_file_is_refused_in_bounded_memory(tmp_path: Path, changed: dict[str, object]) -> None:
    path = model_with(tmp_path / "model.safetensors", **changed)
    bounded(lambda: hk.load(path))


def hostile_files() -> dict[str, bytes]:
    def header(values: object, rest: bytes = b"") -> bytes:
        text = json.dumps(values).encode()
        return len(text).to_bytes(8, "little") + text + rest

    tensor = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}
    return {
        "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
        "a header longer than the file": (2**24).to_bytes(8, "little") + b"{}",
        "a shape larger than the file": header({"a": tensor}, bytes(4)),
        "offsets beyond the file": header({"a": tensor | {"shape": [1], "data_offsets": [0, 2**50]}}, bytes(4)),
        "nested deeply": save({"a": torch.zeros(1)}, {"halikit": "[" * 10**5}),
        "a pickle": pickle.dumps({"model": print}),
        "a pickle of torch's": b"PK\x03\x04" + pickle.dumps(print),
        "empty": b"",
    }


@pytest.mark.parametrize("name", hostile_files())
def test_hostile_model_files_are_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(hostile_files()[name])
    bounded(lambda: hk.load(path))


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 10**5, "steps = " + "9" * 10**5, "a" * 2**21, "training.steps = {", "\0"]
)
def test_hostile_toml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    bounded(lambda: read_toml(tmp_path / "config.toml"))


def test_files_without_end_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        bounded(lambda path=path: read_toml(path))


def test_no_pickle_is_written(run: Path) -> None:
    for path in run.rglob("*"):
        if path.is_file() and path.parent.name != "tensorboard":
            assert path.suffix in {".safetensors", ".json", ".toml", ".csv", ".png", ""}
            assert not path.read_bytes().startswith(b"\x80")


def test_a_model_may_have_no_more_trained_levels_than_levels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hk.build(config(1))
    for level in (0, 10**6):
        save_model(tmp_path / "m.safetensors", model, model.hierarchy, config=config(1), step=1, level=level)
        with pytest.raises(ModelError, match="damaged"):
            hk.load(tmp_path / "m.safetensors")
