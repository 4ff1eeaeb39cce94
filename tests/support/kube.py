"""Kubelet of the stand-in: pods become processes, each with namespaces (network, PID, mount, UTS),
a root and an arbitrary user id of its own."""

import json
import sys
import threading
from pathlib import Path

from tests.support.kube_api import INDEX, Controllers, Object, Store, now
from tests.support.netns import Container, Network, contained


class Kube:
    """A cluster whose KUBECONFIG is `config`; claims are folders, Secrets mappings, by name."""

    def __init__(self, root: Path, workdir: Path, claims: dict[str, Path], secrets: dict[str, dict],
                 jobsets: bool = True) -> None:  # fmt: skip
        self.root, self.workdir, self.claims, self.secrets = root, workdir, claims, secrets
        self.containers: dict[str, Container] = {}
        for folder in ("logs", "roots", "messages"):
            (root / folder).mkdir(parents=True)
        (root / "hosts").touch()
        self.store, self.config = Store(root, jobsets), root / "kubeconfig"
        for kind, names in (("Secret", secrets), ("PersistentVolumeClaim", claims)):
            for name in names:
                self.store.create(kind, {"metadata": {"name": name}})

    def __enter__(self) -> "Kube":
        self.network, self.server, self.stopped = Network(), self.store.serve(), threading.Event()
        where = {"server": f"http://127.0.0.1:{self.server.server_port}"}
        named = {"clusters": [{"name": "k", "cluster": where}], "current-context": "k",
                 "contexts": [{"name": "k", "context": {"cluster": "k"}}]}  # fmt: skip
        self.config.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **named}))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        for container in self.containers.values():
            container.kill()
        self.server.shutdown()
        self.network.close()

    def evict(self, name: str) -> None:
        """What draining a node does to a pod: the condition, SIGTERM, the grace period."""
        with self.store.lock:
            pod = self.store.objects["Pod", name]
            pod["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True"})

    def _run(self) -> None:
        while not self.stopped.wait(0.1):
            with self.store.lock:
                Controllers(self.store).reconcile()
                for pod in self.store.of("Pod"):
                    self._pod(pod)
                self._names()

    def _pod(self, pod: Object) -> None:
        name, leaving = pod["metadata"]["name"], "deletionTimestamp" in pod["metadata"]
        container = self.containers.get(name)
        if container and container.code is None:
            if leaving or pod["status"]["conditions"]:
                container.stop(pod["spec"]["terminationGracePeriodSeconds"])
        elif container and pod["status"]["phase"] == "Running":
            said = [(self.root / folder / name).read_text() for folder in ("messages", "logs")]
            text = said[0] or said[1][-2048:]
            _state(pod, "terminated", exitCode=container.code, message=text, finishedAt=now())
            pod["status"]["phase"] = "Failed" if container.code else "Succeeded"
        elif leaving:
            self.store.objects.pop(("Pod", name))
        elif container is None:
            self._start(pod, pod["spec"]["containers"][0])

    def _start(self, pod: Object, spec: Object) -> None:
        spec = json.loads(json.dumps(spec).replace("$$(", "$("))
        secrets = [s["secretRef"]["name"] for s in spec.get("envFrom", [])]
        if lacks := [f'secret "{s}" not found' for s in secrets if s not in self.secrets]:
            return _state(pod, "waiting", reason="CreateContainerConfigError", message=lacks[0])
        if "unpullable" in spec["image"]:
            return _state(pod, "waiting", reason="ImagePullBackOff", message=spec["image"])
        name, host = pod["metadata"]["name"], pod["spec"]["hostname"]
        machine, message = f"p{len(self.containers)}", self.root / "messages" / name
        message.touch()
        message.chmod(0o666)
        index = pod["metadata"]["annotations"][INDEX]
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": path, "JOB_COMPLETION_INDEX": index}
        for secret in secrets:
            environment |= self.secrets[secret]
        environment |= {e["name"]: e.get("value", index) for e in spec["env"]}
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        claims = {m["mountPath"]: self.claims[c["claimName"]] for m in spec["volumeMounts"]
                  if (c := volumes[m["name"]].get("persistentVolumeClaim"))}  # fmt: skip
        binds = {"/etc/hosts": self.root / "hosts", "/dev/termination-log": message, **claims}
        folder, log = (self.root / kind / name for kind in ("roots", "logs"))
        sealed = spec["securityContext"]["readOnlyRootFilesystem"]
        script = contained(folder, host, self.workdir, spec["command"], binds, read_only=sealed)
        pod["status"] |= {"podIP": self.network.add(machine), "phase": "Running"}
        pod["spec"]["nodeName"] = host
        command = [*self.network.enter(machine), "sh", "-c", script]
        self.containers[name] = Container(command, environment, log)
        return None

    def _names(self) -> None:
        """Headless Services as lines of /etc/hosts, rewritten in place under the pods' eyes."""
        lines = ["127.0.0.1 localhost"]
        services = {s["metadata"]["name"]: s["spec"]["selector"] for s in self.store.of("Service")}
        for pod in self.store.of("Pod"):
            host, domain = pod["spec"]["hostname"], pod["spec"].get("subdomain")
            if pod["status"]["phase"] == "Running":
                selector = services.get(domain, {"": ""}).items()
                known = f" {host}.{domain}" * (selector <= pod["metadata"]["labels"].items())
                lines.append(f"{pod['status']['podIP']} {host}{known}")
        if "\n".join(lines) != (self.root / "hosts").read_text():
            (self.root / "hosts").write_text("\n".join(lines))


def _state(pod: Object, kind: str, **message: object) -> None:
    pod["status"]["containerStatuses"] = [{"name": "main", "state": {kind: message}}]
