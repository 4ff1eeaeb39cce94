"""`demo`: a page to open a picture, paint over an object, see it removed, and save the result.

Of the standard library alone and without anything from the internet. It listens on this machine
only unless `host=` says otherwise, and answers only pages that it served itself: another site open
in the same browser can neither read nor use it.
"""

import sys
import threading
from email.parser import BytesParser
from email.policy import HTTP
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2
import torch

from pipeline.config.schema import DemoConfig
from pipeline.inference import images
from pipeline.inference.images import ImageFile
from pipeline.inference.sources import LoadedInpainter, load
from pipeline.inference.tiling import fill_any

TEMPLATES = Path(__file__).with_name("templates")
LIMIT = 64 << 20  # bytes of one request: a picture and its mask
LOCAL = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
POLICY += "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"


def main(config: DemoConfig) -> dict[str, Any]:
    """Serve until interrupted. Returns `{"url", "models"}`."""
    server = make(config)
    url = f"http://{config.host}:{server.server_address[1]}/"
    print(f"open {url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if config.host not in LOCAL:
        print("everybody who reaches this machine can use the page", file=sys.stderr)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
    finally:
        server.server_close()
    return {"url": url, "models": [source.name for source in server.sources]}


def show(result: dict[str, Any]) -> str:
    return f"served {', '.join(result['models'])} at {result['url']}"


def make(config: DemoConfig) -> "Server":
    """The server, bound and not yet serving. ValueError when the address cannot be had."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [config.model] + ([config.against] if config.against else [])
    sources = [load(model=name, device=device) for name in names]
    try:
        return Server(config, sources, device)
    except OSError as error:
        raise ValueError(
            f"{config.host}:{config.port} cannot be listened on ({error.strerror}): "
            "give another port=, or port=0 for a free one"
        ) from error


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, config: DemoConfig, sources: list[LoadedInpainter], device: torch.device
    ) -> None:
        self.config, self.sources, self.device = config, sources, device
        self.turn = threading.Lock()  # one picture at a time: memory is bounded
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
        names = [source.name for source in sources]
        self.page = environment.get_template("demo.html.j2").render(models=names).encode()
        super().__init__((config.host, config.port), Handler)

    def fill(self, number: int, image: bytes, mask: bytes) -> bytes:
        """PNG of the picture with the mask's white filled by a model; ValueError if it cannot."""
        picture, drawn = images.decode(image), images.decode(mask, "mask").pixels
        holes = (drawn.max(2) > 127).astype("uint8")
        if holes.shape != picture.pixels.shape[:2]:
            raise ValueError("mask and picture differ in size: open the picture again")
        if not holes.any():
            raise ValueError("nothing is painted yet")
        if holes.all():
            raise ValueError("all of the picture is painted: leave something to fill it from")
        with self.turn:
            filled = fill_any(self.sources[number].fill, picture.pixels, holes, device=self.device)
        return images.encode(ImageFile(filled, picture.alpha, picture.icc, picture.exif))


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if not self._is_ours():
            return self._answer(HTTPStatus.FORBIDDEN, b"not served under this name")
        if self.path == "/":
            return self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        return self._answer(HTTPStatus.NOT_FOUND, b"no such page")

    def do_POST(self) -> None:  # noqa: N802
        # A form of another site cannot set a header, and its script may not without asking.
        if not self._is_ours() or self.headers.get("X-Lacuna") != "demo":
            self.close_connection = True
            return self._answer(HTTPStatus.FORBIDDEN, b"use the page that this server serves")
        told = self.headers.get("Content-Length") or ""
        length = int(told) if told.isdecimal() else 0
        if not 0 < length <= LIMIT:
            self.close_connection = True
            text = f"a picture and its mask may have {LIMIT >> 20} MB together"
            return self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text.encode())
        body = self.rfile.read(length)
        number = self.path.removeprefix("/fill/")
        if not number.isdigit() or int(number) >= len(self.server.sources):
            return self._answer(HTTPStatus.NOT_FOUND, b"no such model")
        try:
            parts = form(self.headers["Content-Type"] or "", body)
            result = self.server.fill(int(number), parts["image"], parts["mask"])
        except (ValueError, KeyError) as error:
            return self._answer(HTTPStatus.BAD_REQUEST, str(error).encode())
        except Exception as error:  # out of memory, say: the page tells it and the server stays
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"demo: {text}", file=sys.stderr)
            return self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, text.encode())
        return self._answer(HTTPStatus.OK, result, "image/png")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a request would bury the address."""

    def _is_ours(self) -> bool:
        """Asked by a name of ours: a foreign name that points here is somebody else's page."""
        if self.server.config.host not in LOCAL:
            return True
        name = (self.headers.get("Host") or "").rsplit(":", 1)[0].strip("[]")
        return name in LOCAL

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)


def form(kind: str, body: bytes) -> dict[str, bytes]:
    """The fields of a multipart form by name."""
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
    )
    found: dict[str, bytes] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(payload, bytes):
            found[name] = payload
    return found
