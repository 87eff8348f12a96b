"""A headless Chromium, driven through chromedriver by the WebDriver protocol.

Used by dashboard_SUITE inside the node: `py:call(browser, start, [])`, then the other functions.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that the standard has for a reference

_ARGUMENTS = [
    "--headless",
    "--no-sandbox",  # Nothing but our own page is opened, maybe by root.
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Without it chromedriver asks for "localhost", which a bare machine may not know.
    "--remote-debugging-pipe",
    "--lang=en-US",
]


class Browser:
    """One browser with one window and an empty profile."""

    def __init__(self, dark: bool = False, width: int = 1280, height: int = 1600) -> None:
        self._profile = tempfile.mkdtemp(prefix="py_reactor-chromium-")
        self._driver = subprocess.Popen(
            [_program("chromedriver"), "--port=0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._session = ""
        try:
            self._url = f"http://127.0.0.1:{self._port()}"
            self._open([*_ARGUMENTS, f"--window-size={width},{height}"], dark)
        except BaseException:
            self.stop()
            raise

    def _port(self) -> int:
        # It chooses one and says so in a line: "... was started successfully on port 12345."
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            words = line.rstrip(".\n").split("started successfully on port ")
            if len(words) == 2:
                return int(words[1])
        raise RuntimeError("chromedriver ended before it was ready")

    def _open(self, arguments: list[str], dark: bool) -> None:
        arguments = [*arguments, f"--user-data-dir={self._profile}"]
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        chromium = _program("chromium", "chromium-browser", "google-chrome")
        options = {"binary": chromium, "args": arguments}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._ask("POST", "", {"capabilities": {"alwaysMatch": always}})
        self._session = "/" + answer["sessionId"]

    def _ask(self, method: str, path: str, body: object = None):  # type: ignore[no-untyped-def]
        request = urllib.request.Request(
            f"{self._url}/session{self._session}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["value"]
            raise RuntimeError(f"{told['error']}: {told['message']}") from None

    def go(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> object:
        """What the body of a JavaScript function returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{found[_ELEMENT]}/click", {})

    def press(self, selector: str, keys: str) -> None:
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{found[_ELEMENT]}/value", {"text": keys})

    def resize(self, width: int, height: int) -> None:
        self._ask("POST", "/window/rect", {"width": width, "height": height})

    def complaints(self) -> list[str]:
        """What the console has got since the last time: errors, and what the policy forbade."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def picture(self, path: str) -> None:
        Path(path).write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def stop(self) -> None:
        try:
            if self._session:
                self._ask("DELETE", "")
        finally:
            self._driver.terminate()
            assert self._driver.stdout is not None
            self._driver.stdout.close()
            self._driver.wait()
            shutil.rmtree(self._profile, ignore_errors=True)


def _program(*names: str) -> str:
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise FileNotFoundError(f"{names[0]} is not installed: script/bootstrap test")


_open: list[Browser] = []


def start(dark: bool = False, width: int = 1280, height: int = 1600) -> None:
    """Start the browser that the functions below use."""
    stop()
    _open.append(Browser(dark, width, height))


def stop() -> None:
    while _open:
        _open.pop().stop()


def go(url: str) -> None:
    _open[-1].go(url)


def run(script: str) -> object:
    return _open[-1].run(script)


def click(selector: str) -> None:
    _open[-1].click(selector)


def press(selector: str, keys: str) -> None:
    _open[-1].press(selector, keys)


def resize(width: int, height: int) -> None:
    _open[-1].resize(width, height)


def complaints() -> list[str]:
    return _open[-1].complaints()


def picture(path: str) -> None:
    _open[-1].picture(path)
