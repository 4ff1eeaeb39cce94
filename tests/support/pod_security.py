"""The published table of the `restricted` Pod Security Standard, Kubernetes 1.34, for Linux.

https://kubernetes.io/docs/concepts/security/pod-security-standards. `pod_security.json` says how
each fixture of upstream's own tests (kubernetes/pod-security-admission, Apache-2.0,
test/testdata/restricted/v1.34) differs from their valid pod, by path; null takes a field away.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Object = dict[str, Any]
ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral",
                   "persistentVolumeClaim", "projected", "secret"}  # fmt: skip
ALLOWED_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
ALLOWED_SELINUX = {
    None,
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
}
SECCOMP = {"RuntimeDefault", "Localhost"}
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def cases() -> Object:
    """Return upstream's fixtures, `pass NAME` and `fail NAME`, as pods."""
    read = json.loads(Path(__file__).with_suffix(".json").read_text())
    return {name: _changed(changes) for name, changes in read.items()}


def violations(pod: Object) -> list[str]:
    """Return what of a pod, or of a template of pods, the standard does not allow."""
    spec, found = pod["spec"], []
    whole = spec.get("securityContext") or {}
    containers = [c for kind in ("initContainers", "containers", "ephemeralContainers")
                  for c in spec.get(kind, [])]  # fmt: skip
    contexts = [c.get("securityContext") or {} for c in containers]
    found += [k for k in ("hostNetwork", "hostPID", "hostIPC") if spec.get(k)]
    for volume in spec.get("volumes", []):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} - ALLOWED_VOLUMES]
    for key, profile in (pod.get("metadata", {}).get("annotations") or {}).items():
        if key.startswith(APPARMOR) and not profile.startswith(("runtime/default", "localhost/")):
            found.append("apparmor annotation")
    found += [s["name"] for s in whole.get("sysctls", []) if s["name"] not in ALLOWED_SYSCTLS]
    for container, context in zip(containers, contexts):
        found += list(_of_container(container, context))
    for context in (whole, *contexts):
        found += list(_of_any(context))
    for key, good in (("runAsNonRoot", lambda v: v is True),
                      ("seccompProfile", lambda v: v and v.get("type") in SECCOMP)):  # fmt: skip
        own = [context.get(key, whole.get(key)) for context in contexts]
        found += [f"{key} is not set everywhere"] * (not all(map(good, own)))
    return found


def _of_container(container: Object, context: Object) -> Iterator[str]:
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities are not dropped"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    hooks = [container.get(f"{kind}Probe") for kind in ("liveness", "readiness", "startup")]
    hooks += (container.get("lifecycle") or {}).values()
    for hook in filter(None, hooks):
        if any((hook.get(action) or {}).get("host") for action in ("httpGet", "tcpSocket")):
            yield "host of a probe"


def _of_any(context: Object) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot"
    if (context.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield "seccompProfile"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
        yield "appArmorProfile"
    labels = context.get("seLinuxOptions") or {}
    if labels.get("type") not in ALLOWED_SELINUX or labels.get("user") or labels.get("role"):
        yield "seLinuxOptions"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"


def _changed(changes: Object) -> Object:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    whole = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec: Object = {"securityContext": whole}
    for kind in ("containers", "initContainers"):
        spec[kind] = [{"name": kind, "image": "pause", "securityContext": copy.deepcopy(context)}]
    pod: Object = {"metadata": {}, "spec": spec}
    for path, value in changes.items():
        *above, last = path.split(".")
        place: Any = pod
        for name, following in zip(above, above[1:] + [last]):
            if isinstance(place, list):
                place.extend({} for _ in range(int(name) + 1 - len(place)))
                place = place[int(name)]
            else:
                place = place.setdefault(name, [] if following.isdigit() else {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return pod
