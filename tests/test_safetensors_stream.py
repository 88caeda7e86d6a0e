"""Headers of safetensors files that are written in pieces: the safetensors library reads the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from halikit.utils.safetensors_stream import make_header, read_header

TENSORS = {
    "labels": torch.arange(5),
    "features": torch.linspace(-1, 1, 30).reshape(5, 2, 3),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(7.0),
    "flags": torch.arange(10).reshape(5, 2) % 2 == 0,
    "pixels": torch.arange(15, dtype=torch.uint8).reshape(5, 3),
}
DESCRIBED = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
VALUE = {"names": ["Ωμέγα", "a\nb", '"'], "number": 1.5, "nothing": None}


def write(path: Path, *, length: int | None = None) -> None:
    """Header first, then the tensors in reverse order at their offsets."""
    header, stored = make_header(DESCRIBED, "some.key", VALUE, length=length)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(max(place.end for place in stored.values()))
        for name, place in reversed(stored.items()):
            file.seek(place.offset)
            assert file.write(TENSORS[name].numpy().tobytes()) == place.nbytes


@pytest.mark.parametrize("length", [None, 4096])
def test_the_library_reads_what_is_written(tmp_path, length):
    path = tmp_path / "a.safetensors"
    write(path, length=length)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(TENSORS)
        for name, tensor in TENSORS.items():
            found = file.get_tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
        assert file.metadata().keys() == {"some.key"}
        assert json.loads(file.metadata()["some.key"]) == VALUE


@pytest.mark.parametrize("length", [None, 4096])
def test_the_header_is_read_again(tmp_path, length):
    path = tmp_path / "a.safetensors"
    write(path, length=length)
    header, stored = make_header(DESCRIBED, "some.key", VALUE, length=length)
    assert read_header(path, "some.key") == (VALUE, stored)
    assert len(header) == (length or len(header)) == stored["labels"].offset
    assert len(header) % 8 == 0
    place = stored["features"]
    assert np.fromfile(path, "<f4", 30, offset=place.offset).tolist() == TENSORS["features"].flatten().tolist()


def test_a_file_of_the_library_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2, 3)}, path, metadata={"some.key": "[1, 2]"})
    value, stored = read_header(path, "some.key")
    assert (value, stored["a"].shape, stored["a"].dtype) == ([1, 2], (2, 3), torch.float32)
    assert stored["a"].end == path.stat().st_size


def test_a_header_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="more than 64"):
        make_header(DESCRIBED, "some.key", VALUE, length=64)


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


METADATA = {"__metadata__": {"some.key": "1"}}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"hello, this is longer than eight bytes",
        (2**63).to_bytes(8, "little"),
        header(METADATA | {"a": ENTRY})[:-3],
        header([]),
        header({"a": ENTRY}),
        header({"__metadata__": {"another.key": "1"}}),
        header({"__metadata__": {"some.key": "not JSON"}}),
        header(METADATA | {"a": 1}),
        header(METADATA | {"a": {"dtype": "F32"}}),
        header(METADATA | {"a": ENTRY | {"dtype": "F9"}}),
        header(METADATA | {"a": ENTRY | {"shape": [3]}}),
        header(METADATA | {"a": ENTRY | {"shape": [-2], "data_offsets": [8, 0]}}),
        header(METADATA | {"a": ENTRY | {"shape": [2.0]}}),
        header(METADATA | {"a": ENTRY | {"data_offsets": [0]}}),
        b"\xff\x00\x00\x00\x00\x00\x00\x00" + b"[" * 255,
    ],
)
def test_damaged_headers_are_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_header(path, "some.key")
