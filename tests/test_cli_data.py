"""halikit data, and training on what it packs, as a shell sees them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from children import _no_child_survives as _no_child_survives
from children import command as halikit
from makers import plant, write_celeba, write_mnist
from PIL import Image
from test_cli import QUICK, started

import halikit as hk
from halikit.errors import InputError

TREE = [f"{c}/{i:02}.png" for c in ("cat", "dog") for i in range(40)]
MAPS = ["--set", "model.family=conv", "--set", "model.maps=3"]


def test_info(tmp_path):
    plant(tmp_path / "photos", TREE)
    (tmp_path / "photos" / "cat" / "bad.png").write_bytes(b"")
    said = json.loads(started("data", "info", "photos", "--json", "--out", "sheet.png", cwd=tmp_path).stdout)
    assert said["spec"] == "folder:photos"
    assert said["shape"] == [3, 8, 8]
    assert sum(said["parts"].values()) == 80
    assert said["classes"] == {"cat": 40, "dog": 40}
    assert 0 <= said["minimum"] < said["mean"] < said["maximum"] <= 255
    assert said["skipped"] == [["cat/bad.png", "empty file"]]
    with Image.open(tmp_path / said["contact_sheet"]) as image:
        assert np.asarray(image).std() > 20
    lines = halikit("data", "info", "photos", cwd=tmp_path).stdout
    assert "cat 40, dog 40" in lines
    assert "cat/bad.png: empty file" in lines


def test_training_says_what_a_reader_guessed_and_strictly_refuses_it(tmp_path):
    plant(tmp_path / "photos", [f"{part}/{name}" for part in ("Training", "Testing") for name in TREE])
    (tmp_path / "photos" / "a.heic").write_bytes(b"no image")
    said = halikit("train", "--data", "photos", *QUICK, "--dry-run", cwd=tmp_path).stderr
    assert "folders are read as splits: Testing/ as test, Training/ as train" in said
    refused = halikit("train", "--data", "photos", "--set", "data.strict=true", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "such as a.heic; strict allows" in refused.stderr
    model = hk.build(hk.Config(model=hk.config.ModelSettings(data_shape=(3, 8, 8)), data={"strict": True}))
    with pytest.raises(InputError, match="strict allows no file"):
        hk.Trainer(model, tmp_path / "photos")


def test_info_of_attributes(tmp_path):
    write_celeba(tmp_path / "celeba", 10, size=(89, 109))
    said = json.loads(halikit("data", "info", "celeba", "--size", "8", "--json", cwd=tmp_path).stdout)
    assert said["attributes"] == pytest.approx({"Bald": 0.5, "Young": 0.6})
    assert said["parts"] == {"train": 6, "validation": 2, "test": 2}


def test_pack_and_train(tmp_path):
    write_mnist(tmp_path / "mnist", train=80, shape=(8, 8))
    said = json.loads(started("data", "pack", "mnist:mnist", "digits.pack", "--json", cwd=tmp_path).stdout)
    assert said["origin"] == "mnist:mnist"
    assert said["parts"] == {"train": 72, "validation": 8, "test": 10}
    for run, spec in (("a", "mnist:mnist"), ("b", "digits.pack")):
        augmented = ["--set", "data.flip=true", "--set", "data.shift=1", "--set", "data.strict=true"]
        halikit("train", "--levels", "1", "--data", spec, "--out", run, *QUICK, *augmented, cwd=tmp_path)
    first, second = (
        [line.split(",")[3:7] for line in (tmp_path / run / "metrics.csv").read_text().splitlines()] for run in "ab"
    )
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "info", "nowhere"], "no such file"),
        (["data", "info", "digits", "--out", "no/sheet.png"], "no directory"),
        (["data", "info", "digits", "--out", "sheet.npy"], "halikit sample alone writes numbers"),
        (["data", "pack", "digits", "keep.txt"], "is not a pack"),
        (["data", "pack", "digits"], "OUT"),
        (["data", "pack", "folder:photos", "a.pack", "--size", "0"], "size"),
        (["train", "--data", "photos", "--batch-size", "100"], "training samples, fewer than a batch of 100"),
        (["train", "--data", "photos", "--set", "data.shift=8", "--batch-size", "8"], "larger than that"),
        (
            ["train", "--data", "photos", "--levels", "4", "--batch-size", "8", *MAPS, "--set", "data.size=33"],
            "can have 0 to 2 latents with maps, got 3; the nearest sizes that have 3: 57×57",
        ),
    ],
)
def test_wrong_usage_is_told_before_a_model_is_built(tmp_path, arguments, message):
    plant(tmp_path / "photos", TREE)
    (tmp_path / "keep.txt").write_text("mine")
    done = halikit(*arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep.txt", "photos"]
