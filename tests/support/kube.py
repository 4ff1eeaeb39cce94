"""Controller and kubelet of the stand-in: Jobs become pods, pods become processes, each with
namespaces (network, PID, mount, UTS), a root and an arbitrary user id of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.support.kube_api import Object, Store, now, serve
from tests.support.netns import Network, contained

INDEX = "batch.kubernetes.io/job-completion-index"


def missing() -> str | None:
    """Why the stand-in cannot be had here; None where it can."""
    if shutil.which("kubectl") is None:
        return "kubectl is not on the PATH (1.31 or newer)"
    told = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True)
    if int(json.loads(told.stdout)["clientVersion"]["minor"].rstrip("+")) < 31:
        return "kubectl is older than 1.31"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2, for network namespaces"
    return None


class Kube:
    """A cluster whose KUBECONFIG is `config`; claims are folders, Secrets mappings, by name."""

    def __init__(self, root: Path, workdir: Path, claims: dict[str, Path], secrets: dict[str, dict],
                 jobsets: bool = True) -> None:  # fmt: skip
        self.root, self.workdir, self.claims, self.secrets = root, workdir, claims, secrets
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        self.deadlines: dict[str, float] = {}
        for folder in ("logs", "roots", "messages"):
            (root / folder).mkdir(parents=True)
        (root / "hosts").touch()
        self.store, self.config = Store(root, jobsets), root / "kubeconfig"
        for kind, names in (("Secret", secrets), ("PersistentVolumeClaim", claims)):
            for name in names:
                self.store.create(kind, {"metadata": {"name": name}})

    def __enter__(self) -> "Kube":
        self.network, self.server, self.stopped = Network(), serve(self.store), threading.Event()
        where = {"server": f"http://127.0.0.1:{self.server.server_address[1]}"}
        named = {"clusters": [{"name": "k", "cluster": where}], "current-context": "k",
                 "contexts": [{"name": "k", "context": {"cluster": "k"}}]}  # fmt: skip
        self.config.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **named}))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        for process in self.pods.values():
            if process.poll() is None:  # it would not take along a pod whose user has changed
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.server.shutdown()
        self.server.server_close()
        self.network.close()

    def evict(self, name: str) -> None:
        """What draining a node does to a pod: the condition, SIGTERM, the grace period."""
        with self.store.lock:
            pod = self.store.objects["Pod", name]
            pod["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True"})
            self._terminate(pod)

    def _run(self) -> None:
        while not self.stopped.wait(0.1):
            with self.store.lock:
                for job in self.store.of("Job"):
                    self._job(job)
                for pod in self.store.of("Pod"):
                    self._pod(pod)
                self._names()

    def _over(self, job: Object) -> bool:
        """Ended, or being deleted: then what it owns goes first."""
        if "deletionTimestamp" in job["metadata"]:
            for service in self.store.owned("Service", job):
                self.store.remove(service)
            for pod in self.store.owned("Pod", job):
                pod["metadata"]["deletionTimestamp"] = now()
            if not self.store.owned("Pod", job):
                self.store.remove(job)
        return "deletionTimestamp" in job["metadata"] or "conditions" in job["status"]

    def _job(self, job: Object) -> None:
        if self._over(job):
            return None
        spec, status, live = job["spec"], job["status"], {}
        done, failures = status.setdefault("_done", []), status.setdefault("_failures", {})
        for pod in self.store.owned("Pod", job):
            index, phase = int(pod["metadata"]["annotations"][INDEX]), pod["status"]["phase"]
            if phase in ("Pending", "Running"):
                live[index] = pod
            elif phase == "Succeeded" and index not in done:
                done.append(index)
            elif phase == "Failed" and not pod["status"].get("_counted"):
                pod["status"]["_counted"] = True
                action = _action(spec["podFailurePolicy"]["rules"], pod)
                if action == "FailJob":
                    return self._fail(job, "PodFailurePolicy")
                added = {"FailIndex": 10**9, "Ignore": 0, "Count": 1}[action]
                failures[index] = failures.get(index, 0) + added
        lost = [i for i, n in failures.items() if n > spec["backoffLimitPerIndex"]]
        if lost and "maxFailedIndexes" in spec:
            return self._fail(job, "MaxFailedIndexesExceeded")
        if len(done) + len(lost) == spec["completions"]:
            return self._fail(job, "FailedIndexes") if lost else _end(job, "Complete", "Done")
        for index in range(spec["completions"]):
            if index not in {*done, *lost, *live} and len(live) < spec["parallelism"]:
                live[index] = self._make(job, index)
        return None

    def _fail(self, job: Object, reason: str) -> None:
        for name in {p["metadata"]["name"] for p in self.store.owned("Pod", job)} & {*self.pods}:
            self._terminate(self.store.objects["Pod", name])
        _end(job, "Failed", reason)

    def _make(self, job: Object, index: int) -> Object:
        template, name = json.loads(json.dumps(job["spec"]["template"])), job["metadata"]["name"]
        labels = template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": name}
        owner = {"uid": job["metadata"]["uid"]}
        meta = {"name": f"{name}-{index}-{len(self.store.of('Pod')):05d}", "labels": labels,
                "annotations": {INDEX: str(index)}, "ownerReferences": [owner]}  # fmt: skip
        pod = self.store.create("Pod", {"metadata": meta, "spec": template["spec"]})
        pod["status"] |= {"phase": "Pending", "conditions": [], "_host": f"{name}-{index}"}
        return pod

    def _pod(self, pod: Object) -> None:
        name, status = pod["metadata"]["name"], pod["status"]
        container, process = pod["spec"]["containers"][0], self.pods.get(name)
        if "deletionTimestamp" in pod["metadata"]:
            if process is None or not self._terminate(pod):
                self.store.remove(pod)
        elif process is None:
            lacks = {s["secretRef"]["name"] for s in container.get("envFrom", [])} - {*self.secrets}
            if not lacks and "unpullable" not in container["image"]:
                return self._start(pod, container)
            why = "CreateContainerConfigError" if lacks else "ImagePullBackOff"
            told = f'secret "{lacks.pop()}" not found' if lacks else container["image"]
            state = {"waiting": {"reason": why, "message": told}}
            status["containerStatuses"] = [{"name": "main", "state": state}]
        elif status["phase"] == "Running":
            if name in self.deadlines:
                self._terminate(pod)
            if (code := process.poll()) is not None:
                text = (self.root / "messages" / name).read_text()
                text = text or "\n".join((self.root / "logs" / name).read_text().split("\n")[-5:])
                code = code if code >= 0 else 128 - code
                over = {"exitCode": code, "message": text, "finishedAt": now()}
                status["containerStatuses"] = [{"name": "main", "state": {"terminated": over}}]
                status["phase"] = "Failed" if code else "Succeeded"
        return None

    def _start(self, pod: Object, container: Object) -> None:
        name, host, machine = pod["metadata"]["name"], pod["status"]["_host"], f"p{len(self.pods)}"
        message = self.root / "messages" / name
        message.touch()
        message.chmod(0o666)
        index = pod["metadata"]["annotations"][INDEX]
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
                       "JOB_COMPLETION_INDEX": index}  # fmt: skip
        for source in container.get("envFrom", []):
            environment |= self.secrets[source["secretRef"]["name"]]
        for item in container["env"]:
            environment[item["name"]] = item.get("value", index).replace("$$(", "$(")
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        claims = {m["mountPath"]: self.claims[c["claimName"]] for m in container["volumeMounts"]
                  if (c := volumes[m["name"]].get("persistentVolumeClaim"))}  # fmt: skip
        binds = {"/etc/hosts": self.root / "hosts", "/dev/termination-log": message, **claims}
        command = [w.replace("$$(", "$(") for w in container["command"]]
        script = contained(self.root / "roots" / name, host, self.workdir, command, binds)
        pod["status"] |= {"_ip": self.network.add(machine), "phase": "Running"}
        pod["spec"]["nodeName"] = host
        with open(self.root / "logs" / name, "wb") as log:
            self.pods[name] = subprocess.Popen(
                [*self.network.enter(machine), "sh", "-c", script],
                env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True)  # fmt: skip

    def _terminate(self, pod: Object) -> bool:
        """Asks once; True while its process still lives."""
        name = pod["metadata"]["name"]
        process = self.pods[name]
        if process.poll() is None and name not in self.deadlines:
            grace = pod["spec"]["terminationGracePeriodSeconds"]
            self.deadlines[name] = time.monotonic() + grace
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            for child in children.split():  # without a handler a first process ignores SIGTERM
                os.kill(int(child), signal.SIGTERM)
        elif time.monotonic() > self.deadlines.get(name, 1e18) and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        return process.poll() is None

    def _names(self) -> None:
        """Headless Services as lines of /etc/hosts, rewritten in place under the pods' eyes."""
        headless = {s["metadata"]["name"] for s in self.store.of("Service")}
        lines = ["127.0.0.1 localhost"]
        for pod in self.store.of("Pod"):
            domain, status = pod["spec"].get("subdomain"), pod["status"]
            if status["phase"] == "Running":
                known = f" {status['_host']}.{domain}" if domain in headless else ""
                lines.append(f"{status['_ip']} {status['_host']}{known}")
        if "\n".join(lines) != (self.root / "hosts").read_text():
            (self.root / "hosts").write_text("\n".join(lines))


def _end(owner: Object, kind: str, reason: str) -> None:
    owner["status"]["conditions"] = [{"type": kind, "status": "True", "reason": reason}]


def _action(rules: list[Object], pod: Object) -> str:
    code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    had = {(c["type"], c["status"]) for c in pod["status"]["conditions"]}
    for rule in rules:
        wanted = {(c["type"], c["status"]) for c in rule.get("onPodConditions", [])}
        if had & wanted or code in rule.get("onExitCodes", {}).get("values", []):
            return rule["action"]
    return "Count"
