"""The scripts for GPUs, on tiny models and whatever device there is."""

from __future__ import annotations

import json
import os
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import halikit as hk

pytestmark = pytest.mark.filterwarnings("ignore:this CPU has no units for bfloat16")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "results"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("gpu")


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("gpu_pieces")


def played(pieces: ModuleType, name: str, **given: Any) -> dict[str, Any]:
    """What a tiny piece gives, in this process."""
    found: dict[str, Any] = {}
    pieces.play(name, pieces.Given(lambda key, value: found.update({key: value}), True, **{"is_eager": True} | given))
    return json.loads(json.dumps(found))


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "small at 64"])
def test_speed_is_measured_against_the_plain_loop_and_the_floor(pieces: ModuleType, name: str) -> None:
    found = played(pieces, f"speed/{name}")
    turns = found["turns"]
    assert set(turns) == {"plain loop", "plain loop, bf16", "halikit, eager"}
    assert turns["plain loop"]["times the plain loop"] == 1
    for turn in turns.values():
        assert turn["images per second"] == pytest.approx(found["batch size"] / turn["seconds"], rel=1e-3)
        assert turn["share of the floor"] == pytest.approx(found["floor"]["seconds"] / turn["seconds"], rel=1e-3)
    assert found["compiled"] == "no: all steps are eager"


