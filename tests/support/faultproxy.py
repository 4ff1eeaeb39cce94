"""An HTTP proxy in front of an S3 server that injects faults on request.

    python faultproxy.py PORT UPSTREAM [SEED]

`POST /__faults__` takes a JSON list of rules and empties the log; `GET /__faults__` returns the
log, one [method, path, action] per request. A rule: `act` (status, reset, truncate, stall, flip,
delay, whole: ignore the header Range), and optionally `method`, `path` (a regular expression),
`skip` (pass the first n), `times` (at most n), `rate` (a share of the matches), `status` and `code`
or `body` (act status), `seconds` (stall, delay), `bytes` (truncate: how many are sent).
"""

import asyncio
import random
import re
import sys

from aiohttp import ClientSession, DummyCookieJar, web

CONTROL = "/__faults__"
HOP = {"transfer-encoding", "connection", "keep-alive", "expect", "content-length"}
ERROR = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{0}, injected</Message></Error>'


class Proxy:
    def __init__(self, upstream: str, seed: int) -> None:
        self.upstream = upstream
        self.random = random.Random(seed)
        self.rules: list[dict] = []
        self.log: list[list[str]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == CONTROL:
            return await self.control(request)
        rule = self.choose(request.method, request.path_qs)
        act = rule["act"] if rule else "pass"
        self.log.append([request.method, request.path_qs, act])
        body = await request.read()
        if act == "reset":
            return self.abort(request)
        if act == "status":
            text = rule.get("body") or ERROR.format(rule.get("code", "SlowDown"))
            return web.Response(status=rule.get("status", 503), text=text)
        if act in ("stall", "delay"):
            await asyncio.sleep(rule.get("seconds", 30))
            if act == "stall":
                return self.abort(request)
        ignored = {"range"} if act == "whole" else set()
        status, headers, content = await self.forward(request, body, ignored)
        if act == "flip" and content:
            place = len(content) // 2
            content = content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
        if act == "truncate":
            return await self.truncate(request, status, headers, content[: rule.get("bytes", 100)])
        if request.method == "HEAD":
            response = web.StreamResponse(status=status, headers=headers)
            await response.prepare(request)
            return response
        headers.pop("Content-Length", None)
        return web.Response(status=status, headers=headers, body=content)

    def choose(self, method: str, path: str) -> dict | None:
        for rule in self.rules:
            if rule.get("method", method) != method or not re.search(rule.get("path", ""), path):
                continue
            if rule.get("skip", 0) > 0:
                rule["skip"] -= 1
                continue
            if rule.get("times", 1) <= 0 or self.random.random() >= rule.get("rate", 1.0):
                continue
            if "times" in rule:
                rule["times"] -= 1
            return rule
        return None

    async def forward(
        self, request: web.Request, body: bytes, ignored: set[str]
    ) -> tuple[int, dict, bytes]:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP | ignored}
        async with self.session.request(
            request.method,
            self.upstream + request.raw_path,
            headers=headers,
            data=body or None,
            allow_redirects=False,
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
            if "Content-Length" in answer.headers:
                kept["Content-Length"] = answer.headers["Content-Length"]
            return answer.status, kept, await answer.read()

    async def truncate(
        self, request: web.Request, status: int, headers: dict, content: bytes
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        await response.write(content)
        return self.abort(request, response)

    def abort(
        self, request: web.Request, response: web.StreamResponse | None = None
    ) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.close() if response is not None else request.transport.abort()
        return response or web.Response(status=500)

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.rules, self.log = await request.json(), []
        return web.json_response(self.log)

    async def lifetime(self, app: web.Application):
        self.session = ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar())
        yield
        await self.session.close()


def main(port: int, upstream: str, seed: int) -> None:
    import os

    proxy = Proxy(upstream, seed)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    app.cleanup_ctx.append(proxy.lifetime)

    async def orphaned(_: web.Application) -> None:
        parent = os.getppid()

        async def watch() -> None:
            while os.getppid() == parent:
                await asyncio.sleep(1)
            os._exit(0)  # ends with its parent

        app["watch"] = asyncio.create_task(watch())

    app.on_startup.append(orphaned)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
