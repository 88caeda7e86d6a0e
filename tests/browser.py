"""A headless Chromium, driven through ChromeDriver by the WebDriver protocol, which is JSON over HTTP.

``browser`` is a fixture; import it where it is needed. It skips where no Chromium with its driver is installed.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's reference, by the standard
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--no-default-browser-check", "--force-device-scale-factor=1", "--hide-scrollbars"),
)


def chromium() -> tuple[str, str] | None:
    """The browser and its driver, where both are installed."""
    found = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
    return (found[0], found[1]) if found[0] and found[1] else None


class Browser:
    """One window.

    Args:
        port: Where ChromeDriver listens.
        binary: The browser.
        profile: An empty directory.
    """

    def __init__(self, port: int, binary: str, profile: Path) -> None:
        self._port, self._path = port, ""
        options = {"binary": binary, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._path = f"/session/{session['sessionId']}"

    def open(self, url: str, *, width: int = 1200, height: int = 900) -> None:
        """Show a page in a window of this many pixels, a phone's 390 as well, and wait until it has loaded."""
        self.resize(width, height)
        self._call("POST", "/url", {"url": url})

    def resize(self, width: int, height: int) -> None:
        """Lay the page out for another window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.cdp("Emulation.setDeviceMetricsOverride", metrics)

    def run(self, script: str, *arguments: object) -> Any:
        """What JavaScript returns: the body of a function of ``arguments``; promises are awaited."""
        return self._call("POST", "/execute/sync", {"script": script, "args": arguments})

    def wait(self, script: str, *arguments: object, seconds: float = 120) -> Any:
        """What JavaScript returns as soon as it is true of something.

        Raises:
            AssertionError: If it never is.
        """
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"never came true: {script}\n{self.messages()}"
            time.sleep(0.05)
        return value

    def text(self) -> str:
        """What the page says."""
        return self.run("return document.body.innerText")

    def click(self, selector: str) -> None:
        """Click the first element of a CSS selector as a person does, where it can be seen."""
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element; a path into a file input."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def drag(self, selector: str, points: Sequence[tuple[float, float]], pointer: str = "mouse") -> None:
        """Press at the first point, move through the others, let go.

        Args:
            selector: CSS; scrolled into view.
            points: Shares of the element's width and height.
            pointer: ``mouse`` or ``touch``.
        """
        box = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]",
            selector,
        )
        moves = [
            {"type": "pointerMove", "duration": 20, "x": round(box[0] + x * box[2]), "y": round(box[1] + y * box[3])}
            for x, y in points
        ]
        actions = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        hand = {"type": "pointer", "id": pointer, "parameters": {"pointerType": pointer}, "actions": actions}
        self._call("POST", "/actions", {"actions": [hand]})

    def screenshot(self, path: Path | None = None) -> bytes:
        """The whole page as a PNG, also written to ``path``."""
        shot = self.cdp("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        content = base64.b64decode(shot["data"])
        if path is not None:
            path.write_bytes(content)
        return content

    def messages(self) -> list[str]:
        """What was written to the console since the last call, errors of scripts and refused requests among it."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def too_wide(self) -> int:
        """By how many pixels the page is wider than the window: it then scrolls sideways."""
        return self.run("return document.documentElement.scrollWidth - window.innerWidth")

    def cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        """A command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def close(self) -> None:
        """End the browser."""
        self._call("DELETE", "", None)

    def _find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _call(self, method: str, path: str, body: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, self._path + path, content, {"Content-Type": "application/json"})
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{path}: {value['message']}")
        return value


@contextlib.contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """A browser with its profile in an empty directory.

    Raises:
        RuntimeError: If none is installed, or it does not start.
    """
    found = chromium()
    if found is None:
        raise RuntimeError("no Chromium with its driver is installed (Debian: apt install chromium chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([found[1], f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        browser = Browser(port, found[0], profile)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(20)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of a process."""
    if chromium() is None:
        pytest.skip("no Chromium with its driver is installed")
    with started(tmp_path_factory.mktemp("profile")) as window:
        yield window
