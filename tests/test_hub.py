"""Runs pushed and pulled: by way of a folder, of a hub on this machine, and up to what the library is asked."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open

import halikit as hk
from halikit.config import override, read_toml
from halikit.errors import InputError
from halikit.model import ModelError
from halikit.presets.families import dense
from halikit.runs import hub
from halikit.runs.run import Result, Run

pytestmark = pytest.mark.timeout(900)  # of a machine that is busy; the tests take seconds

COMMIT = "a" * 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data of the author's own, with a finding."""
    here = tmp_path_factory.mktemp("author")
    np.save(here / "secret.npy", np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8))
    changes = {"data.spec": f"array:{here / 'secret.npy'}", "data_shape": (1, 6, 6), "steps": 4, "batch_size": 8}
    config = override(dense(2), changes | {"evaluate_every": 2, "log_every": 2, "hidden": 8})
    hk.Trainer(hk.build(config), config.data.spec, out=here / "run").fit()
    picture = np.zeros((4, 4, 3), np.uint8)
    result = Result("note", "A [note] <b>", {"at": str(here / "x.png")}, ["one", "two"], picture)
    Run(here / "run").keep(result, f"halikit note {here / 'run'}")
    return here / "run"


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as pulling asks for: one model, ``me/model``, at one commit."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        root: Path = self.server.root  # type: ignore[attr-defined]
        files = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
        _, _, name = self.path.partition("/resolve/")
        content, headers, code = b"", {"X-Repo-Commit": COMMIT}, 200
        if self.path.startswith("/api/models/me/model/revision/"):
            told = {"id": "me/model", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            content = json.dumps(told).encode()
        elif self.path.startswith("/api/models/me/model/tree/"):
            sizes = ((file, (root / file).stat().st_size) for file in files)
            told_files = [{"type": "file", "path": file, "size": size, "oid": COMMIT} for file, size in sizes]
            content = json.dumps(told_files).encode()
        elif self.path.startswith("/me/model/resolve/") and (file := name.partition("/")[2]) in files:
            content = (root / file).read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        else:
            code, headers = 404, {"X-Error-Code": "RepoNotFound"}
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the model on a hub that the library asks instead of the real one."""
    (tmp_path / "hub").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        server.root = tmp_path / "hub"  # type: ignore[attr-defined]
        _ask(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}", tmp_path)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield tmp_path / "hub"
        server.shutdown()
        thread.join()


def _ask(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "cache"))


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_bundle_leaves_directories_behind(trained: Path, tmp_path: Path) -> None:
    folder = hub.bundle(trained, tmp_path / "folder", repo="me/model")
    assert read_toml(folder / "config.toml").data.spec == "array:secret.npy"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["halikit"])["config"]["data"]["spec"] == "array:secret.npy"
    assert json.loads((folder / "figures/note.json").read_text())["command"] == "halikit note run"
    leaks = [name for name in files(folder) if str(trained.parent).encode() in (folder / name).read_bytes()]
    assert leaks == []
    suffixes = {Path(name).suffix for name in files(folder)}
    assert suffixes == {".safetensors", ".toml", ".csv", ".md", ".json", ".png"}


def test_card_tells_data_settings_figures_and_limits(trained: Path, tmp_path: Path) -> None:
    folder = hub.bundle(trained, tmp_path / "folder", repo="me/model")
    card = (folder / "README.md").read_text()
    for words in (
        "# license: which may others use it under?",
        "# model",
        "A stack of 2 levels",
        "| data | array:secret.npy |",
        "| shape of x | 1×6×6 |",
        "| steps | 4 of 8 |",
        "## Limits",
        "It knows array:secret.npy and nothing else",
        'hk.from_pretrained("me/model")',
        "halikit pull me/model",
        "### A \\[note\\] \\<b\\>",
        "    $ halikit note run",
    ):
        assert words in card, words
    shown = set(re.findall(r"\]\(([^)]+\.png)\)", card))
    assert shown == {name for name in files(folder) if name.endswith(".png")}
    last = (trained / "metrics.csv").read_text().splitlines()
    error = float(last[-1].split(",")[last[0].split(",").index("error_z1")])
    assert f"| z1 | {error:.4f} |" in card
    licensed = hub.model_card(folder, repo="me/model", licence="apache-2.0")
    assert 'license: "apache-2.0"' in licensed.split("---")[1]


def test_snippet_of_the_card_runs(trained: Path, endpoint: Path) -> None:
    hub.bundle(trained, endpoint, repo="me/model")
    code = (endpoint / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["samples"].shape == (16, 1, 6, 6)


def test_pushed_and_pulled_is_the_same_model(trained: Path, tmp_path: Path, halikit: Callable[..., str]) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back"
    assert halikit("push", trained, "me/model", "--to", folder).strip() == str(folder)
    assert halikit("pull", folder, "--out", back).strip() == str(back)
    before, after = hk.load(trained), hk.load(back)
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(before.hierarchy.reconstruct(x), after.hierarchy.reconstruct(x))
    assert hk.from_pretrained(back, weights="raw").config is not None
    assert "A [note] &lt;b&gt;" in (back / "report.html").read_text()
    assert "is there already" in halikit("pull", folder, "--out", back, code=2)
    assert "is there already" in halikit("push", trained, "me/model", "--to", folder, code=2)


def test_pulled_from_a_hub(trained: Path, endpoint: Path, tmp_path: Path, halikit: Callable[..., str]) -> None:
    hub.bundle(trained, endpoint, repo="me/model")
    (endpoint / "figures/evil.pkl").write_bytes(b"\x80\x04.")
    (endpoint / "figures/evil.svg").write_text("<svg onload='alert(1)'/>")
    (endpoint / "code.py").write_text("raise SystemExit")
    run = tmp_path / "run"
    assert json.loads(halikit("pull", "me/model", "--out", run, "--json")) == {"path": str(run)}
    assert files(endpoint) - files(run) == {"figures/evil.pkl", "figures/evil.svg", "code.py"}
    halikit("sample", run, "-n", "4")
    assert len(hk.from_pretrained("me/model").hierarchy) == 2
    assert "has no such model" in halikit("pull", "me/nothing", "--out", tmp_path / "other", code=2)
    assert "Repo id must" in halikit("pull", "no/name!", "--out", tmp_path / "other", code=2)
    assert "models of the hub are called USER/NAME" in halikit("pull", "name", "--out", tmp_path / "other", code=2)
    with pytest.raises(InputError, match="has no such model"):
        hk.from_pretrained("me/nothing")


@pytest.mark.parametrize("damage", ["model", "finding", "metrics", "none"])
def test_what_is_no_run_is_not_pulled(trained: Path, tmp_path: Path, damage: str) -> None:
    folder, out = hub.bundle(trained, tmp_path / "folder"), tmp_path / "out"
    if damage == "model":
        (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    elif damage == "finding":
        (folder / "figures/note.json").write_text('{"name": "note", "title": 3, "command": "x", "lines": [1]}')
    elif damage == "metrics":
        (folder / "metrics.csv").write_text("a,b\n1,2\n")
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises((InputError, ModelError), match=r"damaged|no model|cannot read"):
        hub.pull(str(folder), out)
    assert not out.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("has_card", [False, True])
def test_push_asks_the_library(trained: Path, monkeypatch: pytest.MonkeyPatch, has_card: bool) -> None:
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl("https://huggingface.co/me/model")
    api.file_exists.return_value = has_card
    seen = {}
    api.upload_folder.side_effect = lambda **options: seen.update(files=files(options["folder_path"]), **options)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **options: api)
    assert hub.push(trained, "me/model", private=True) == "https://huggingface.co/me/model"
    api.create_repo.assert_called_once_with("me/model", private=True, exist_ok=True)
    assert {"model.safetensors", "config.toml", "README.md"} <= seen["files"]
    # What an author has written into the card stays.
    assert seen["ignore_patterns"] == (["README.md"] if has_card else None)
    hub.push(trained, "me/model", replace_card=True)
    assert seen["ignore_patterns"] is None


def test_without_a_network_the_hub_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halikit: Callable[..., str]
) -> None:
    _ask(monkeypatch, "http://127.0.0.1:9", tmp_path)
    for command in (["push", trained, "me/model"], ["pull", "me/model", "--out", tmp_path / "run"]):
        said = halikit(*command, code=2)
        assert "asked http://127.0.0.1:9; is there a network?" in said
        assert said.count("\n") <= 3


def test_without_the_extra_it_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halikit: Callable[..., str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils.tqdm", None)
    assert "pip install 'halikit[hub]'" in halikit("push", trained, "me/model", code=2)
    assert "pip install 'halikit[hub]'" in halikit("pull", "me/model", "--out", tmp_path / "run", code=2)
    # A folder needs no hub.
    halikit("push", trained, "me/model", "--to", tmp_path / "folder")
    halikit("pull", tmp_path / "folder", "--out", tmp_path / "run")


def test_runs_with_kernels_of_ones_own_say_so(tmp_path: Path) -> None:
    x, z = hk.Space("x", (2,)), hk.Space("z1", (2,))

    def make() -> hk.Model:
        kernels = [
            hk.GaussianKernel(a, b, torch.nn.Linear(2, 4), gauge=gauge, max_scale=0.5)
            for a, b, gauge in ((x, z, "variance_preserving"), (z, x, None))
        ]
        hierarchy = hk.Hierarchy([hk.Link(*kernels)])
        return hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=8))

    settings = override(dense(1), {"steps": 2, "batch_size": 8})
    hk.Trainer(make(), torch.randn(40, 2), settings=settings, out=tmp_path / "run").fit()
    folder = hub.bundle(tmp_path / "run", tmp_path / "folder", repo="me/own")
    assert "build=build" in (folder / "README.md").read_text()
    pulled = hub.pull(str(folder), tmp_path / "back")
    with pytest.raises(ModelError, match="pass build="):
        hk.from_pretrained(pulled)
    assert hk.from_pretrained(pulled, build=make).hierarchy.sample(3).shape == (3, 2)


def test_what_is_no_run_is_not_pushed(tmp_path: Path, halikit: Callable[..., str]) -> None:
    assert "there is no run at" in halikit("push", tmp_path, "me/model", "--to", tmp_path / "folder", code=2)
    assert not (tmp_path / "folder").exists()
