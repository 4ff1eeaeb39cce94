"""A private SLURM: real daemons, two nodes in network, PID, mount and UTS namespaces of their own.

Own folder, munge key, sockets and ports; nothing of /etc/slurm or /etc/munge is read or written.
Needs root, and Debian's slurm-wlm, munge and iproute2. Up in seconds; `stop` leaves no process, no
namespace, no bridge and no file. Where nobody comes to call it, the daemons die with their maker,
and the next cluster clears its namespaces away.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

from pipeline.launch.workers import die_with_parent
from tests.support.netns import Network

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "ip", "unshare")

# cred_expire: a requeued job waits this long before it may start (120 s unless set, 5 at least).
CONF = """\
ClusterName=lacuna
SlurmctldHost={host}({net}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
SlurmctldPort={port}
SlurmdPort=6818
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/slurmd-%n
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=20
SlurmdTimeout=300
MinJobAge=86400
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=1-0
PartitionName=spot Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=1-0
"""
NODE = """\
mount --bind {root}/hosts /etc/hosts && mount --bind {root}/resolv.conf /etc/resolv.conf &&
hostname {name} || exit 1
slurmd -D -N {name} -f {root}/slurm.conf & wait $!
"""


def missing() -> str | None:
    """Why a private SLURM cannot be had here; None where it can."""
    absent = [p for p in PROGRAMS if shutil.which(p, path=_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge iproute2)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class SlurmCluster:
    """`with SlurmCluster(folder) as slurm:` two nodes n1, n2, 4 cores and 2 pretended GPUs each.

    Partition `main` (default) takes nodes away from jobs in `spot`, which are requeued.
    """

    def __init__(self, root: Path, names: tuple[str, ...] = ("n1", "n2")) -> None:
        self.root, self.names = root, names
        self.network: Network | None = None
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "SLURM_CONF": f"{root}/slurm.conf", "PATH": _path()}

    def __enter__(self) -> SlurmCluster:
        try:
            self.network = Network()
            self.addresses = {name: self.network.add(name) for name in self.names}
            self._lay_out()
            self._start_munge()
            self._start("slurmctld", ["slurmctld", "-D", "-f", f"{self.root}/slurm.conf"])
            for name in self.names:
                self._start_node(name)
            idle = ["idle"] * 2 * len(self.names)  # each node in each partition
            self.wait(lambda: self.run("sinfo", "-hNo", "%T").split() == idle, "idle nodes")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *command: str) -> str:
        """Output of a SLURM command; empty where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout

    def state(self, job: str) -> str:
        """JobState as scontrol prints it, of the first line."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        return shown.partition("JobState=")[2].partition(" ")[0]

    def wait(self, condition, what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}\n{self._logs()}")
            time.sleep(0.1)

    def lose(self, name: str) -> None:
        """A node's power cut: every process of it is gone, and SLURM notices."""
        self._kill(name)
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")

    def restore(self, name: str) -> None:
        self._start_node(name)
        self.run("scontrol", "update", f"nodename={name}", "state=resume")

    def stop(self) -> None:
        for name in self.names:
            self._kill(name)
        for name in ("slurmctld", "munged"):
            if process := self.daemons.pop(name, None):
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                process.wait()
        if self.network:
            self.network.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _lay_out(self) -> None:
        for folder in ("munge", "log", "state"):
            (self.root / folder).mkdir(parents=True)
        # munged wants its key private and its socket's folder passable.
        (self.root / "munge").chmod(0o711)
        key = self.root / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        with socket.socket() as s:
            s.bind(("", 0))
            port = s.getsockname()[1]
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={address} CPUs=4 RealMemory=16000 Gres=gpu:2"
            for name, address in self.addresses.items()
        )
        net, host = self.network.prefix, socket.gethostname()
        conf = CONF.format(host=host, net=net, root=self.root, port=port, nodes=nodes)
        (self.root / "slurm.conf").write_text(conf)
        # Without a mounted hierarchy 22.05 dies of every other setting.
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        gres = "NodeName=n[1-9] Name=gpu File=/dev/null,/dev/zero Flags=nvidia_gpu_env\n"
        (self.root / "gres.conf").write_text(gres)
        hosts = [f"{address} {name}" for name, address in self.addresses.items()]
        (self.root / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        # Refuses at once: each reverse look-up that times out costs a torch process seconds.
        (self.root / "resolv.conf").write_text(
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
        )

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        self._start("munged", ["munged", "--foreground", "--force", f"--key-file={folder}/key",
            f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--log-file={folder}/log",
            f"--seed-file={folder}/seed"])  # fmt: skip
        self.wait((folder / "socket").exists, "munged", 20)

    def _start_node(self, name: str) -> None:
        node = NODE.format(root=self.root, name=name)
        self._start(name, [*self.network.enter(name), "bash", "-c", node])

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.root / "log" / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=die_with_parent)  # fmt: skip

    def _kill(self, name: str) -> None:
        if process := self.daemons.pop(name, None):
            process.kill()
            process.wait()

    def _logs(self) -> str:
        parts = [self.run("sinfo"), self.run("squeue")]
        for path in sorted((self.root / "log").glob("*")):
            parts.append(
                f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            )
        return "\n".join(parts)
