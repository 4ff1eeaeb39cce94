"""OpenStack Swift with its S3 API in one process: a second, independent S3 implementation.

    python swift_server.py FOLDER PORT

Ring, account, container, object and proxy servers with one device in FOLDER, nothing outside it.
User test:tester, secret testing. Needs `pip install swift`; starts in about four seconds.
"""

import warnings

warnings.simplefilter("ignore")  # eventlet's deprecation notice

import eventlet  # noqa: E402

eventlet.monkey_patch()

import logging  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

BACK = """\
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
fallocate_reserve = 0
"""
PROXY = """\
[DEFAULT]
swift_dir = {folder}
bind_ip = 127.0.0.1
bind_port = {port}
[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
min_segment_size = 1
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
error_suppression_limit = 1
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


def main(folder: Path, port: int) -> None:
    from swift.common import utils, wsgi
    from swift.common.ring import RingBuilder

    (folder / "devices" / "d1").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = lacuna\n")
    utils.set_swift_dir(str(folder))
    sockets = {kind: _listen(0) for kind in ("account", "container", "object")}
    for kind, listening in sockets.items():
        ring = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        where = {"ip": "127.0.0.1", "port": listening.getsockname()[1], "device": "d1"}
        ring.add_dev({**where, "id": 0, "zone": 1, "region": 1, "weight": 1.0})
        ring.rebalance(seed=1)
        ring.get_ring().save(str(folder / f"{kind}.ring.gz"))
    logging.disable(logging.CRITICAL)  # memcached is absent on purpose; Swift logs that often
    for kind, listening in sockets.items():
        conf = folder / f"{kind}-server.conf"
        conf.write_text(BACK.format(folder=folder, kind=kind, port=listening.getsockname()[1]))
        _serve(listening, wsgi.loadapp(str(conf)))
    conf = folder / "proxy-server.conf"
    conf.write_text(PROXY.format(folder=folder, port=port))
    _serve(_listen(port), wsgi.loadapp(str(conf)))
    parent = os.getppid()
    while os.getppid() == parent:  # ends with its parent
        eventlet.sleep(1)


def _listen(port: int) -> socket.socket:
    return eventlet.listen(("127.0.0.1", port))


def _serve(listening: socket.socket, app: object) -> None:
    quiet = logging.getLogger("quiet")
    eventlet.spawn(eventlet.wsgi.server, listening, app, log=quiet, debug=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
