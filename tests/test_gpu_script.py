"""The script for GPUs, on tiny models and whatever device there is: pieces run alone, and what is done is skipped."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "results" / "gpu.py"


@pytest.mark.timeout(900)  # of a machine that is busy; it takes seconds
def test_pieces_are_kept_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"

    def call(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gpu.py", str(out), "--tiny", "--minutes", "14", *options])
        monkeypatch.delenv("HALIKIT_GPU_TINY", raising=False)
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    assert call("--only", "celeba64/loading") == "celeba64/loading\nall is done\n"
    kept = json.loads(out.read_text("utf-8"))
    assert set(kept["celeba64/loading"]["result"]) == {"resident", "host", "host, ahead"}
    assert call("--only", "celeba64/loading") == "all is done\n"
    kept["celeba64/loading"] = {"failed": "once"}
    out.write_text(json.dumps(kept), "utf-8")
    assert "missing: celeba64/loading" in call("--only", "celeba64/loading", "--minutes", "0")


def test_every_piece_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALIKIT_GPU_TINY", raising=False)
    names = runpy.run_path(str(SCRIPT))["pieces"]()
    assert len(names) == 24
    assert {name.split("/")[0] for name in names} == {"cifar10", "celeba64", "imagenet128"}
