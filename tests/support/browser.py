"""A page in headless Chromium, driven through the Chrome DevTools protocol."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def installed() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """`with Page(url) as page:`; console errors and requested URLs are in `errors`, `requests`."""

    def __init__(self, url: str, width: int = 1300, height: int = 1000) -> None:
        self.url, self.size = url, (width, height)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._number = 0

    def __enter__(self) -> "Page":
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-")
        program = installed()
        assert program is not None
        self._browser = subprocess.Popen(
            [
                *(
                    program,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                ),
                *("--remote-debugging-port=0", f"--user-data-dir={self._profile.name}"),
                *("--disable-background-networking", "--no-first-run", "about:blank"),
            ],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
        )
        self._loop = asyncio.new_event_loop()
        try:
            self._wait(self._connect())
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.ask(f"{domain}.enable")
            width, height = self.size
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.ask("Emulation.setDeviceMetricsOverride", **size)
            self.open(self.url)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if hasattr(self, "_session"):
            self._wait(self._session.close())
        self._browser.kill()
        self._browser.wait()
        self._loop.close()
        shutil.rmtree(self._profile.name, ignore_errors=True)

    def open(self, url: str) -> None:
        self.run("globalThis.left = true")
        self.ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && !globalThis.left")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"never true: {script}; console: {self.errors}"
            time.sleep(0.05)

    def mouse(self, kind: str, x: float, y: float, button: str = "left") -> None:
        """`mousePressed`, `mouseMoved` or `mouseReleased` at a position in the window."""
        held = {"none": 0, "left": 1, "right": 2, "middle": 4}[button]
        buttons = 0 if kind == "mouseReleased" else held
        event = {"type": kind, "button": button, "buttons": buttons, "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", x=x, y=y, **event)

    def drag(self, *points: tuple[float, float], button: str = "left") -> None:
        """Press at the first point, move over all in small steps, release at the last."""
        x, y = points[0]
        self.mouse("mousePressed", x, y, button)
        for to_x, to_y in points[1:]:
            for part in (0.25, 0.5, 0.75, 1):
                self.mouse("mouseMoved", x + part * (to_x - x), y + part * (to_y - y), button)
            x, y = to_x, to_y
        self.mouse("mouseReleased", x, y, button)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, scrolled into view."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({selector!r});"
            " e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            " return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        self.drag((x, y))

    def key(self, kind: str, name: str) -> None:
        """`keyDown` or `keyUp` of a key, such as `e`, `Tab` or `Control+Shift+Z`."""
        *held, key = name.split("+") if len(name) > 1 else [name]
        modifiers = sum({"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}[each] for each in held)
        code = {"Tab": 9, "Enter": 13, " ": 32}.get(key) or (key.isalnum() and ord(key.upper()))
        text = {"text": "\r" if key == "Enter" else key}
        if kind == "keyUp" or modifiers & 7 or key == "Tab":
            text = {}
        event = {
            "type": kind,
            "key": key,
            "windowsVirtualKeyCode": int(code),
            "modifiers": modifiers,
        }
        self.ask("Input.dispatchKeyEvent", **event, **text)

    def press(self, *names: str) -> None:
        for name in names:
            self.key("keyDown", name)
            self.key("keyUp", name)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input, as its dialog does."""
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, path: Path) -> None:
        import base64

        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(data["data"]))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its answer; events received before it are recorded."""
        return self._wait(self._ask(method, parameters))

    def _wait(self, task: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(task, 60))

    async def _connect(self) -> None:
        port_file = Path(self._profile.name, "DevToolsActivePort")
        deadline = time.monotonic() + 60
        while not port_file.exists() or len(port_file.read_text().split()) < 2:
            assert self._browser.poll() is None, "the browser exited at once"
            assert time.monotonic() < deadline, "the browser opened no port"
            await asyncio.sleep(0.05)
        port = port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            targets = json.loads(await answer.text())
        target = next(t for t in targets if t["type"] == "page")["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(target, max_msg_size=0)

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, event = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(event["exceptionDetails"]["exception"].get("description", "error"))
        elif kind == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(event["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            url = event["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
