"""Ranges by signed URLs, on two S3 servers and behind one that misbehaves."""

import contextlib
import hmac
import logging
import os
import socket
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from pipeline.submission.job import FORWARDED
from shards import store
from shards.ranged import MAX_FAILURES, Ranges
from tests.support.s3 import Server

ROOT = Path(__file__).resolve().parents[2]
BYTES = os.urandom(3 << 20)


@pytest.fixture
def ranges():
    made = Ranges(2)
    yield made
    made.close()


def refuse(*_):
    raise AssertionError("the long way was taken")


def test_a_range_comes_by_the_short_way_from_either_server(both, ranges, monkeypatch):
    store.write(f"{both}/a b/ü.tar", BYTES)
    monkeypatch.setattr(store, "read", refuse)
    for start, end in ((0, 1), (5, 1 << 20), (1 << 20, len(BYTES))):
        assert ranges.read(f"{both}/a b/ü.tar", start, end) == BYTES[start:end]


def test_what_is_not_in_the_store_is_said_as_by_the_store(bucket, ranges):
    with pytest.raises(FileNotFoundError):
        ranges.read(f"{bucket}/absent", 0, 5)
    store.write(f"{bucket}/x", BYTES)
    with pytest.raises(EOFError, match="expected"):
        ranges.read(f"{bucket}/x", len(BYTES) - 5, len(BYTES) + 5)


@pytest.mark.parametrize("act", ["status", "reset", "truncate"])
def test_a_fault_on_the_short_way_is_mended_by_the_long(moto, faults, ranges, act):
    url = f"{moto.bucket()}/x"
    store.write(url, BYTES)
    faults.set({"act": act, "path": "Signature=", "times": 1})
    assert ranges.read(url, 7, 70_000) == BYTES[7:70_000]
    assert ranges.read(url, 8, 70_000) == BYTES[8:70_000]
    taken = [(act, "Signature=" in path) for _, path, act in faults.log() if "/x" in path]
    assert taken == [(act, True), ("pass", False), ("pass", True)]


def test_a_server_that_takes_no_signed_url_is_soon_asked_for_none(moto, faults, ranges):
    url = f"{moto.bucket()}/x"
    store.write(url, BYTES)
    faults.set({"act": "status", "status": 403, "code": "AccessDenied", "path": "Signature="})
    with pytest.warns(UserWarning, match="signed URLs fail"):
        for start in range(MAX_FAILURES + 3):
            assert ranges.read(url, start, 900) == BYTES[start:900]
    signed = ["Signature=" in path for _, path, _ in faults.log() if "/x" in path]
    assert signed == [True, False] * MAX_FAILURES + [False] * 3


def test_what_goes_through_a_proxy_is_not_asked_for_past_it(moto, faults, ranges, monkeypatch):
    url = f"{moto.bucket()}/x"
    store.write(url, BYTES)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the session of s3fs is open already
    faults.set()
    assert ranges.read(url, 7, 70_000) == BYTES[7:70_000]
    assert [(act, "Signature=" in path) for _, path, act in faults.log()] == [("pass", False)]


def test_an_object_sent_whole_in_place_of_its_range_is_not_read(bucket, ranges, monkeypatch):
    """A server that knows no ranges would put a whole tar into memory."""
    store.write(f"{bucket}/x", BYTES)
    sent, most = 0, 1 << 30
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            nonlocal sent
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % most)
            with contextlib.suppress(OSError):  # hung up on, as it should be
                while sent < most:
                    sent += connection.send(bytes(1 << 16))

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        monkeypatch.setattr(ranges, "_sign", lambda url: address)
        assert ranges.read(f"{bucket}/x", 7, 70_000) == BYTES[7:70_000]
        thread.join()
    assert sent < 64 << 20


def test_no_log_shows_a_signed_url(bucket, ranges, caplog):
    caplog.set_level(logging.DEBUG)
    store.write(f"{bucket}/x", BYTES)
    caplog.clear()
    assert ranges.read(f"{bucket}/x", 7, 70_000) == BYTES[7:70_000]
    assert "urllib3.connectionpool" in {line.name for line in caplog.records}
    assert "X-Amz-Signature" not in caplog.text


def test_one_connection_serves_one_range_after_another(moto, faults, ranges):
    url = f"{moto.bucket()}/x"
    store.write(url, BYTES)
    for start in range(5):
        assert ranges.read(url, start, 70_000) == BYTES[start:70_000]
    (kept,) = ranges._pool.pools.keys()
    assert ranges._pool.pools[kept].num_connections == 1


# --- buckets of others ----------------------------------------------------------------------------


def signature(method: str, path: str, host: str, query: str, payer: str) -> str:
    """The signature of a signed URL by the definition of Signature Version 4 (AWS, 2012)."""
    fields = sorted(field for field in query.split("&") if "Signature=" not in field)
    given = dict(parse_qsl(query))
    day, scope = given["X-Amz-Date"][:8], given["X-Amz-Credential"].split("/", 1)[1]
    headers = f"host:{host}\nx-amz-request-payer:{payer}\n\nhost;x-amz-request-payer"
    request = "\n".join([method, path, "&".join(fields), headers, "UNSIGNED-PAYLOAD"])
    signed = ["AWS4-HMAC-SHA256", given["X-Amz-Date"], scope, sha256(request.encode()).hexdigest()]
    key = b"AWS4not-a-secret"
    for word in (day, *scope.split("/")[1:], "\n".join(signed)):
        key = hmac.digest(key, word.encode(), "sha256")
    return key.hex()


class ForPayers(BaseHTTPRequestHandler):
    """Serves ranges of BYTES to requests by a correctly signed URL whose sender pays."""

    def serves(self) -> bool:
        path, _, query = self.path.partition("?")
        payer = self.headers.get("x-amz-request-payer", "")
        expected = signature("GET", path, self.headers["Host"], query, payer) if payer else ""
        return payer == "requester" and dict(parse_qsl(query)).get("X-Amz-Signature") == expected

    def do_GET(self) -> None:
        start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        data = BYTES[start : end + 1] if self.serves() else b""
        self.send_response(206 if data else 403)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


class ForAnyone(ForPayers):
    """Serves unsigned requests only, as S3 does where the sender has no valid key."""

    def serves(self) -> bool:
        return "?" not in self.path and "Authorization" not in self.headers


READ = """
import sys, warnings
from shards import objects, store
from shards.ranged import Ranges
warnings.simplefilter("error")
if sys.argv[1] == "short":
    store.read = None
    sys.stdout.buffer.write(Ranges(1).read("s3://bucket/set/x", 7, 5000))
else:
    sys.stdout.buffer.write(store.read("s3://bucket/set/x", 7, 5000))
"""


# Row 17
@pytest.mark.parametrize(
    ("variable", "handler", "way"),
    [
        ("FSSPEC_S3_REQUESTER_PAYS", ForPayers, "short"),
        ("FSSPEC_S3_ANON", ForAnyone, "short"),
        ("FSSPEC_S3_ANON", ForAnyone, "long"),
    ],
)
def test_a_bucket_of_others_is_read_as_the_readme_says(variable, handler, way):
    assert variable in FORWARDED  # to jobs
    assert f"`{variable}=true`" in (ROOT / "README.md").read_text()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        env = {**os.environ, **Server(endpoint).env, variable: "true"}
        command = [sys.executable, "-c", READ, way]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True)
        server.shutdown()
    assert done.stdout == BYTES[7:5000], done.stderr.decode()
