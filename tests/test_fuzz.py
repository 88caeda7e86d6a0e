"""Files of strangers: whatever is in them, a clean error or a sound result, in bounded memory and time."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import _no_child_survives as _no_child_survives
from children import fork, limit_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, Reader, survives
from safetensors.torch import save
from test_resume import config, trainer

import halikit as hk
from halikit.config import read_toml
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "run"
    trainer(config(1, training__steps=2, record__keep_checkpoints=9), path).fit()
    return path


@pytest.fixture(scope="module", params=READERS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return READERS[request.param](tmp_path_factory.mktemp("changed"))


@QUICK
@given(change=changes(), which=st.integers(0, 1))
def test_changed_files(reader: Reader, change: Change, which: int) -> None:
    content, _ = reader.good[which % len(reader.good)]
    complaint = survives(lambda: reader.read(change(content)))
    assert complaint is None or reader.named in complaint


def test_good_files(reader: Reader) -> None:
    """They are read, so that changed ones get beyond the first check."""
    for content, expected in reader.good:
        assert reader.read(content) == expected


@pytest.mark.soak
@pytest.mark.parametrize("name", READERS)
def test_coverage_guided(name: str, tmp_path: Path) -> None:
    """By atheris, for a minute; inputs that bring something new are changed further."""
    pytest.importorskip("atheris")
    script = Path(__file__).parent / "fuzz_atheris.py"
    done = subprocess.run(
        [sys.executable, script, name, f"-max_total_time={os.environ.get('HALIKIT_FUZZ_SECONDS', '60')}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]


def refused(read: Callable[[], object]) -> str:
    """The message of the InputError with which it is refused, in 300 MiB more than there is and a minute of time."""

    def check() -> None:
        limit_memory(300)
        with pytest.raises(InputError) as error:
            read()
        print(error.value, end="")

    child = fork(check)
    assert child.wait(60) == 0, child.said
    return child.said


def model_with(path: Path, **changed: object) -> Path:
    """A good model file that says something else of itself, or whose config does (``section__name``)."""
    torch.manual_seed(0)
    model = hk.build(config(1))
    save_model(path, model, model.hierarchy, config=config(1), step=1)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about = json.loads(header["__metadata__"]["halikit"])
    for name, value in changed.items():
        section, _, key = name.partition("__")
        if key:
            about["config"][section][key] = value
        else:
            about[name] = value
    header["__metadata__"]["halikit"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


TOO_LARGE = "does not fit the model built|holds a config that no model can be built from|is of a larger model than"


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
    assert re.fullmatch(f"{re.escape(str(path))} .*({TOO_LARGE}).*", refused(lambda: hk.load(path)))


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
    complaint = refused(lambda: hk.load(path))
    assert complaint.startswith(f"{path} is no halikit model, or damaged: ")
    assert len(complaint.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 10**5, "is not valid TOML"),
        ("steps = " + "9" * 10**5, "is not valid TOML"),
        ("a" * 2**21, "it is longer than 1,048,576 bytes"),
        ("training.steps = {", "is not valid TOML"),
        ("\0", "is not valid TOML"),
    ],
    ids=["nested", "a large number", "long", "open", "a zero"],
)
def test_hostile_toml_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert re.fullmatch(f".*{re.escape(str(path))}:? {reason}.*", refused(lambda: read_toml(path)))


def test_files_without_end_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        complaint = refused(lambda path=path: read_toml(path))
        assert complaint == f"cannot read the config {path}: it is no regular file"


def test_no_pickle_is_written(run: Path) -> None:
    for path in run.rglob("*"):
        if path.is_file() and path.parent.name != "tensorboard":
            assert path.suffix in {".safetensors", ".json", ".toml", ".csv", ".png", ""}
            assert not path.read_bytes().startswith(b"\x80")


@pytest.mark.parametrize("levels", [0, -1, 2, 10**6, "one", None])
def test_a_model_with_an_impossible_number_of_levels_is_refused(tmp_path: Path, levels: object) -> None:
    with pytest.raises(ModelError, match="damaged"):
        hk.load(model_with(tmp_path / "m.safetensors", levels=levels))
