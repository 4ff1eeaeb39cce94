"""`demo`: a local page to open an image, paint over objects, remove them and save the result.

The page loads nothing from the internet. The server listens on this machine only, unless `host=` is
set, and answers only its own page: another site open in the same browser can neither read nor use
it.
"""

import socket
import threading
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
from flask import Flask, Response, abort, render_template, request
from numpy.typing import NDArray
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from pipeline.common.console import say
from pipeline.config.groups import HoleConfig
from pipeline.config.schema import DemoConfig
from pipeline.inference import images
from pipeline.inference.holes import fill_hole
from pipeline.inference.sources import LoadedInpainter, default_device, load

LIMIT = 64 << 20  # bytes of one request: an image and its mask
LOCAL = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
POLICY += "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"


def main(config: DemoConfig) -> dict[str, Any]:
    """Serve until interrupted. Returns `{"url", "models"}`."""
    inpainters = load_inpainters(config)
    server = make(config, inpainters)
    url = f"http://{config.host}:{server.port}/"
    say(f"open {url} (press Ctrl-C to stop)")
    if config.host not in LOCAL:
        say("warning: anyone who can reach this machine can use the page")
    server.serve_forever()  # returns on Ctrl-C
    say("stopped")
    return {"url": url, "models": [inpainter.name for inpainter in inpainters]}


def show(result: dict[str, Any]) -> str:
    return f"served {', '.join(result['models'])} at {result['url']}"


def load_inpainters(config: DemoConfig) -> list[LoadedInpainter]:
    names = filter(None, (config.model, config.against))
    return [load(model=name, device=default_device()) for name in names]


def make(config: DemoConfig, inpainters: list[LoadedInpainter]) -> BaseWSGIServer:
    """Bind the server without serving yet. ValueError if the address cannot be used."""
    app = build_app(inpainters, config.host in LOCAL, config.mask)
    try:  # make_server would print the error and exit
        with socket.create_server((config.host, config.port)) as bound:
            fd = bound.fileno()
            return make_server(config.host, config.port, app, True, 1, QuietHandler, fd=fd)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise ValueError(
            f"cannot listen on {config.host}:{config.port} ({reason}): "
            "choose another port=, or port=0 for a free one"
        ) from error


class QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Log nothing: one line per request would hide the address of the page."""


def build_app(inpainters: list[LoadedInpainter], local_only: bool, changes: HoleConfig) -> Flask:
    """Serve the page at `/`, and `/fill/N`: image and mask (white = hole) to the PNG of model N.

    `/upright`: an image to the PNG that is painted on. Browsers differ in which orientations they
    apply, and the mask must fit what `/fill` decodes. `/mask/WxH`: any mask file of that size to a
    PNG that is opaque in the hole. `/sample`: an image to try the page on.

    changes: how the hole is changed; `/fill` may name another `grow` and `feather`.
    """
    app = Flask(__name__, static_folder=None)
    one_at_a_time = threading.Lock()  # bounds memory

    @app.before_request
    def reject_other_sites() -> None:
        # A foreign host name that resolves to this machine belongs to another site's page.
        if local_only and request.host.rsplit(":", 1)[0].strip("[]") not in LOCAL:
            abort(403, "unknown host name: open the page as http://127.0.0.1")
        # A form of another site cannot set a header, and its script needs permission to.
        if request.method == "POST" and request.headers.get("X-Lacuna") != "demo":
            abort(403, "requests are accepted from the demo page only")
        if request.method == "POST" and not 0 < (request.content_length or 0) <= LIMIT:
            abort(413, f"an image and its mask may have at most {LIMIT >> 20} MB together")

    @app.get("/")
    def page() -> str:
        names = [inpainter.name for inpainter in inpainters]
        return render_template("demo.html", models=names, mask=changes)

    @app.get("/sample")
    def sample() -> Response:
        photograph = files("skimage").joinpath("data", "coffee.png").read_bytes()
        return Response(photograph, mimetype="image/png")

    @app.post("/mask/<int:width>x<int:height>")
    def mask_layer(width: int, height: int) -> Response:
        hole = images.mask_image(_hole(request.get_data(), width, height))
        png = images.encode(images.ImageFile(hole, alpha=hole[..., 0]))
        return Response(png, mimetype="image/png")

    @app.post("/upright")
    def upright() -> Response:
        png = images.encode(images.decode(request.get_data()))
        return Response(png, mimetype="image/png")

    @app.post("/fill/<int:number>")
    def fill(number: int) -> Response:
        if number >= len(inpainters):
            abort(404, "no such model")
        image, mask = (request.files[name].read() for name in ("image", "mask"))
        options = replace(changes, grow=_pixels("grow"), feather=_pixels("feather"))
        with one_at_a_time:
            png = fill_png(inpainters[number], image, mask, options)
        return Response(png, mimetype="image/png")

    def _pixels(name: str) -> int:
        text = request.form.get(name, str(getattr(changes, name)))
        if not text.isdecimal():
            raise ValueError(f"invalid {name}={text!r}: expected a whole number of pixels, from 0")
        return int(text)

    @app.errorhandler(Exception)
    def explain(error: Exception) -> Response:
        """Return one line for the page; the server keeps running, even when out of memory."""
        if isinstance(error, HTTPException):
            text, status = error.description or error.name, error.code or 500
        elif isinstance(error, ValueError):
            text, status = str(error), 400
        else:
            text, status = f"{type(error).__name__}: {error}".partition("\n")[0], 500
            say(f"demo: {text}")
        return Response(text, status, mimetype="text/plain")

    @app.after_request
    def restrict(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return app


def fill_png(
    inpainter: LoadedInpainter, image: bytes, mask: bytes, changes: HoleConfig | None = None
) -> bytes:
    """Return the image as PNG, the mask's white filled. ValueError if they do not fit."""
    original = images.decode(image)
    height, width = original.pixels.shape[:2]
    hole = _hole(mask, width, height)
    if not hole.any():
        raise ValueError("nothing is painted yet")
    filled, _ = fill_hole(inpainter, original, hole, changes or HoleConfig())
    return images.encode(filled)


def _hole(mask: bytes, width: int, height: int) -> NDArray[np.bool_]:
    """Return the hole, H×W, of a mask file of the image's size."""
    hole = images.decode_mask(mask, "mask")
    if hole.shape != (height, width):
        raise ValueError(
            f"the mask is {hole.shape[1]}×{hole.shape[0]}, the image is {width}×{height}: "
            "use a mask of the image's size"
        )
    return hole
