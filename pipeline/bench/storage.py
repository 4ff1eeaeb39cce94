"""Object storage for the benchmarks: nginx, spoken to as S3."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.launch.topology import free_port
from pipeline.launch.workers import die_with_parent
from shards import objects


@contextlib.contextmanager
def storage(nginx: str, folder: Path) -> Iterator[None]:
    """Serve the folders in `folder` as S3 buckets by nginx on a free port of this machine.

    Objects can be put, read and removed; a listing is always empty, as that of a new prefix.
    """
    port = free_port()
    temporary = "".join(
        f"{kind}_temp_path {folder}/nginx;"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root; " if os.geteuid() == 0 else ""  # the user nobody may not read our folder
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; events {{}}"
        f"http {{ access_log off; sendfile on; client_max_body_size 0; {temporary}"
        f"server {{ listen 127.0.0.1:{port}; root {folder};"
        "dav_methods PUT DELETE; create_full_put_path on;"
        "if ($args ~ list-type) { return 200 '<ListBucketResult/>'; } } }"
    )
    before = dict(os.environ)
    objects.reset_sessions()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [nginx, "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx.log")]
    stop = partial(die_with_parent, signal.SIGTERM)  # SIGKILL would leave nginx's own workers
    server = subprocess.Popen(command, cwd=folder, preexec_fn=stop)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        objects.reset_sessions()
        server.terminate()
        server.wait()
