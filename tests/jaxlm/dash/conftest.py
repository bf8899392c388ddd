# SPDX-License-Identifier: Apache-2.0
"""A dash in this process over a project with a draft that waits, and a terminal that is a list."""

import dataclasses
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxlm.dash.doors import Doors
from jaxlm.dash.house import House
from jaxlm.dash.server import COOKIE, Server
from jaxlm.research.desk.desk import Desk
from jaxlm.research.desk.signing import KEY_VARIABLE
from tests.jaxlm.research.desk.workshop import begun, drafted


@dataclasses.dataclass
class Visitor:
    """Somebody who speaks HTTP, and may know the cookie."""

    server: Server
    screen: list[str]
    cookie: str | None = None

    def send(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, Any, Any]:
        """Status, headers, JSON or bytes.  As the page sends it, but for the `headers` given."""
        host = f"127.0.0.1:{self.server.server_port}"
        sent: dict[str, str | None] = {"Host": host}
        if method == "POST":
            sent |= {"Origin": f"http://{host}", "Content-Type": "application/json"}
        if self.cookie is not None:
            sent["Cookie"] = f"a=b; {COOKIE}={self.cookie}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        there = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        try:
            there.putrequest(method, path, skip_host=True)
            for name, value in sent.items():
                if value is not None:
                    there.putheader(name, value)
            there.putheader("Content-Length", str(len(data or b"")))
            there.endheaders(data)
            answer = there.getresponse()
            text = answer.read()
        finally:
            there.close()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, answer.headers, json.loads(text) if is_json else text

    def post(self, path: str, **body: Any) -> tuple[int, str]:
        """Status, and the error where there is one."""
        status, _, answer = self.send("POST", path, body)
        return status, answer.get("error", "")

    def enter(self) -> None:
        status, headers, _ = self.send("POST", "/enter", {"link": self.server.house.doors.link})
        assert status == 200
        found = re.fullmatch(
            rf"{COOKIE}=(\S+); HttpOnly; SameSite=Strict; Path=/", headers["Set-Cookie"]
        )
        assert found
        self.cookie = found[1]

    def code(self) -> str:
        """As a person reads it at the terminal."""
        return re.findall(r"type (\S+) in the browser", "".join(self.screen))[-1]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "keys" / "approval.key"))
    monkeypatch.chdir(tmp_path)
    desk = begun(tmp_path)
    drafted(desk, peak_lr="2e-2")
    return desk


def serve(house: House, screen: list[str]) -> Iterator[Visitor]:
    with Server(house, 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield Visitor(server, screen)
        server.shutdown()


@pytest.fixture
def visitor(desk: Desk) -> Iterator[Visitor]:
    screen: list[str] = []
    house = House(
        [Path("runs"), desk.project / "runs"], desk.project, lambda: desk, Doors(screen.append)
    )
    house.look()
    yield from serve(house, screen)
