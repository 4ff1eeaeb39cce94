"""Nodes whose host names do not lead to their network still meet, by the route to the master."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.launch.topology import Place, interface
from tests.support.netns import Network

ROOT = Path(__file__).resolve().parents[3]
RANK = """
from pipeline.config.compose import compose
from pipeline.training.engine import Engine

one = Engine(compose("train", ["precision=fp32", "processes=1"]).config)
print(one.gather(one.rank), flush=True)
one.close()
"""
ENTER = 'hostname "$1"; printf "$2" > "$3"; mount --bind "$3" /etc/hosts; shift 3; exec "$@"'
networked = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"
)


@pytest.fixture
def network():
    made = Network()
    yield made
    made.close()


# Row 56
@pytest.mark.slow
@pytest.mark.dist
@networked
@pytest.mark.parametrize(
    ("hosts", "master"),
    [
        ("127.0.0.1 localhost\\n", "{address}"),
        ("127.0.0.1 localhost\\n127.0.1.1 {name}\\n", "{address}"),
        ("127.0.0.1 localhost\\n{own}\\n", "node0"),
    ],
    ids=["no host name resolves", "each is 127.0.1.1", "the master's name is its own loopback"],
)
def test_two_nodes_meet_whatever_their_host_names_mean(network, tmp_path, hosts, master):
    address, ranks = network.add("node0"), []
    network.add("node1")
    for node in (0, 1):
        name, own = f"node{node}", f"{'127.0.1.1' if node == 0 else address} node0"
        where = master.format(address=address)
        text = hosts.format(name=name, own=own)
        inside = ["sh", "-c", ENTER, "sh", name, text, str(tmp_path / name)]
        worker = Place(2, node, 1, where, 29511).workers[0]
        ranks.append(
            subprocess.Popen(
                [*network.enter(name), *inside, sys.executable, "-c", RANK],
                cwd=ROOT,
                env={**os.environ, **worker},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for rank in ranks:
            out, error = rank.communicate(timeout=200)
            assert rank.returncode == 0 and out.endswith("[0, 1]\n"), error
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.parametrize("master", ["localhost", "127.0.0.1", "127.0.1.1", "::1", "[::1]"])
def test_processes_of_one_machine_keep_what_gloo_takes(master):
    assert interface(master) is None


# Row 56
@pytest.mark.slow
@networked
@pytest.mark.parametrize(("links", "chosen"), [((), "eth0"), (("a", "b"), None)])
def test_a_name_that_leads_nowhere_takes_the_only_interface_or_is_refused(
    network, tmp_path, links, chosen
):
    network.add("node0")
    space = network.spaces["node0"]
    for i, link in enumerate(links):
        pair = ["type", "veth", "peer", "name", link, "netns", space]
        subprocess.run(["ip", "link", "add", f"{network.tag}x{i}", *pair], check=True)
        address = ["addr", "add", f"10.9.{i}.1/24", "dev", link]
        subprocess.run(["ip", "-n", space, *address], check=True)
    code = "from pipeline.launch.topology import interface; print(interface('no-such-node'))"
    inside = ["sh", "-c", ENTER, "sh", "ghost", "127.0.0.1 localhost\\n", str(tmp_path / "hosts")]
    done = subprocess.run(
        [*network.enter("node0"), *inside, sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if chosen:
        assert done.stdout == f"{chosen}\n", done.stderr
    else:
        assert ConfigError.__name__ in done.stderr
        assert "set GLOO_SOCKET_IFNAME to one of a, b, eth0" in done.stderr
