"""The script that scores models of images, on the shipped digits and with pixels in place of the feature network."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import halikit as hk
from halikit import data

SCRIPT = Path(__file__).parent.parent / "docs" / "results" / "images.py"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the script; returns what it prints, and how many images went through the feature network."""

    def run(*options: object) -> tuple[str, int]:
        script, seen = runpy.run_path(str(SCRIPT)), []

        def pixels(images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return images.flatten(1)

        main = script["main"]
        monkeypatch.setitem(main.__globals__, "feature_network", lambda side: pixels)
        monkeypatch.setattr(sys, "argv", ["images.py", *map(str, options)])
        main()
        return capsys.readouterr().out, sum(seen)

    return run


def test_score(tmp_path: Path, call) -> None:
    out, cache = tmp_path / "scores.jsonl", tmp_path / "features.npz"
    arguments = ("score", "digits", "digits", "--split", "test", "--out", out, "--cache", cache)
    printed, seen = call(*arguments)
    found = json.loads(printed)
    loaded, hierarchy = data.load("digits"), hk.load("digits").hierarchy
    x = loaded.test.batch(torch.arange(len(loaded.test)))
    levels = len(hierarchy)
    with torch.no_grad():
        rebuilt = [hierarchy.reconstruct(x, level) for level in range(1, levels + 1)]
    expected = [float((x - images).square().mean().sqrt()) for images in rebuilt]
    mean = loaded.train.batch(torch.arange(len(loaded.train))).mean(0)
    assert found["images"] == len(x)
    assert found["rms"] == pytest.approx(expected, abs=1e-4)
    assert found["rms_mean_image"] == pytest.approx(float((x - mean).square().mean().sqrt()), abs=1e-4)
    assert found["coupled"] == [error <= 0.8 * found["rms_mean_image"] for error in found["rms"]]
    assert len(found["recovery"]) == len(found["recovery_from_x"]) == levels
    # Features of samples of the decoder are far closer to the data than those of noise.
    assert 0 < found["frechet"] < 10
    assert seen == len(x) + 2000

    again, seen = call(*arguments)
    assert seen == 2000, "the features of the data are in the cache"
    _, seen = call("score", "digits", "digits", "--split", "test", "--cache", cache, "--side", 128)
    assert seen == len(x) + 2000, "but not those at another side"
    assert json.loads(again) == found
    assert [json.loads(line) for line in out.read_text().splitlines()] == [found, found]


def test_picture(tmp_path: Path, call) -> None:
    out = tmp_path / "picture.png"
    call("picture", "digits", "digits", out, "--split", "test")
    rows = 1 + len(hk.load("digits").hierarchy) + 5
    with Image.open(out) as picture:
        assert picture.height >= rows * 8


def test_check(call) -> None:
    printed, _ = call("check", "digits")
    found = json.loads(printed)["frechet"]
    noise = next(value for name, value in found.items() if name.startswith("uniform noise"))
    assert 0 <= found[f"train ({len(data.load('digits').train):,})"] < noise / 5
