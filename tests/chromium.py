"""A real Chromium without a screen, driven over its debugging port.

One browser serves all tests of a module, since its start costs more than any of them; each page is
a tab of its own. A `Page` keeps what the browser said while it was open: messages of the console,
errors of scripts, and every request, so that a test can say that there were none.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from helpers import PATIENCE_S, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# What keeps it from asking its maker for anything, and from using what a container lacks.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
    "--metrics-recording-only",
    "--mute-audio",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-port=0",
    "--hide-scrollbars",
)


def find_chromium() -> str | None:
    """The browser's program, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A running browser. Use `start_browser`."""

    def __init__(self, url: str) -> None:
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(connect(url, max_size=None, compression=None))
        self._numbers = itertools.count(1)
        self.pages: dict[str, Page] = {}

    def close(self, *, is_last: bool = False) -> None:
        """Leave the browser. is_last: and end it."""
        for page in list(self.pages.values()):
            page.close()
        if is_last:
            with contextlib.suppress(ConnectionClosed):
                self.call("Browser.close")
        self._stack.close()

    def call(self, method: str, session: str = "", **params: Any) -> Any:
        """Ask the browser, or a page of it, for something, and return its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            answer = json.loads(self._socket.recv(PATIENCE_S))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._take(answer)
        raise AssertionError(f"no answer to {method}")

    def _take(self, event: dict[str, Any]) -> None:
        page = self.pages.get(event.get("sessionId", ""))
        if page is not None and "method" in event:
            page.take(event["method"], event["params"])

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open a file in a tab of its own, and wait until the page has drawn itself."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        self.pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.url = path.resolve().as_uri()
        page.call("Page.navigate", url=page.url)
        page.wait("document.documentElement?.dataset.drawn === 'yes'")
        return page


class Page:
    """One tab.

    said: what came to the console, and errors of scripts. requests: the URLs of what was asked for,
    but for the page itself and what stands in its own text.
    """

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        self.url = ""
        self.said: list[str] = []
        self.requests: list[str] = []

    def take(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.said.append(json.dumps(params)[:2000])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if url != self.url and not url.startswith("data:"):
                    self.requests.append(url)
            case "Page.javascriptDialogOpening":
                self.said.append(json.dumps(params))

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, self._session, **params)

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip

    def js(self, expression: str) -> Any:
        """The value of an expression in the page, as JSON has it."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        wait_until(lambda: self.js(condition))

    def text(self) -> str:
        """All that the page says."""
        found: str = self.js("document.body.innerText")
        return found

    def move_to(self, x: float, y: float) -> None:
        """Move the pointer there, in CSS pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def wheel(self, x: float, y: float, down: float, across: float = 0.0) -> None:
        self.call(
            "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=across, deltaY=down
        )

    def press(self, key: str, text: str = "") -> None:
        """Press and let go of a key."""
        more = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(
        self, path: Path, *, whole: bool = False, clip: dict[str, float] | None = None
    ) -> None:
        """Save what is seen as a PNG. whole: all of the page, however long."""
        params: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if clip is not None:
            params["clip"] = {**clip, "scale": 1}
        data = self.call("Page.captureScreenshot", **params)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """What would come out of a printer."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)
        self._browser.pages.pop(self._session, None)


@contextlib.contextmanager
def start_browser(home: Path) -> Iterator[Browser]:
    """A browser whose profile lies in a folder, until the block ends."""
    log = open_log(home)
    process = subprocess.Popen(
        command_of(home), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        browser = Browser(wait_until(lambda: url_of(home), poll=0.02))
        try:
            yield browser
        finally:
            browser.close(is_last=True)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def open_log(home: Path) -> BinaryIO:
    home.mkdir(parents=True, exist_ok=True)
    return open(home / "chromium.log", "wb")


def command_of(home: Path) -> list[str]:
    program = find_chromium()
    assert program is not None
    return [program, *FLAGS, f"--user-data-dir={home / 'profile'}", "about:blank"]


def url_of(home: Path) -> str | None:
    """Where a browser listens, once it does."""
    try:
        lines = (home / "profile" / "DevToolsActivePort").read_text().split("\n")
    except FileNotFoundError:
        return None
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}" if len(lines) > 1 else None


# Ends a browser once nobody holds the other end of the pipe any more, however those ended. It goes
# on beside whoever started it, and is nobody's child.
_WATCH = '{ "$@" & read -r _ < "$FIFO"; kill $!; wait; } &'


@contextlib.contextmanager
def shared_browser(folder: Path) -> Iterator[Browser]:
    """A browser that all processes use which name this folder, started by the first of them.

    Its start costs more than most tests. It ends when the last of them has left, or died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held, browser = _join(folder) or _start(folder)
    try:
        yield browser
    finally:
        browser.close()
        os.close(held)


def _join(folder: Path) -> tuple[int, Browser] | None:
    """Take hold of the newest browser of a folder, if there is one that lives."""
    homes = sorted(folder.glob("browser-*"))
    if not homes:
        return None
    try:
        held = os.open(homes[-1] / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        url = url_of(homes[-1])
        return None if url is None else (held, Browser(url))
    except OSError:
        os.close(held)
        return None


def _start(folder: Path) -> tuple[int, Browser]:
    home = folder / f"browser-{len(list(folder.glob('browser-*'))):04d}"
    log = open_log(home)
    os.mkfifo(home / "fifo")
    subprocess.run(
        ["/bin/bash", "-c", _WATCH, "bash", *command_of(home)],
        stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, check=True,
        env={**os.environ, "FIFO": str(home / "fifo")},
    )  # fmt: skip
    log.close()
    # Waits until the other side reads.
    held = os.open(home / "fifo", os.O_WRONLY)
    return held, Browser(wait_until(lambda: url_of(home), poll=0.02))
