"""Serves the page over HTTP on this machine, to clients that have its secret address."""

from __future__ import annotations

import json
import secrets
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from halikit.errors import HalikitError, InputError
from halikit.explore.explorer import Explorer

__all__ = ["Server"]

HOST = "127.0.0.1"
# Host names that requests may have. Another name means DNS rebinding: a foreign page whose name resolves to this host.
_NAMES = (HOST, "localhost")
# Largest body of a request.
MAX_BYTES = 16 * 2**20
_PAGE = Path(__file__).with_name("page.html")
_SECONDS = 60  # until a connection without data is closed


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Level(_Request):
    level: int


class _Sample(_Request):
    seed: int | None = None
    label: int | None = None


class _Pick(_Request):
    index: int | None = None


class _Move(_Request):
    subject: int
    level: int
    changes: dict[int, FiniteFloat]
    keep: bool = False


class _Inpaint(_Request):
    subject: int
    mask: str
    keep: bool = False


_REQUESTS: Mapping[str, type[_Request]] = {
    "about": _Request,
    "level": _Level,
    "sample": _Sample,
    "pick": _Pick,
    "move": _Move,
    "inpaint": _Inpaint,
}


class Server(ThreadingHTTPServer):
    """Serves the page of an explorer on 127.0.0.1 until it is shut down.

    The address contains a secret. Requests without the secret, with another host name, or from the page of another site
    are refused.

    Args:
        explorer: Answers the requests of the page.
        port: Port of the server; 0 for any free port.
        on_error: Called with a message for each error that is a bug and not a wrong request.

    Raises:
        InputError: If the port is not available.

    Attributes:
        url: Address of the page.
    """

    daemon_threads = True

    def __init__(
        self, explorer: Explorer, port: int = 0, *, on_error: Callable[[str], None] = lambda message: None
    ) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"port {port} cannot be had ({error.strerror}); leave --port out for a free one") from None
        self.explorer = explorer
        self.on_error = on_error
        self.one_at_a_time = threading.Lock()
        self.secret = secrets.token_urlsafe(16)
        self.url = f"http://{HOST}:{self.server_address[1]}/{self.secret}/"

    def server_bind(self) -> None:
        """Bind the port without the base class's look-up of the host name, which may wait for a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: the browser has closed the connection during the answer."""


class _Refusal(Exception):
    """Refuses a request, with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "halikit", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        """Answer with the page, or a file of it."""
        self._answer(self._page)

    def do_POST(self) -> None:
        """Answer a call of the page."""
        self._answer(self._call)

    def _answer(self, respond: Callable[[], None]) -> None:
        try:
            respond()
        except _Refusal as refusal:
            # The body may not have been read yet, and would be parsed as the next request.
            self.close_connection = True
            self._reply(refusal.status, {"error": str(refusal)})
        except HalikitError as error:
            self._reply(400, {"error": str(error)})
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            message = f"this is a bug in halikit: {type(error).__name__}: {error}"
            self.server.on_error(message)
            self._reply(500, {"error": message})

    def _path_after_secret(self) -> str:
        """The path of the request after the secret.

        Raises:
            _Refusal: If the host name, the origin or the secret is wrong.
        """
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in _NAMES:
            raise _Refusal(403, "this page is for 127.0.0.1")
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{host}"):
            raise _Refusal(403, "this page answers no other page")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refusal(403, "this page answers no other page")
        _, secret, path = [*urlsplit(self.path).path.split("/", 2), "", ""][:3]
        if not secrets.compare_digest(secret.encode(), self.server.secret.encode()):
            raise _Refusal(404, "there is nothing here; take the address that halikit explore prints")
        return path

    def _page(self) -> None:
        if self._path_after_secret():
            raise _Refusal(404, "there is nothing here")
        # Only scripts and styles of the page itself run, even if the name of a model or a file contains code.
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        page = _PAGE.read_text("utf-8").replace("{nonce}", nonce)
        self._send(200, "text/html; charset=utf-8", page.encode(), {"Content-Security-Policy": policy})

    def _call(self) -> None:
        path = self._path_after_secret()
        name = path.removeprefix("api/")
        if path == name or (name not in _REQUESTS and name not in ("open", "open-inverted")):
            raise _Refusal(404, "there is nothing here")
        is_file = name.startswith("open")
        kind = "application/octet-stream" if is_file else "application/json"
        if self.headers.get_content_type() != kind:
            raise _Refusal(415, f"{name} takes {kind}")
        content = self._body()
        explorer = self.server.explorer
        with self.server.one_at_a_time:
            if is_file:
                self._reply(200, explorer.open(content, inverted=name == "open-inverted"))
                return
            try:
                options = _REQUESTS[name].model_validate_json(content)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or name
                raise InputError(f"{field}: {first['msg']}") from None
            self._reply(200, getattr(explorer, name)(**dict(options)))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refusal(411, "how long is it? Content-Length is missing")
        if int(length) > MAX_BYTES:
            raise _Refusal(413, f"files have at most {MAX_BYTES // 2**20} MiB here")
        return self.rfile.read(int(length))

    def _reply(self, status: int, values: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(values, allow_nan=False).encode(), {})

    def _send(self, status: int, kind: str, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "same-origin")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing: requests are not printed on the terminal."""
