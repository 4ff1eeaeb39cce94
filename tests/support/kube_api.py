"""A stand-in for a Kubernetes API server: enough HTTP for real kubectl to create, get, list by
label, follow logs and delete. Objects are judged by the published schemas, strictly.

It proves our processes, not Kubernetes: no scheduler, no limits, no controller but one for Jobs.
"""

import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate

Object = dict[str, Any]
VERSION = "1.34"
JOBSET = "jobset.x-k8s.io/v1alpha2"
KINDS = {
    "v1": {"pods": "Pod", "services": "Service", "secrets": "Secret",
           "persistentvolumeclaims": "PersistentVolumeClaim"},
    "batch/v1": {"jobs": "Job"},
    JOBSET: {"jobsets": "JobSet"},
}  # fmt: skip


class Store:
    """The objects of one namespace, by kind and name; every change holds the lock."""

    def __init__(self, root: Path, jobsets: bool) -> None:
        self.root, self.lock, self.quota = root, threading.RLock(), ""  # quota: a kind used up
        self.objects: dict[tuple[str, str], Object] = {}
        self.apis = [api for api in KINDS if jobsets or api != JOBSET]

    def create(self, kind: str, made: Object) -> Object:
        with self.lock:
            made["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": "default"}
            kept = {"apiVersion": "v1", "kind": kind, "status": {}, **made}
            return self.objects.setdefault((kind, made["metadata"]["name"]), kept)

    def of(self, kind: str, selector: str = "") -> list[Object]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        with self.lock:
            found = [o for (k, _), o in sorted(self.objects.items()) if k == kind]
        return [o for o in found if wanted.items() <= o["metadata"].get("labels", {}).items()]

    def owned(self, kind: str, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [o for o in self.of(kind)
                if uid in [r["uid"] for r in o["metadata"].get("ownerReferences", [])]]  # fmt: skip

    def remove(self, gone: Object) -> None:
        self.objects.pop((gone["kind"], gone["metadata"]["name"]))


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def serve(store: Store) -> ThreadingHTTPServer:
    """Starts the server on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Api,), {"store": store}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class Api(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        place, query, api, rest = self._place()
        if place in (["api"], ["apis"]) or place[:2] == ["openapi", "v3"]:
            return self._send(self._described(place))
        if api not in self.store.apis or (rest and len(rest) < 3):
            return self._fail(404, "NotFound", "the server could not find the requested resource")
        if not rest:
            listed = [{"name": p, "kind": k, "namespaced": True, "verbs": ["create", "get", "list"]}
                      for p, k in KINDS[api].items()]  # fmt: skip
            return self._send({"kind": "APIResourceList", "groupVersion": api, "resources": listed})
        kind = KINDS[api][rest[2]]
        if len(rest) == 3:
            items = self.store.of(kind, query.get("labelSelector", [""])[0])
            return self._send({"kind": f"{kind}List", "apiVersion": api, "items": items})
        if (kind, rest[3]) not in self.store.objects:
            return self._fail(404, "NotFound", f'{rest[2]} "{rest[3]}" not found')
        found = self.store.objects[kind, rest[3]]
        return self._log(found, "follow" in query) if rest[4:] == ["log"] else self._send(found)

    def do_POST(self) -> None:
        _, query, _, rest = self._place()
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind, name = made["kind"], made["metadata"]["name"]
        if rest[1] == "closed":
            return self._fail(403, "Forbidden", f'{rest[2]} is forbidden: User "u" cannot make it')
        try:
            for each in made["spec"].get("replicatedJobs", [{"template": made}]):
                whole = {"apiVersion": "batch/v1", "kind": "Job", **each["template"]}
                kubernetes_validate.validate(whole, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return self._fail(422, "Invalid", f'{kind} "{name}" is invalid: {error.message}')
        if kind == self.store.quota and "dryRun" not in query:
            return self._fail(403, "Forbidden", f'{rest[2]} "{name}" is forbidden: exceeded quota')
        if (kind, name) in self.store.objects:
            return self._fail(409, "AlreadyExists", f'{rest[2]} "{name}" already exists')
        return self._send(made if "dryRun" in query else self.store.create(kind, made), 201)

    def do_DELETE(self) -> None:
        _, _, api, rest = self._place()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = self.store.objects[KINDS[api][rest[2]], rest[3]]
        found["metadata"]["deletionTimestamp"] = now()
        return self._send(found)

    def _place(self) -> tuple[list[str], dict[str, list[str]], str, list[str]]:
        url = urlparse(self.path)
        place = url.path.strip("/").split("/")
        api, rest = ("v1", place[2:]) if place[0] == "api" else ("/".join(place[1:3]), place[3:])
        return place, parse_qs(url.query), api, rest

    def _described(self, place: list[str]) -> Object:
        groups = [a for a in self.store.apis if "/" in a]
        if place == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if place == ["apis"]:
            named = [(a, {"groupVersion": a, "version": a.partition("/")[2]}) for a in groups]
            listed = [{"name": a.partition("/")[0], "versions": [v], "preferredVersion": v}
                      for a, v in named]  # fmt: skip
            return {"kind": "APIGroupList", "groups": listed}
        if place == ["openapi", "v3"]:
            urls = ["api/v1", *(f"apis/{a}" for a in groups)]
            return {"paths": {u: {"serverRelativeURL": f"/openapi/v3/{u}"} for u in urls}}
        # kubectl looks here only for whether the server judges unknown fields itself: it does.
        api = "/".join(place[3:])
        group, _, version = api.rpartition("/")
        return {"openapi": "3.0.0", "paths": {f"/{'/'.join(place[2:])}/{plural}": {"patch": {
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            "parameters": [{"name": "fieldValidation", "in": "query"}]}}
            for plural, kind in KINDS[api].items()}}  # fmt: skip

    def _log(self, pod: Object, follow: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        path, over = self.store.root / "logs" / pod["metadata"]["name"], False
        with open(path if path.exists() else "/dev/null", "rb") as file:
            while not over:
                over = not follow or pod["status"].get("phase") != "Running"  # before the last read
                if data := file.read():
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                time.sleep(0.05)
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, answer: Object, status: int = 200) -> None:
        with self.store.lock:
            data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, code: int, reason: str, message: str) -> None:
        self._send({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                    "reason": reason, "message": message}, code)  # fmt: skip
