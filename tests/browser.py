"""Chromium, without a window and with a profile of its own, as several tests open it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)


def browser(profile: Path) -> list[str]:
    """The command that starts it."""
    found = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert found, "no Chromium on PATH: `make test` installs it, or says how (tests/chromium.sh)"
    return [found, *SWITCHES, f"--user-data-dir={profile}"]


def wait_for(what: Callable[[], Any], limit_seconds: float) -> Any:
    """Wait until something is true, and give it."""
    deadline = time.monotonic() + limit_seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)
    return found


def _tabs(port: str) -> list[dict[str, str]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as response:
        return [found for found in json.load(response) if found["type"] == "page"]


class Page:
    """A page of a server in Chromium, scripts and all, driven over its debugging protocol."""

    def __init__(self, folder: Path) -> None:
        command = [*browser(folder), "--remote-debugging-port=0", "--window-size=1400,1200", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.asked: list[str] = []
        self.console: list[str] = []
        self.count = 0
        try:
            port = wait_for((folder / "DevToolsActivePort").exists, 120) and wait_for(
                lambda: (folder / "DevToolsActivePort").read_text().split(), 60
            )
            (target,) = wait_for(lambda: _tabs(port[0]), 60)  # it listens before it has opened its tab
            self.socket = connect(target["webSocketDebuggerUrl"], max_size=None, open_timeout=60)
            for domain in ("Network", "Runtime", "Log"):
                self(f"{domain}.enable")
        except BaseException:
            self._end()
            raise

    def __call__(self, method: str, **params: Any) -> Any:
        """One command, and its result; what the page asks for and complains of meanwhile is kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            told = json.loads(self.socket.recv(timeout=120))
            if told.get("id") == self.count:
                return told["result"]
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            elif told.get("method") == "Network.webSocketCreated":
                self.asked.append(told["params"]["url"])
            elif told.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(told["params"]))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on it, awaited."""
        found = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def text(self) -> str:
        """What can be read on it."""
        return str(self.evaluate('document.body?.innerText ?? ""'))

    def shows(self, url: str, *words: str) -> None:
        """Open an address and wait until all the words stand there."""
        self("Page.navigate", url=url)
        wait_for(lambda: all(word in self.text() for word in words), 180)

    def pixels(self) -> list[tuple[int, int, int]]:
        """A picture of it."""
        from PIL import Image

        shot = base64.b64decode(self("Page.captureScreenshot")["data"])
        with Image.open(io.BytesIO(shot)) as image:
            return list(image.convert("RGB").getdata())

    def close(self) -> None:
        try:
            self.socket.close()
        finally:
            self._end()

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
