"""Arrays from files: shapes, ranges, names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from halikit import data

BYTES = np.random.default_rng(0).integers(0, 256, (20, 8, 6, 3), dtype=np.uint8)
FLOATS = (BYTES / 127.5 - 1).astype(np.float32)


def saved(tmp_path, suffix: str, **arrays) -> str:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, arrays["images"])
    elif suffix == "npz":
        np.savez_compressed(path, **arrays)
    else:
        save_file({key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_every_format_and_layout(tmp_path, suffix):
    wanted = torch.from_numpy(BYTES.transpose(0, 3, 1, 2).copy())
    for images in (BYTES, BYTES.transpose(0, 3, 1, 2)):
        ds = data.load(saved(tmp_path, suffix, images=images))
        assert ds.spec.startswith("array:")
        assert (ds.shape, len(ds.train), ds.validation, len(ds.test)) == ((3, 8, 6), 18, None, 2)
        assert torch.equal(torch.cat([ds.train.images, ds.test.images]), wanted)
    assert data.load(saved(tmp_path, suffix, images=BYTES[..., 0])).shape == (1, 8, 6)
    for dtype in (np.float16, np.float32, np.float64):
        ds = data.load(saved(tmp_path, suffix, images=FLOATS.astype(dtype)))
        assert ds.train.images.dtype == torch.float32
        assert torch.allclose(ds.train.batch(torch.arange(18)), wanted[:18] / 127.5 - 1, atol=1e-3)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_labels_attributes_and_ranges(tmp_path, suffix):
    labels, flags = np.arange(20) % 3, np.arange(40).reshape(20, 2) % 2
    spec = saved(tmp_path, suffix, x=BYTES, y=labels, attributes=flags, range=np.array([0, 510]))
    ds = data.load(spec)
    assert (ds.classes, ds.attributes) == (("0", "1", "2"), ("0", "1"))
    assert ds.test.labels.tolist() == [0, 1]
    assert ds.train.attributes.tolist() == flags[:18].astype(bool).tolist()
    assert ds.train.images.min() == -1
    assert -0.01 < ds.train.images.max() <= 0
    ones = data.load(saved(tmp_path, suffix, images=FLOATS / 2 + 0.5, range=np.array([0.0, 1.0])))
    assert torch.allclose(ones.train.images, torch.from_numpy(FLOATS[:18]).permute(0, 3, 1, 2), atol=1e-6)


def test_names(tmp_path):
    arrays = {"classes": ["cat", "dog"], "attribute_names": ["small"], "attributes": np.ones((20, 1), bool)}
    ds = data.load(saved(tmp_path, "npz", images=BYTES, labels=np.arange(20) % 2, **arrays))
    assert (ds.classes, ds.attributes) == (("cat", "dog"), ("small",))


def test_vectors(tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 5)) * 10
    ds = data.load(saved(tmp_path, "npy", images=x))
    assert (ds.shape, ds.train.images.dtype) == ((5,), torch.float32)


def test_another_size(tmp_path):
    assert data.load(saved(tmp_path, "npy", images=BYTES), size=4).train.images.dtype == torch.uint8
    x = data.load(saved(tmp_path, "npy", images=FLOATS), size=16).train.images
    assert x.shape == (18, 3, 16, 16)
    assert -1 <= x.min() < x.max() <= 1
