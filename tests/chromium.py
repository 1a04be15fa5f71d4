"""A real Chromium without a window, driven over its own pipe by the DevTools protocol: no driver, no other package.

https://chromedevtools.github.io/devtools-protocol; messages are JSON, each ended by a NUL.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 20.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


PIXELS = """
(async () => {
  const raw = Uint8Array.from(atob(%s), (each) => each.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([raw]));
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  let text = "";
  for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
  return [bitmap.width, bitmap.height, btoa(text)];
})()
"""
"""Of a PNG in base64: width, height, and RGBA in base64."""


class Chromium:
    """One browser with one page; what the page asks for and complains of is kept."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest = b""
        self._last_id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.requests: list[str] = []
        """addresses"""
        self.complaints: list[str] = []
        """errors of the console, exceptions, and what a policy has refused"""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a command."""
        self._last_id += 1
        number = self._last_id
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if getattr(self, "_session", ""):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        deadline = time.monotonic() + SECONDS
        while number not in self._answers:
            self._receive(deadline - time.monotonic())
            assert time.monotonic() < deadline, f"no answer to {method}"
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Its value, awaited; an exception is a failure."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait_for(self, expression: str, seconds: float = SECONDS) -> None:
        """Until it is true; what cannot be looked at yet is not."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()"):
            assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {expression}; {self.complaints}"
            self._receive(0.05)

    def text(self, selector: str) -> str:
        found: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")
        return found

    def show(self, *, width: int, height: int, scheme: str = "light", scale: float = 1.0) -> None:
        """The size of the window in pixels, and whether the person likes it light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def wheel(self, x: float, y: float, pixels: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=pixels)

    def press(self, key: str) -> None:
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def small_picture(self) -> bytes:
        """The same in its 256 most frequent colours: a third of the bytes, and nobody sees a difference."""
        shot = json.dumps(base64.b64encode(self.picture()).decode())
        width, height, pixels = self.evaluate(PIXELS % shot)
        rgba = np.frombuffer(base64.b64decode(pixels), np.uint32)
        colours, index, counts = np.unique(rgba, return_inverse=True, return_counts=True)
        parts = colours.view(np.uint8).reshape(-1, 4)[:, :3].astype(np.int64)
        palette = parts[np.argsort(-counts, kind="stable")[:256]]
        nearest = np.array([((palette - part) ** 2).sum(axis=1).argmin() for part in parts], np.uint8)
        rows = nearest[index].reshape(height, width)
        lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each line begins with 0: no filter
        header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
        parts_of_file = ((b"IHDR", header), (b"PLTE", palette.astype(np.uint8).tobytes()))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
            for name, content in (*parts_of_file, (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
        )

    def _receive(self, seconds: float) -> None:
        if not select.select([self._from], [], [], max(seconds, 0))[0]:
            return
        data = os.read(self._from, 1 << 20)
        assert data, "the browser has ended"
        *whole, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{told['entry']['source']}: {told['entry']['text']}")
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(told["args"]))
            case "Audits.issueAdded" if "contentSecurityPolicyIssueDetails" in told["issue"]["details"]:
                self.complaints.append(json.dumps(told["issue"]))


@contextmanager
def chromium(program: str, folder: Path, *flags: str) -> Iterator[Chromium]:
    """A browser with a profile of its own in `folder`; it ends with the block, children and all."""
    to_us, from_us = os.pipe(), os.pipe()
    shell = f'exec "$@" 3<&{from_us[0]} 4>&{to_us[1]}'  # it reads descriptor 3 and writes to 4
    command = ["bash", "-c", shell, "bash", program, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags]
    with (folder / "chromium.log").open("w") as log:
        process = subprocess.Popen(
            command,
            pass_fds=(from_us[0], to_us[1]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"HOME": str(folder)},
        )
    os.close(from_us[0])
    os.close(to_us[1])
    try:
        yield Chromium(from_us[1], to_us[0])
    finally:
        os.close(from_us[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(to_us[0])
