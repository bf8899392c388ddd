# SPDX-License-Identifier: Apache-2.0
"""The house over HTTP, on 127.0.0.1 alone.

Whatever comes in is checked for where it comes from: the Host of every request must be this server
(against names that another page makes point here), and one that changes something must have this
page's Origin, a body of JSON and the cookie (doors.py).  Whatever goes out says that it may load
nothing from elsewhere.  Standard library only.
"""

import errno
import http.server
import json
import socketserver
import threading
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError, RunError, UserError
from jaxlm.dash.doors import DoorError
from jaxlm.dash.house import House, metrics
from jaxlm.research.desk.quoting import is_name

HERE = Path(__file__).parent
FILES = {  # path -> file, type
    "/": (HERE / "page.html", "text/html"),
    "/page.css": (HERE.parent / "telemetry" / "page.css", "text/css"),
    "/dash.css": (HERE / "dash.css", "text/css"),
    "/dash.js": (HERE / "dash.js", "text/javascript"),
    "/charts.js": (HERE / "charts.js", "text/javascript"),
    "/ledger.js": (HERE / "ledger.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
# A report is a file that a run wrote: its own scripts and styles, an origin of its own, and no network.
FOREIGN = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_BODY = 1 << 16  # bytes
MOST_STREAMS = 32
COOKIE = "jaxlm_dash"


class Server(http.server.ThreadingHTTPServer):
    """Listens at once.  Raises RunError for a port that cannot be had."""

    daemon_threads = True

    def __init__(self, house: House, port: int) -> None:
        self.house = house
        self.streams = threading.BoundedSemaphore(MOST_STREAMS)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as e:
            in_use = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
            why = "is in use" if in_use else f"cannot be used ({e})"
            raise RunError(f"port {port} {why}; give another with --port, or 0 for any") from e
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    def server_bind(self) -> None:
        """Without the standard library's look-up of our own name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; anything else is a fault of ours, and is shown."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a silent connection is kept

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Any) -> None:
        """A refused body was perhaps not read: then the connection ends, lest it pass for a request."""
        try:
            if self.headers.get("Host") not in self.server.hosts:
                raise DoorError("this server answers to 127.0.0.1 alone")
            act()
        except DoorError as e:
            self.close_connection = True
            self._json({"error": str(e)}, HTTPStatus.FORBIDDEN)
        except UserError as e:
            self._json({"error": str(e)}, HTTPStatus.BAD_REQUEST)

    # -- reading -------------------------------------------------------------------------------

    def _get(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        asked = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        house = self.server.house
        if url.path in FILES:
            path, kind = FILES[url.path]
            self._send(path.read_bytes(), f"{kind}; charset=utf-8")
        elif url.path == "/events":
            self._stream()
        elif url.path == "/metrics":
            self._json(metrics())
        elif url.path == "/curves":
            wanted = asked.get("metrics", "").split(",")
            self._json(house.curves(asked.get("run", ""), wanted))
        elif url.path == "/findings":
            self._json(house.finding(asked.get("run", "")))
        elif url.path.startswith(("/report/", "/project/")):
            self._send(self._foreign(url.path), "text/html; charset=utf-8", policy=FOREIGN)
        else:
            self._json({"error": "there is nothing here"}, HTTPStatus.NOT_FOUND)

    def _foreign(self, path: str) -> bytes:
        """/report/KEY/report.html of a run, or /project/... as the project's own pages link to it."""
        house = self.server.house
        top, *names = urllib.parse.unquote(path).strip("/").split("/")
        if all(map(is_name, names)) and names:
            file = house.project.joinpath(*names)
            if top == "report":
                run = house.runs.found.get("/".join(names[:-1]))
                file = run.directory / "report.html" if run else Path("/nowhere")
            folder = house.project if top == "project" else file.parent
            is_ours = file.resolve().is_relative_to(folder.resolve())
            if is_ours and file.suffix == ".html" and file.is_file():
                return file.read_bytes()
        raise ConfigError("there is no such page")

    def _stream(self) -> None:
        """Server-sent events until the browser goes."""
        if not self.server.streams.acquire(blocking=False):
            raise ConfigError(f"{MOST_STREAMS} pages are open already; close one")
        try:
            self._head(HTTPStatus.OK, "text/event-stream", POLICY, length=None)
            for message in self.server.house.news(self._cookie()):
                text = ":\n\n" if message is None else f"data: {json.dumps(message)}\n\n"
                self.wfile.write(text.encode())
                self.wfile.flush()
        finally:
            self.server.streams.release()

    # -- what a person does ----------------------------------------------------------------------

    def _post(self) -> None:
        body = self._body()
        house, text = self.server.house, lambda name: str(body.get(name, ""))
        if self.path == "/enter":
            cookie = house.doors.enter(text("link"))
            self._json({}, cookie=f"{COOKIE}={cookie}; HttpOnly; SameSite=Strict; Path=/")
            return
        if not house.doors.is_open_to(self._cookie()):
            raise DoorError(house.doors.why_shut or "open the link that the terminal showed")
        arm = body.get("arm")
        if self.path == "/ask":
            house.ask(text("act"), text("draft"), arm)
        elif self.path == "/answer":
            house.answer(text("act"), text("draft"), arm, text("typed"))
        elif self.path == "/refuse":
            house.refuse(text("draft"), text("why"))
        else:
            raise ConfigError("there is nothing here")
        self._json({})

    def _body(self) -> dict[str, Any]:
        """The JSON object that this page, and no other, sent."""
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.hosts}:
            raise DoorError("this did not come from the page itself")
        if self.headers.get("Content-Type") != "application/json":
            raise DoorError("a body of JSON is wanted")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BODY:
            raise DoorError(f"a body of at most {MOST_BODY:,} bytes is wanted")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ConfigError("a JSON object is wanted")
        return body

    def _cookie(self) -> str | None:
        for pair in self.headers.get("Cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE:
                return value
        return None

    # -- sending -------------------------------------------------------------------------------

    def _json(
        self, value: Any, status: HTTPStatus = HTTPStatus.OK, cookie: str | None = None
    ) -> None:
        data = json.dumps(value, allow_nan=False).encode()
        self._send(data, "application/json", status, cookie=cookie)

    def _send(
        self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: str = POLICY,
        cookie: str | None = None,
    ) -> None:  # fmt: skip
        self._head(status, kind, policy, len(data), cookie)
        self.wfile.write(data)

    def _head(
        self, status: HTTPStatus, kind: str, policy: str, length: int | None,
        cookie: str | None = None,
    ) -> None:  # fmt: skip
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        if cookie is not None:
            self.send_header("Set-Cookie", cookie)
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def version_string(self) -> str:
        return "jaxlm"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the terminal is for questions."""
