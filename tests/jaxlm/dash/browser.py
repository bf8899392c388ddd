# SPDX-License-Identifier: Apache-2.0
"""A real browser, driven over WebDriver (W3C) with nothing but the standard library."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.e2e.workshop import free_port
from tests.jaxlm.dash.png import shrunk

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--hide-scrollbars", "--force-device-scale-factor=1",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window."""

    def __init__(self, url: str) -> None:
        self._session = url

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self._session + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise AssertionError(json.load(e)["value"]["message"][:400]) from None

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function of the page returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, css: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def count(self, css: str) -> int:
        return int(self.run("return document.querySelectorAll(arguments[0]).length", css))

    def wait(self, what: Callable[[], Any], seconds: float = 20) -> Any:
        """The first true answer."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, f"{self.text('body')[:1500]}\n{self.complaints()}"
            time.sleep(0.1)
        return found

    def click(self, css: str) -> None:
        self._call("POST", f"/element/{self._find(css)}/click")

    def type(self, css: str, text: str) -> None:
        self._call("POST", f"/element/{self._find(css)}/value", {"text": text})

    def _find(self, css: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": css})
        return str(found[ELEMENT])

    def point(self, css: str, x: float, y: float) -> None:
        """Moves the pointer to a share of an element's width and height."""
        box = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'nearest'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]",
            css,
        )
        to = {"x": round(box[0] + x * box[2]), "y": round(box[1] + y * box[3])}
        move = {"type": "pointerMove", "duration": 20, "origin": "viewport", **to}
        device = {"type": "pointer", "id": "mouse", "actions": [move]}
        self._call("POST", "/actions", {"actions": [device]})

    def resize(self, width: int, height: int) -> None:
        """Of the page, by the browser's own emulation: no window is narrower than 500 pixels."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def _devtools(self, command: str, params: dict[str, Any]) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def picture(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shrunk(self._call("GET", "/screenshot"), self.run))
        return path

    def complaints(self) -> list[str]:
        """What the page's console had to say: errors, and requests that the policy stopped."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A fresh one, whose profile is that folder."""
    assert CHROMIUM and DRIVER
    port = free_port()
    driver = subprocess.Popen(
        [DRIVER, f"--port={port}", "--log-level=OFF"], stdout=subprocess.DEVNULL
    )
    try:
        base = f"http://127.0.0.1:{port}"
        _await(base + "/status")
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = Browser(base)._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        session = Browser(f"{base}/session/{made['sessionId']}")
        try:
            yield session
        finally:
            session._call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()


def _await(url: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert time.monotonic() < end, "chromedriver does not start"
            time.sleep(0.1)
        else:
            return
