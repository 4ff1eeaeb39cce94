"""Machines for tests: network namespaces on a bridge of their own, and container-like processes.

Needs root and iproute2.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import string
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.launch.workers import die_with_parent
from tests.support.folders import PASS

ROOT = """\
S={folder}; R=$S/r; mkdir $S && mount -t tmpfs pod $S && mkdir $S/u $S/w $R || exit 1
mount -t overlay pod -o lowerdir=/,upperdir=$S/u,workdir=$S/w $R || exit 1
for d in {closed}; do chmod a+x "$R$d"; done
mount -t proc proc $R/proc && mount -t tmpfs dev $R/dev && mkdir -m 1777 $R/dev/shm $R/scratch
mount -t tmpfs -o mode=1777 scratch $R/scratch
for n in null zero full random urandom; do touch $R/dev/$n; mount --bind /dev/$n $R/dev/$n; done
printf 'nameserver 127.0.0.1\\noptions timeout:1 attempts:1\\n' > $R/etc/resolv.conf
{binds}
{sealed}
hostname {name}
exec chroot --userspec={user}:0 $R env --chdir={workdir} {command}
"""


class Network:
    """`10.213.N.0/24`; `add` makes a machine with an address on it, `close` removes everything."""

    def __init__(self) -> None:
        _clear_stale()
        self.tag = f"la{os.getpid():06x}{secrets.choice(string.ascii_lowercase)}"
        while Path("/sys/class/net", self.tag).exists():
            self.tag = self.tag[:-1] + secrets.choice(string.ascii_lowercase)
        self.prefix = self._free()
        self.spaces: dict[str, str] = {}
        _ip("link", "add", self.tag, "type", "bridge")
        _ip("addr", "add", f"{self.prefix}.1/24", "dev", self.tag)
        _ip("link", "set", self.tag, "up")

    def add(self, name: str) -> str:
        """The address of a new machine `name`, of at most 6 characters."""
        space, address = self.tag + name, f"{self.prefix}.{11 + len(self.spaces)}"
        _ip("netns", "add", space)
        self.spaces[name] = space
        _ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", space, "master", self.tag, "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        return address

    def enter(self, name: str) -> list[str]:
        """Prefix of a command that is to run there, with host name, mounts and processes apart.

        With the prefix's own process dies the first of the new processes, and with it all others.
        """
        return ["nsenter", f"--net=/run/netns/{self.spaces[name]}", "unshare", "--uts", "--mount",
                "--pid", "--fork", "--kill-child", "--mount-proc"]  # fmt: skip

    def close(self) -> None:
        for space in self.spaces.values():
            subprocess.run(["ip", "link", "del", space], capture_output=True)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", self.tag], capture_output=True)

    @staticmethod
    def _free() -> str:
        taken = subprocess.run(["ip", "-4", "addr"], capture_output=True, text=True).stdout
        free = [n for n in range(250) if f"10.213.{n}." not in taken]
        return f"10.213.{secrets.choice(free)}"


def _clear_stale() -> None:
    """Bridges, links and namespaces that processes left behind which are no more."""
    for name in {
        p.name for kind in ("sys/class/net", "run/netns") for p in Path("/", kind).glob("*")
    }:
        owner = re.match(r"la([0-9a-f]{6})[a-z]", name)
        if owner and not Path(f"/proc/{int(owner[1], 16)}").exists():
            subprocess.run(["ip", "link", "del", name], capture_output=True)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Container:
    """What a command that begins with `Network.enter` has become, from its start to its end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.deadline: float | None = None
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=die_with_parent)  # fmt: skip

    @property
    def code(self) -> int | None:
        """Its exit status, as a shell says it; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def stop(self, grace: float) -> None:
        """Asks its first process, which without a handler ignores that, once; to be called until it
        has ended, which it has when `grace` seconds are over."""
        if self.deadline is None:
            self.deadline = time.monotonic() + grace
            parent = self.process.pid
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                    os.kill(int(child), signal.SIGTERM)
        elif time.monotonic() > self.deadline:
            self.kill()

    def kill(self) -> None:
        """Its whole group: the prefix would not take along a process whose user has changed."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def contained(
    folder: Path,
    name: str,
    workdir: Path,
    command: Sequence[str],
    binds: Mapping[str, Path],
    user: int = 12345,
    read_only: bool = False,
) -> str:
    """Shell lines, to be run after `enter`, that become `command` as an unknown user.

    Its root is this machine's, with what it writes kept apart in `folder`; only /scratch, /dev/shm
    and the `binds` (path there: file or folder here) can be written by anybody.
    """
    needed = (sys.executable, f"{sys.base_prefix}/bin", f"{workdir}/any", *binds)
    above = {p for place in needed for p in Path(place).parents if p.exists()}
    closed = sorted(str(p) for p in above if p.stat().st_mode & PASS != PASS)
    mounts = [
        f"{'mkdir -p' if here.is_dir() else 'touch'} $R{there} && mount --bind {here} $R{there}"
        for there, here in binds.items()
    ]
    return ROOT.format(
        folder=folder,
        name=name,
        workdir=workdir,
        command=shlex.join(command),
        binds="\n".join(mounts),
        closed=" ".join(closed),
        user=user,
        sealed="mount -o remount,ro $R" if read_only else "",
    )