@pytest.mark.parametrize(
    ("name", "shape", "batch"),
    [
        ("cifar10", (3, 32, 32), 100),
        ("cifar10, batch 500", (3, 32, 32), 500),
        ("imagenet128", (3, 128, 128), 100),
        ("large at 32", (3, 32, 32), 32),
    ],
)
def test_names_of_models(pieces: ModuleType, name: str, shape: tuple[int, ...], batch: int) -> None:
    config = pieces.config_of(name, pieces.Given(print))
    assert (config.model.data_shape, config.training.batch_size) == (shape, batch)
    assert (config.hardware.precision, config.hardware.compile) == ("bf16", None)
    assert config.model.size == ("large" if "large" in name else None)


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning")  # torch's own compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a time limit met by a finalizer
@pytest.mark.parametrize("fault", ["fails", "takes too long"])
def test_without_compilation_the_steps_go_on_eager(
    pieces: ModuleType, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def compiles(*given: object, **more: object) -> None:
        if fault == "fails":
            raise RuntimeError("no such instruction")
        time.sleep(60)

    monkeypatch.setattr("torch._inductor.compile", compiles)
    # Before the time for compilation counts, torch's own compiler is imported.
    import_module("torch._inductor.compile_fx")
    found = played(pieces, "training", is_eager=False, seconds=600.0 if fault == "fails" else 3.0)
    assert {"fails": "no such instruction", "takes too long": "not compiled within"}[fault] in found["default fails"][0]
    assert found["mode"] == "eager"
    assert found["steps"]["number"] == 6


def test_training_scores_the_faces_as_it_goes(pieces: ModuleType, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "faces.npy", images)
    hk.data.pack(f"array:{tmp_path / 'faces.npy'}", tmp_path / "faces.pack")
    found = played(pieces, "training", faces=tmp_path / "faces.pack")
    assert sum(found["images"].values()) == 60
    assert len(found["scores"]) >= 3
    assert all(len(score["errors"]) == 2 and min(score["errors"]) > 0 for score in found["scores"])


def test_training_needs_faces(pieces: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--faces"):
        pieces.play("training", pieces.Given(lambda name, value: None))


# --- run --------------------------------------------------------------------------------------------------------------


def test_pieces_are_kept_and_skipped(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pieces in processes of their own: the machine, and the tests on a GPU that is a CPU here."""
    out = tmp_path / "gpu.json"

    def call(*options: str) -> tuple[int, str]:
        code = gpu.main(["run", str(out), "--tiny", "--eager", *options])
        return code, capsys.readouterr().out

    code, said = call("--only", "machine")
    assert (code, said.splitlines()[0], said.splitlines()[-1]) == (0, "machine, at most 30 s", "all is done")
    kept = json.loads(out.read_text("utf-8"))
    assert kept["machine"]["results"]["versions"]["halikit"] == hk.__version__
    assert call("--only", "machine") == (0, "all is done\n")
    kept["machine"]["done"] = False
    out.write_text(json.dumps(kept), "utf-8")
    assert call("--only", "machine", "--minutes", "0")[1] == "missing: machine. Call again.\n"
    assert call("--only", "tests")[0] == 0
    kept = json.loads(out.read_text("utf-8"))
    assert kept["tests"]["results"]["counts"] == {"passed": 1, "failed": 0, "skipped": 0}


def test_a_failed_piece_does_not_stop_the_rest(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pieces of a stand-in: one keeps a result and fails, one takes too long, one is done."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "gpu.py").write_text((FOLDER / "gpu.py").read_text("utf-8"), "utf-8")
    (here / "gpu_pieces.py").write_text(
        "import time, collections\n"
        "Given = collections.namedtuple('Given', 'keep is_tiny is_eager faces seconds')\n"
        "def play(piece, given):\n"
        "    given.keep('first', 1)\n"
        "    if piece == 'machine':\n"
        "        raise ValueError('no machine')\n"
        "    if piece == 'tests':\n"
        "        time.sleep(60)\n",
        "utf-8",
    )
    stages = (gpu.Stage(("machine",), 30, 30), gpu.Stage(("tests",), 2, 2), gpu.Stage(("training",), 20, 20))
    monkeypatch.setattr(gpu, "HERE", here)
    monkeypatch.setattr(gpu, "STAGES", stages)
    assert gpu.main(["run", str(tmp_path / "out.json")]) == 1
    kept = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert [kept[name]["done"] for name in ("machine", "tests", "training")] == [False, False, True]
    assert "no machine" in kept["machine"]["failed"]
    assert "not done within 2 s" in kept["tests"]["failed"]
    assert all(kept[name]["results"] == {"first": 1} for name in kept)
    assert "missing: machine; tests" in capsys.readouterr().out


def test_the_stages_take_nine_minutes(gpu: ModuleType) -> None:
    assert sum(stage.seconds for stage in gpu.STAGES) == 60 * gpu.MINUTES
    assert {piece for stage in gpu.STAGES for piece in stage.pieces} > gpu.TINY


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_every_package_that_halikit_needs_is_brought_or_expected(gpu: ModuleType) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = {name.partition(">")[0] for name in tomllib.load(file)["project"]["dependencies"]}
    assert needed <= {*gpu.WITH_NEEDS, *gpu.ALONE, *gpu.EXPECTED}


def test_prepare_fetches_wheels_and_packs_faces(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for pip: 70 faces are asked for, and there is room for 50."""
    commands: list[list[str]] = []

    def pip(command: list[str], check: bool) -> None:
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / f"wheel{len(commands)}.whl").write_bytes(bytes(1000))

    monkeypatch.setattr(gpu.subprocess, "run", pip)
    faces = np.random.default_rng(0).integers(0, 256, (700, 3, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "faces.npy", faces)
    mebibytes = (2000 + 2**16 + 50 * 3 * 64**2) / 2**20
    call = ["prepare", str(tmp_path / "kit"), "--faces", f"array:{tmp_path / 'faces.npy'}", "--more", "scipy"]
    assert gpu.main([*call, "--mebibytes", f"{mebibytes:.6f}"]) == 0
    said = capsys.readouterr().out
    assert "--no-deps" not in commands[0]
    assert {"pyro-ppl", "lightning-fabric", "scipy", "--no-deps"} < set(commands[1])
    data = hk.data.load(str(tmp_path / "kit" / "faces.pack"))
    assert sum(map(len, data.parts.values())) == 50
    size = sum(file.stat().st_size for file in (tmp_path / "kit").rglob("*") if file.is_file())
    assert size <= mebibytes * 2**20
    assert data.shape == (3, 64, 64)
    assert f"gpu.py run gpu.json --site {tmp_path / 'kit'}{os.sep}site --faces" in said
    assert f"--target {tmp_path / 'kit'}{os.sep}site" in said
    assert sys.executable in commands[0]
    assert gpu.main([*call, "--mebibytes", "0.1"]) == 1


def test_faces_of_another_size_are_refused(gpu: ModuleType, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "faces.npy", images)
    hk.data.pack(f"array:{tmp_path / 'faces.npy'}", tmp_path / "small.pack")
    with pytest.raises(SystemExit, match=r"wanted are \(3, 64, 64\)"):
        gpu.pack_faces(str(tmp_path / "small.pack"), tmp_path / "out.pack", 10)
