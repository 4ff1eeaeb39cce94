"""MLflow's server of one model, with forms as input and one line for every body that is refused.

uvicorn runs `app`. MLflow would answer a body that it cannot read with the body itself. The form
`curl -F image=@photo.jpg -F mask=@mask.png` is answered with the filled image as PNG.

LACUNA_SERVED: folder of the model. LACUNA_MAX_MB: largest accepted body (default 64).
"""

import asyncio
import io
import json
import os
from collections.abc import Awaitable, Callable

import mlflow
import pandas
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

FIELDS = ("image", "mask")
FORM = "curl -F image=@photo.jpg -F mask=@mask.png"
MAX_BYTES = int(os.environ.get("LACUNA_MAX_MB", "64")) * 2**20
model = mlflow.pyfunc.load_model(os.environ["LACUNA_SERVED"])
app = scoring_server.init(model)


async def checked(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    if request.url.path != "/invocations":
        return await call_next(request)
    kind, options = parse_options_header(request.headers.get("content-type"))
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        await discard(request)
        return refused(411, "the request has no Content-Length: send the whole body at once")
    if int(length) > MAX_BYTES:
        await discard(request)
        return refused(413, f"the body has {length} bytes, at most {MAX_BYTES} are accepted: send "
                       "fewer or smaller images")  # fmt: skip
    body = await request.body()
    if kind == "multipart/form-data":
        return await asyncio.to_thread(fill_form, body, kind, options)
    if kind != "application/json":
        return refused(415, f"Content-Type is {kind or 'missing'}: send application/json, or a "
                       f"form ({FORM})")  # fmt: skip
    try:
        json.loads(body)
    except (ValueError, RecursionError) as error:
        return refused(400, f"the body is not JSON ({error}): send a whole JSON document")
    return await call_next(request)


async def discard(request: Request) -> None:
    """Read a refused body (its first 16 x MAX_BYTES at most) without keeping it.

    A connection that is closed while the client still sends is reset, and the answer is lost.
    """
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > 16 * MAX_BYTES:
            break


def fill_form(body: bytes, kind: str, options: dict[str, str]) -> Response:
    """Return the filled PNG for a form with the two files."""
    try:
        form = FormDataParser(silent=False).parse(io.BytesIO(body), kind, len(body), options)
    except ValueError as error:
        return refused(400, f"the form cannot be read ({error}): send it by {FORM}")
    files = form[2]
    if missing := [name for name in FIELDS if name not in files]:
        return refused(400, f"no file `{missing[0]}` in the form: send {FORM}")
    row = pandas.DataFrame([{name: files[name].read() for name in FIELDS}])
    try:
        (answer,) = model.predict(row)
    except MlflowException as error:
        return refused(400, error.message)
    headers = {"X-Model-Version": answer["version"], "X-Model-SHA256": answer["sha256"]}
    return Response(answer["image"], media_type="image/png", headers=headers)


def refused(status: int, message: str) -> Response:
    """Return the error in the form of MLflow's own."""
    return JSONResponse({"error_code": "BAD_REQUEST", "message": message}, status)


app.add_middleware(BaseHTTPMiddleware, dispatch=checked)
