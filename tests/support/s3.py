"""S3 servers for tests: moto and Swift, each in its own process, and a proxy that injects faults.

Fixtures (import them in a conftest): `moto`, `swift` (servers of the session), `bucket` (a fresh
s3:// URL on moto, the environment pointing at it), `both` (the same, on each server in turn),
`faults` (a proxy in front of moto, and its URL in the environment). All bind 127.0.0.1 on free
ports and leave no process or file behind.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.launch.topology import free_port
from pipeline.launch.workers import die_with_parent

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Server:
    """A running S3 endpoint, and the environment variables that point clients at it."""

    endpoint: str
    key: str = "lacuna"
    secret: str = "not-a-secret"
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        env = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        object.__setattr__(self, "env", env)

    def bucket(self) -> str:
        """A new bucket, as an s3:// URL."""
        import boto3

        name = f"test-{uuid.uuid4().hex[:12]}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )
        client.create_bucket(Bucket=name)
        return f"s3://{name}"


@dataclass(frozen=True)
class Faults:
    """The proxy in front of `server`."""

    server: Server

    def set(self, *rules: dict) -> None:
        """Replace the rules (see faultproxy.py) and empty the log."""
        self._control(json.dumps(rules).encode())

    def log(self) -> list[list[str]]:
        """[method, path, action] of each request since then."""
        return self._control(None)

    def _control(self, data: bytes | None) -> list[list[str]]:
        url = f"{self.server.endpoint}/__faults__"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def running(command: list[str], port: int, limit: float = 60.0) -> Iterator[None]:
    """Run `command` as a process; enters once its port answers, kills it at the end."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        end = time.monotonic() + limit
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[:3]} did not start (exit {process.returncode})")
            time.sleep(0.05)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def moto_server() -> Iterator[Server]:
    """moto in its own process, so that it shares no GIL with its clients."""
    port = free_port()
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    with running([sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)], port):
        yield Server(f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def swift_server() -> Iterator[Server]:
    """The S3 API of OpenStack Swift."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="lacuna-swift-")
    try:
        with running([sys.executable, str(HERE / "swift_server.py"), folder, str(port)], port):
            yield Server(f"http://127.0.0.1:{port}", "test:tester", "testing")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fault_proxy(upstream: Server, seed: int = 0) -> Iterator[Faults]:
    """A proxy in front of `upstream`; without rules it forwards everything."""
    port = free_port()
    script = [sys.executable, str(HERE / "faultproxy.py"), str(port), upstream.endpoint, str(seed)]
    with running(script, port):
        yield Faults(Server(f"http://127.0.0.1:{port}", upstream.key, upstream.secret))


def point_at(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process and its children at `server`, without filesystems of an earlier one."""
    from shards import objects

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "FSSPEC_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "_systems", {})


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def swift() -> Iterator[Server]:
    if find_spec("swift") is None:
        pytest.skip("Swift is not installed (pip install swift)")
    with swift_server() as server:
        yield server


@pytest.fixture
def bucket(moto: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    point_at(moto, monkeypatch)
    return moto.bucket()


@pytest.fixture(params=["moto", "swift"])
def both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    server: Server = request.getfixturevalue(request.param)
    point_at(server, monkeypatch)
    return server.bucket()


@pytest.fixture(scope="session")
def _proxy(moto: Server) -> Iterator[Faults]:
    with fault_proxy(moto) as faults:
        yield faults


@pytest.fixture
def faults(_proxy: Faults, monkeypatch: pytest.MonkeyPatch) -> Faults:
    point_at(_proxy.server, monkeypatch)
    _proxy.set()
    return _proxy
