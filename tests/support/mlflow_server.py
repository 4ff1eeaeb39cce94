"""A real MLflow server, a proxy in front of it that fails in chosen ways, and PostgreSQL."""

import contextlib
import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.folders import let_others_reach


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """A child in a session of its own, with its output in a file; gone after `kill`."""

    def __init__(
        self, command: list[str], log: Path, env: Mapping[str, str] = {}, **options
    ) -> None:
        self.log = log
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env},
                **options,
            )

    def wait_for(self, url: str, seconds: float = 120) -> None:
        """Until `url` answers 200; a child that died fails at once, with its last words."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                break
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        tail = self.log.read_text(errors="replace")[-2000:]
        self.kill()
        raise RuntimeError(f"{url} never answered:\n{tail}")

    def kill(self) -> None:
        """SIGKILL to the whole session, as a machine that loses power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


class MlflowServer:
    """`mlflow server` on a free port, over sqlite and a folder by default."""

    def __init__(self, folder: Path, *words: str, env: Mapping[str, str] = {}, backend="") -> None:
        self.folder, self.words = folder, words
        self.backend = backend or f"sqlite:///{folder}/server.db"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_MODEL_CATALOG_URI": "",
            **env,
        }
        self.process: Process | None = None

    def start(self) -> "MlflowServer":
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.backend]
        if "--artifacts-destination" not in self.words:
            command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.process = Process([*command, *self.words], self.folder / "server.log", self.env)
        self.process.wait_for(f"{self.url}/health")
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class FaultProxy:
    """Forwards HTTP to `target`; `mode` says what happens to each request instead.

    ok; dead (connections are closed without an answer); 500, 401, 403; slow (`delay` seconds pass,
    then the request goes through); lost (it goes through, its answer does not come back).
    `only` restricts that to requests whose path holds it.
    """

    def __init__(self, target: str) -> None:
        self.mode, self.only, self.delay, self.requests = "ok", "", 5.0, 0
        self.headers: dict[str, str] = {}
        where = urlsplit(target)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                proxy.requests += 1
                mode = proxy.mode if proxy.only in self.path else "ok"
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if mode == "dead":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if mode.isdigit():
                    self.answer(int(mode), [], b"refused by the proxy")
                    return
                if mode == "slow":
                    time.sleep(proxy.delay)
                upstream = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                    upstream.request(self.command, self.path, body, {**headers, **proxy.headers})
                    got = upstream.getresponse()
                    data = got.read()
                except OSError:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                finally:
                    upstream.close()
                if mode == "lost":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.answer(got.status, got.getheaders(), data)

            def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
                dropped = ("transfer-encoding", "content-length", "connection")
                try:
                    self.send_response_only(status)
                    for key, value in headers:
                        if key.lower() not in dropped:
                            self.send_header(key, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Postgres:
    """A private PostgreSQL cluster in `folder`; None of it is left after `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.bin = postgres_bin()
        assert self.bin is not None
        self.owner: dict[str, object] = {}
        if os.getuid() == 0:  # the server refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self.owner = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            let_others_reach(folder, 0o700)

    def start(self, database: str = "mlflow") -> str:
        """Starts it; the SQLAlchemy URI of a fresh database."""
        data, run = self.folder / "data", self.folder
        quick = ["-c", "fsync=off", "-c", "max_connections=40"]
        where = ["-p", str(self.port), "-k", str(run), "-c", "listen_addresses=127.0.0.1"]
        self._run("initdb", "-D", str(data), "-A", "trust", "-U", "mlflow", "--no-sync")
        self.process = Process(
            [f"{self.bin}/postgres", "-D", str(data), *where, *quick],
            self.folder.parent / "postgres.log",
            cwd=self.folder,
            **self.owner,
        )
        return self.create(database)

    def create(self, database: str) -> str:
        """The SQLAlchemy URI of another fresh database."""
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow")
        for _ in range(100):
            try:
                self._run("createdb", *where, database)
                return f"postgresql://mlflow@127.0.0.1:{self.port}/{database}"
            except subprocess.CalledProcessError:
                time.sleep(0.2)
        raise RuntimeError(f"PostgreSQL never answered on port {self.port}")

    def stop(self) -> None:
        self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *words: str) -> None:
        command = [f"{self.bin}/{program}", *words]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self.owner)


def postgres_bin() -> str | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if programs:
        return str(programs[-1].parent)
    initdb = shutil.which("initdb")
    return str(Path(initdb).parent) if initdb else None
