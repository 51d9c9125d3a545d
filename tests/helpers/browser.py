"""Headless Chromium, driven over the pipe of its DevTools protocol: opens a page and tells what happened in it.

with Chromium() as browser:
    page = browser.open(path, width=390, dark=True)
    page.evaluate("document.title")
    page.requests, page.errors
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 120  # until an answer counts as lost


def chromium() -> str | None:
    """The installed Chromium, None if there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@dataclass
class OpenPage:
    """An open page.

    Args:
        browser: the browser.
        session: of the protocol.
        requests: addresses that it asked for, but for its own.
        errors: console errors, uncaught exceptions, violations of its policy, and dialogs that it opened.
    """

    browser: Chromium
    session: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press a key."""
        code = {"Tab": 9, "Enter": 13, "ArrowDown": 40, "ArrowUp": 38, " ": 32}[key]
        text = {"Enter": "\r", " ": " "}.get(key, text)
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save what the page looks like."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def print_pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"])

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        return self.browser.send(method, self.session, **params)


class Chromium:
    """A browser process with a profile of its own."""

    def __enter__(self) -> Chromium:
        path = chromium()
        assert path is not None, "no Chromium is installed"
        self._profile = tempfile.mkdtemp(prefix="rloop-browser-")
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        ours = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        os.close(commands)
        os.close(answers)
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
            "--no-sandbox",  # Chromium refuses to run as root with it, as CI does
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--force-color-profile=srgb",
            "--hide-scrollbars",
        ]
        # The browser reads commands from descriptor 3 and writes answers to 4.
        script = f'exec "$0" "$@" 3<&{ours[0]} 4>&{ours[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, path, *flags],
            pass_fds=ours,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in ours:
            os.close(end)
        self._number = 0
        self._rest = b""
        self._pages: dict[str, OpenPage] = {}
        self._results: dict[int, dict[str, Any]] = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._commands)  # which ends the browser
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> OpenPage:
        """Open a file and wait until it is drawn."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = OpenPage(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.send("Emulation.setEmulatedMedia", features=scheme)
        page.send("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + _SECONDS
        while page.evaluate("location.href !== 'about:blank' && document.readyState") != "complete":
            assert time.monotonic() < end, f"{path} does not load"
            time.sleep(0.05)
        # Two frames later, pictures have their sizes.
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return page

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _SECONDS
        while number not in self._results:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            content = os.read(self._answers, 1 << 20) if ready else b""
            assert content, f"Chromium did not answer {method}"
            *messages, self._rest = (self._rest + content).split(b"\0")
            for one in messages:
                self._take(json.loads(one))
        answer = self._results.pop(number)
        assert "error" not in answer, answer
        return answer["result"]

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._results[message["id"]] = message
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            _note(page, message["method"], message["params"])


def _note(page: OpenPage, method: str, params: dict[str, Any]) -> None:
    if (method == "Network.requestWillBeSent" and params["type"] != "Document") or (
        method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("file:")
    ):
        page.requests.append(params["request"]["url"])
    elif method == "Runtime.exceptionThrown":
        page.errors.append(json.dumps(params["exceptionDetails"])[:1000])
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        page.errors.append(json.dumps(params["args"])[:1000])
    elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
        page.errors.append(params["entry"]["text"])
    elif method == "Page.javascriptDialogOpening":
        page.errors.append(f"dialog: {params['message']}")
