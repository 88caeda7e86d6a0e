"""Features in a file: what is in it, and that interruption leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Shell, density_ladder, tiny_ladder
from safetensors import safe_open
from safetensors.torch import load_file

import halikit as hk
from halikit.analysis import features
from halikit.analysis.features import encoded, pooled, write_features
from halikit.config import Config, ModelSettings, TrainingSettings
from halikit.data import Split
from halikit.errors import InputError, ResourceError

SHAPE = (1, 8, 8)


@pytest.fixture
def part() -> Split:
    return Split(
        (torch.rand(230, *SHAPE) * 255).byte(), torch.arange(230) % 7, (torch.arange(690).reshape(230, 3) % 2).bool()
    )


def test_the_file_holds_every_level_with_labels(part: Split, tmp_path: Path) -> None:
    hierarchy = tiny_ladder(2, SHAPE, family="conv").eval()
    out = tmp_path / "f.safetensors"
    written = write_features(hierarchy, part, out, batch_size=50, about={"data": "mine"})
    assert (written.rows, written.resumed_from, written.size) == (230, 0, out.stat().st_size)
    found = load_file(out)
    with torch.no_grad():
        states = hierarchy.encode(part.batch(torch.arange(230)))
    for name in ("z1", "z2"):
        torch.testing.assert_close(found[name], states[name], rtol=1e-4, atol=1e-5)
    assert torch.equal(found["labels"], part.labels)
    assert torch.equal(found["attributes"], part.attributes)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["halikit.features"])["data"] == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["f.safetensors"]


def test_features_are_pooled_over_positions(part: Split, tmp_path: Path) -> None:
    hierarchy = tiny_ladder(2, SHAPE, family="conv").eval()
    assert hierarchy.spaces[1].is_image
    write_features(hierarchy, part, tmp_path / "whole", levels=[1])
    write_features(hierarchy, part, tmp_path / "pooled", levels=[1], pool=True)
    whole, small = (load_file(tmp_path / name) for name in ("whole", "pooled"))
    assert "z2" not in whole
    torch.testing.assert_close(small["z1"], whole["z1"].mean((2, 3)))
    assert torch.equal(pooled(torch.ones(2, 3)), torch.ones(2, 3))


def test_draws_depend_on_the_seed_alone(part: Split, tmp_path: Path) -> None:
    hierarchy = density_ladder(2, SHAPE)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed)
        write_features(hierarchy, part, tmp_path / name, draw=True, seed=seed, batch_size=64)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
    means = torch.cat([states["z1"] for _, states in encoded(hierarchy, part)])
    assert 0.1 < (load_file(tmp_path / "a")["z1"] - means).std() < 1


class Interrupted(Exception):
    """Somebody has pulled the plug."""


@pytest.mark.parametrize("draw", [False, True])
def test_an_interrupted_writing_goes_on_to_the_same_bytes(
    part: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: bool
) -> None:
    monkeypatch.setattr(features, "_SAVED_EVERY", -1.0)
    hierarchy = density_ladder(2, SHAPE)
    options = {"draw": draw, "batch_size": 40}
    whole, out = tmp_path / "whole", tmp_path / "cut"
    write_features(hierarchy, part, whole, **options)
    with pytest.raises(InputError, match="no interrupted writing"):
        write_features(hierarchy, part, out, resume=True, **options)

    def pull(done: int, total: int) -> None:
        if done == 120:
            raise Interrupted

    with pytest.raises(Interrupted):
        write_features(hierarchy, part, out, on_progress=pull, **options)
    assert not out.exists()
    with pytest.raises(InputError, match="other settings"):
        write_features(hierarchy, part, out, resume=True, draw=draw, batch_size=30)
    assert write_features(hierarchy, part, out, resume=True, **options).resumed_from == 120
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_what_cannot_be_written_is_told(part: Split, tmp_path: Path) -> None:
    hierarchy = tiny_ladder(2, SHAPE).eval()
    with pytest.raises(InputError, match="levels go from 1 to 2, got 3"):
        write_features(hierarchy, part, tmp_path / "f", levels=[1, 3])
    with pytest.raises(InputError, match="cannot write"):
        write_features(hierarchy, part, tmp_path / "no" / "f")
    if Path("/dev/full").exists():
        (tmp_path / ".f.part").symlink_to("/dev/full")
        with pytest.raises((ResourceError, InputError)):
            write_features(hierarchy, part, tmp_path / "f")


def test_the_command(halikit: Shell, tmp_path: Path) -> None:
    config = Config(model=ModelSettings(levels=2, data_shape=SHAPE, hidden=16), training=TrainingSettings(steps=2))
    trainer = hk.Trainer(hk.build(config), "digits", out=tmp_path / "run")
    trainer.fit()
    said = json.loads(halikit("encode", tmp_path / "run", "--part", "test", "--level", 2, "--json"))
    assert said["rows"] == 297
    assert load_file(said["path"])["z2"].shape == (297, *trainer.model.hierarchy.spaces[2].shape)
    assert "no validation part" in halikit("encode", tmp_path / "run", "--part", "validation", code=2)
    assert "halikit encode" in (tmp_path / "run" / "report.html").read_text("utf-8")
