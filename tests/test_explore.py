"""`halikit explore`: what the page asks for, what it refuses to strangers, and the page itself in a browser."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from browser import Browser
from conftest import density_ladder, tiny_ladder
from makers import picture
from PIL import Image

import halikit as hk
from halikit.config import override
from halikit.data.dataset import DataSet, Split
from halikit.errors import InputError
from halikit.explore import Explorer, Server
from halikit.presets.families import dense


class Client:
    """Asks a server as a page of its own would, unless told otherwise."""

    def __init__(self, url: str) -> None:
        self.address = urlsplit(url)

    def ask(self, what: str, body: object = None, status: int = 200, **headers: str) -> dict[str, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        code, _, said = self.call("POST", f"{self.address.path}api/{what}", content, {"Content-Type": kind} | headers)
        assert code == status, said
        return json.loads(said)

    def call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        return answer.status, answer.headers, said


@contextlib.contextmanager
def serving(explorer: Explorer, on_error: Any = pytest.fail) -> Iterator[Server]:
    with Server(explorer, on_error=on_error) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def images(shape: tuple[int, ...], n: int = 5, labels: bool = True) -> DataSet:
    part = Split(torch.randint(0, 256, (n, *shape), dtype=torch.uint8), torch.arange(n) % 2 if labels else None)
    return DataSet("test", shape, ("even", "odd"), part, None, part)


def explorer(levels: int = 3, shape: tuple[int, ...] = (1, 4, 6), **options: Any) -> Explorer:
    return Explorer(density_ladder(levels, shape), "a run", data=images(shape), **options)


@pytest.fixture
def client() -> Iterator[Client]:
    with serving(explorer()) as server:
        yield Client(server.url)


def pixels(view: dict[str, Any]) -> np.ndarray[Any, Any]:
    kind, _, content = view["picture"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image)


def test_page_says_what_the_model_is(client: Client) -> None:
    told = client.ask("about")
    assert told["name"] == "a run"
    assert [space["name"] for space in told["spaces"]] == ["x", "z1", "z2", "z3"]
    assert (told["size"], told["opens"], told["images"]) == ([4, 6], True, 5)


def test_moving_an_entry_is_decoding_the_latent_with_it(client: Client) -> None:
    subject = client.ask("pick", {"index": 3})
    assert subject["title"] == "held-out image 3, “odd”"
    level = client.ask("level", {"level": 2})
    influence = [entry["influence"] for entry in level["entries"]]
    assert level["how"] == "set"
    assert influence == sorted(influence, reverse=True)
    first = level["entries"][0]["index"]
    still = client.ask("move", {"subject": subject["id"], "level": 2, "changes": {}})
    assert still["change"] == 0
    assert still["view"] == subject["levels"][1]["view"]
    moved = client.ask("move", {"subject": subject["id"], "level": 2, "changes": {str(first): 2.5}})
    assert moved["change"] > 0
    kept = client.ask("move", {"subject": subject["id"], "level": 2, "changes": {first: 2.5}, "keep": True})
    assert kept["view"] == moved["view"]
    assert kept["id"] != subject["id"]


def test_moves_are_those_of_the_hierarchy() -> None:
    hierarchy = density_ladder(2, (1, 4, 4))
    explored = Explorer(hierarchy, "run", data=images((1, 4, 4)))
    x = explored.data.held_out.batch(torch.tensor([1])) if explored.data else torch.empty(0)
    subject = explored.pick(1)
    with torch.no_grad():
        z = hierarchy.encode(x)["z2"]
        assert subject["levels"][1]["at"] == pytest.approx(z[0].tolist(), rel=1e-4)
        before = hierarchy.decode(z)["x"]
        z[0, 1] = -2.0
        after = hierarchy.decode(z)["x"]
        rebuilt = hierarchy.reconstruct(x, 1)
    change = explored.move(subject["id"], 2, {1: -2.0})["change"]
    assert change == pytest.approx(float((after - before).square().mean().sqrt()), rel=1e-4)
    assert subject["levels"][0]["error"] == pytest.approx(float((x - rebuilt).square().mean().sqrt()), rel=1e-4)


def test_samples_repeat_by_seed_and_have_their_own_latents(client: Client) -> None:
    first, second, again = (client.ask("sample", body) for body in ({}, {}, {"seed": 0}))
    assert first["view"] == again["view"] != second["view"]
    assert [each["name"] for each in first["levels"]] == ["z1", "z2", "z3"]


def test_inpainting_keeps_known_pixels(client: Client) -> None:
    subject = client.ask("pick", {"index": 0})
    mask = "110000110000" + 12 * "0"
    found = client.ask("inpaint", {"subject": subject["id"], "mask": mask})
    assert [step["name"] for step in found["steps"]] == ["draw", "mean"]
    assert found["missing"] == 4
    before, after = pixels(subject["view"]), pixels(found["steps"][-1]["view"])
    factor = before.shape[0] // 4
    known = np.array([c == "0" for c in mask]).reshape(4, 6).repeat(factor, 0).repeat(factor, 1)
    assert (before[known] == after[known]).all()
    assert (before[~known] != after[~known]).any()
    kept = client.ask("inpaint", {"subject": subject["id"], "mask": mask, "keep": True})
    assert kept["view"] == found["steps"][-1]["view"]


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 8, 8)], ids=str)
def test_images_are_opened(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    colour = {1: 200, 3: (10, 120, 250)}[channels]
    content = io.BytesIO()
    Image.new({1: "L", 3: "RGB"}[channels], (3 * width, 3 * height), colour).save(content, "PNG")
    with serving(explorer(2, shape)) as server:
        client = Client(server.url)
        shown = pixels(client.ask("open", content.getvalue())["view"])
        assert (shown == colour).all()
        inverted = pixels(client.ask("open-inverted", content.getvalue())["view"])
        assert (inverted == 255 - np.array(colour)).all()
        jpeg = io.BytesIO()
        picture(size=(50, 31)).convert("RGB").save(jpeg, "JPEG")
        assert client.ask("open", jpeg.getvalue())["title"] == "your image"
        assert "not an image" in client.ask("open", b"\0\1\2nonsense", 400)["error"]
        assert "truncated" in client.ask("open", content.getvalue()[:48], 400)["error"]


def test_maps_are_multiplied() -> None:
    shape = (3, 8, 8)
    hierarchy = tiny_ladder(2, shape, family="conv").eval()
    explored = Explorer(hierarchy, "run", data=images(shape))
    spatial = [level for level, space in enumerate(hierarchy.spaces) if level and space.shape[-1] > 1]
    assert spatial
    found = explored.level(spatial[0])
    assert found["how"] == "multiply"
    assert [(entry["low"], entry["high"]) for entry in found["entries"]] == [(-3, 3)] * len(found["entries"])
    subject = explored.pick(0)
    assert explored.move(subject["id"], spatial[0], {0: 1.0})["change"] == 0
    assert explored.move(subject["id"], spatial[0], {0: -3.0})["change"] > 0


def test_data_that_are_no_images_are_shown_as_values() -> None:
    explored = Explorer(density_ladder(1, (7,)), "table")
    subject = explored.sample()
    assert len(subject["view"]["values"]) == 7
    with pytest.raises(InputError, match="masks are painted on images"):
        explored.inpaint(subject["id"], "1" * 7)
    with pytest.raises(InputError, match="images are opened by models of grey or coloured images"):
        explored.open(b"GIF89a")
    with pytest.raises(InputError, match="start again with --data"):
        explored.pick()


def test_classes_move_between_0_and_1() -> None:
    from halikit.supervision import with_classes

    hierarchy = with_classes(tiny_ladder(1, (1, 4, 4)), 3).eval()
    found = Explorer(hierarchy, "run").level(2)
    assert [(entry["low"], entry["high"]) for entry in found["entries"]] == [(0, 1)] * 3


def test_old_subjects_are_forgotten() -> None:
    explored = explorer(1, (1, 2, 2))
    first = explored.sample()["id"]
    for _ in range(64):
        explored.sample()
    with pytest.raises(InputError, match="not kept any longer"):
        explored.move(first, 1, {})


@pytest.mark.parametrize(
    ("what", "body", "message"),
    [
        ("level", {"level": 4}, "this model has levels 1 to 3; there is no level 4"),
        ("level", {}, "level: Field required"),
        ("level", {"level": 1, "other": 2}, "other: Extra inputs are not permitted"),
        ("pick", {"index": 5}, "numbers 0 to 4; there is no 5"),
        ("pick", {"index": -1}, "there is no -1"),
        ("move", {"subject": 99, "level": 1, "changes": {}}, "not kept any longer"),
        ("move", {"subject": 1, "level": 1, "changes": {"77": 0}}, "there is no entry 77"),
        ("move", {"subject": 1, "level": 1, "changes": {"-1": 0}}, "there is no entry -1"),
        ("move", {"subject": 1, "level": 1, "changes": {"0": 1e30}}, "entries move within"),
        ("move", {"subject": 1, "level": 1, "changes": {"0": "nan"}}, "changes.0: Input should be a finite number"),
        ("inpaint", {"subject": 1, "mask": "1"}, "a mask has 4×6 characters"),
        ("inpaint", {"subject": 1, "mask": "2" * 24}, "a mask has 4×6 characters"),
        ("inpaint", {"subject": 1, "mask": "0" * 24}, "one 1 at least"),
        ("about", [1], "about: Input should be an object"),
    ],
    ids=str,
)
def test_bad_requests_say_what_is_wrong(client: Client, what: str, body: object, message: str) -> None:
    client.ask("sample")
    assert message in client.ask(what, body, 400)["error"]


def test_strangers_get_nothing(client: Client) -> None:
    port, path = client.address.port, client.address.path
    for host in (f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"192.168.1.2:{port}", "", "[::1]:80"):
        assert client.call("GET", path, None, {"Host": host})[0] == 403, host
        client.ask("about", status=403, Host=host)
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        client.ask("about", status=403, **headers)
    client.ask("about", Origin=f"http://127.0.0.1:{port}", Host=f"127.0.0.1:{port}")
    client.ask("about", Origin=f"http://localhost:{port}", Host=f"localhost:{port}")
    for place in ("/", "/wrong/", "/wrong/api/about", f"{path}x", f"{path}../", f"{path}api/_page", f"{path}api/fill"):
        code = client.call("POST", place, b"{}", {"Content-Type": "application/json"})[0]
        assert code == 404, place
        assert client.call("GET", place, None, {})[0] == 404, place
    assert client.call("PUT", path, b"{}", {})[0] == 501


def test_what_is_sent_is_bounded(client: Client) -> None:
    assert "16 MiB" in client.ask("open", b"", 413, **{"Content-Length": str(17 * 2**20)})["error"]
    client.ask("about", {}, 415, **{"Content-Type": "text/plain"})
    client.ask("open", b"", 411, **{"Content-Length": "-1"})
    assert "Invalid JSON" in client.ask("about", b"{", 400, **{"Content-Type": "application/json"})["error"]


def test_the_page_lets_nothing_else_in(client: Client) -> None:
    code, headers, said = client.call("GET", client.address.path, None, {})
    assert code == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = said.decode()
    assert "{nonce}" not in page
    assert "innerHTML" not in page
    assert "://" not in page


def test_bugs_are_told_apart() -> None:
    told: list[str] = []
    explored = explorer()
    explored.hierarchy = None  # type: ignore[assignment]
    with serving(explored, told.append) as server:
        assert "this is a bug in halikit" in Client(server.url).ask("sample", status=500)["error"]
    assert len(told) == 1


def test_port_that_is_taken_is_refused() -> None:
    with serving(explorer(1)) as server, pytest.raises(InputError, match="cannot be had"):
        Server(server.explorer, server.server_address[1])


# ---- the command and its page


@contextlib.contextmanager
def command(*arguments: str | Path, cwd: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`halikit explore` as a process of its own, and the address that it prints."""
    line = [sys.executable, "-m", "halikit", "explore", *map(str, arguments), "--no-browser"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = os.environ | {"PYTHONPATH": str(Path(hk.__file__).parent.parent)}
    # What runs the tests may ignore Ctrl-C, as a shell's background does, and a child would inherit that.
    process = subprocess.Popen(line, text=True, cwd=cwd, env=env, preexec_fn=_heed_interrupts, **pipes)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.communicate(timeout=60)[1]
        yield url, process
    finally:
        process.kill()
        process.communicate(timeout=60)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SLIDERS = "return document.querySelectorAll('.slider input[data-entry]').length"
PICTURES = "return [...document.querySelectorAll('#tiles img')].map(image => image.src)"


@pytest.mark.timeout(900)  # of a machine that is busy; it takes seconds
def test_page_of_the_model_that_ships(tmp_path: Path, browser: Browser) -> None:
    digit = tmp_path / "digit.png"
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(digit)
    with command("digits", cwd=tmp_path) as (url, process):
        browser.messages()
        browser.open(url)
        assert browser.wait(SLIDERS) == 10
        before = browser.run(PICTURES)
        assert len(before) == 4

        # A slider moved: the image decoded from that latent changes, no other one does.
        browser.drag(".slider input[data-entry]", [(0.5, 0.5), (0.95, 0.5)])
        changed = f"const now = (() => {{ {PICTURES} }})(); return now[3] !== arguments[0] && now"
        after = browser.wait(changed, before[3])
        assert after[:3] == before[:3]
        assert "moved by" in browser.text()
        browser.click("#reset")
        browser.wait(f"return (() => {{ {PICTURES} }})()[3] === arguments[0]", before[3])

        # Another level has its own sliders.
        browser.click("#tiles .tile:nth-child(2)")
        browser.wait("return document.getElementById('moving').textContent.startsWith('z1')")
        assert browser.wait(SLIDERS) == 12
        browser.click("#more")
        assert browser.run(SLIDERS) == 24

        # A mask painted: filled in from the top down; erased with a finger.
        browser.drag("#canvas", [(0.3, 0.3), (0.6, 0.6)])
        browser.wait("return document.querySelectorAll('#steps img').length === 4")
        painted = browser.run("return missing.reduce((a, b) => a + b)")
        assert f"{painted} of 64 pixels are missing; they hold the mean training image" in browser.text()
        browser.click("#erase")
        browser.drag("#canvas", [(0.6, 0.6), (0.3, 0.3)], pointer="touch")
        browser.wait("return !document.querySelector('#steps img')")
        browser.click("#middle")
        browser.wait("return document.querySelectorAll('#steps img').length === 4")
        browser.click("#keep-filled")
        browser.wait("return document.getElementById('title').textContent === 'filled in'")

        # Samples, held-out images by number, files.
        browser.click("#sample")
        browser.wait("return document.getElementById('title').textContent.startsWith('sample')")
        browser.type("#index", "7\n")
        browser.wait("return document.getElementById('title').textContent.startsWith('held-out image 7')")
        browser.type("#file", str(digit))
        browser.wait("return document.getElementById('title').textContent === 'your image'")
        digit.write_text("not a picture")
        browser.type("#file", str(digit))
        browser.wait("return !document.getElementById('problem').hidden")
        assert "cannot be opened: text, not an image" in browser.text()
        refused = [message for message in browser.messages() if "api/open" not in message]
        assert refused == []

        # On a phone nothing scrolls sideways.
        browser.open(url, width=390, height=800)
        browser.wait(SLIDERS)
        assert browser.too_wide() <= 0

        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.timeout(900)  # of a machine that is busy; it takes seconds
def test_pages_of_other_models(browser: Browser) -> None:
    strange = "</script><script>document.title='obeyed'</script>"
    colour = Explorer(tiny_ladder(1, (3, 8, 8), family="conv").eval(), strange, data=images((3, 8, 8), labels=False))
    for explored, has_picture in ((colour, True), (Explorer(density_ladder(2, (7,)), strange), False)):
        with serving(explored) as server:
            browser.open(server.url)
            browser.wait(SLIDERS)
            assert browser.run("return document.title") == strange
            assert browser.run("return !!document.querySelector('#canvas').offsetParent") == has_picture
            assert bool(browser.run(PICTURES)) == has_picture
            assert browser.run("return document.querySelectorAll('#tiles canvas').length") == 3 * (not has_picture)
            assert ("these data are none" in browser.text()) == (not has_picture)
            assert browser.messages() == []


@pytest.mark.timeout(900)  # of a machine that is busy; it takes seconds
def test_a_run_without_its_data_says_so(tmp_path: Path) -> None:
    part = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "images.npy", part)
    config = override(
        dense(1),
        {"data.spec": f"array:{tmp_path / 'images.npy'}", "data_shape": (1, 6, 6), "steps": 2, "batch_size": 8},
    )
    hk.Trainer(hk.build(config), config.data.spec, out=tmp_path / "run").fit()
    (tmp_path / "images.npy").unlink()
    with command("run", "--json", cwd=tmp_path) as (line, process):
        told = Client(json.loads(line)["url"]).ask("about")
        assert (told["images"], told["fill"]) == (0, "the mean of 256 samples")
        process.send_signal(signal.SIGINT)
        assert "there are no held-out data to choose from" in process.communicate(timeout=60)[1]


def test_bad_usage_is_told_before_anything_is_served(halikit: Any, tmp_path: Path) -> None:
    assert "there is no model at" in halikit("explore", tmp_path, code=2)
    assert "no such file or directory" in halikit("explore", "digits", "--data", "mnist:nowhere", code=2)
