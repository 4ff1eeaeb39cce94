"""A stand-in for a Kubernetes control plane: enough HTTP for real kubectl, with objects judged by
the published schemas, strictly; and the controllers of Jobs and JobSets, as batch/v1 and
jobset.x-k8s.io/v1alpha2 document what our manifests use.

It proves our processes, not Kubernetes: no scheduler, no limits.
"""

import copy
import json
import logging
import math
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Request, Response

Object = dict[str, Any]
VERSION = "1.34"
ROLE = Path(__file__).resolve().parents[2] / "jobs" / "deploy" / "submit.yaml"
KINDS = {
    "pods": ("", "v1", "Pod"),
    "services": ("", "v1", "Service"),
    "secrets": ("", "v1", "Secret"),
    "persistentvolumeclaims": ("", "v1", "PersistentVolumeClaim"),
    "jobs": ("batch", "v1", "Job"),
    "jobsets": ("jobset.x-k8s.io", "v1alpha2", "JobSet"),
}
DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
INDEX = "batch.kubernetes.io/job-completion-index"
SET = "jobset.sigs.k8s.io/jobset-name"
PART = "jobset.sigs.k8s.io/replicatedjob-name"
ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"


class Store:
    """The objects of one namespace, by kind and name, and their server. Changes hold the lock."""

    def __init__(self, root: Path, jobsets: bool) -> None:
        self.root, self.lock, self.quota = root, threading.RLock(), ""  # quota: a kind used up
        self.objects: dict[tuple[str, str], Object] = {}
        self.kinds = {p: named for p, named in KINDS.items() if jobsets or p != "jobsets"}
        rules = next(yaml.safe_load_all(ROLE.read_text()))["rules"]
        self.permitted = {(verb, plural) for rule in rules for plural in rule["resources"]
                          for verb in rule["verbs"]}  # fmt: skip

    def create(self, kind: str, made: Object, owner: Object | None = None) -> Object:
        """The object; the one of that kind and name where there is one already."""
        made["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": "default"}
        if owner:
            made["metadata"]["ownerReferences"] = [{"uid": owner["metadata"]["uid"]}]
        kept = {"apiVersion": "v1", "kind": kind, "status": {}, **made}
        return self.objects.setdefault((kind, made["metadata"]["name"]), kept)

    def of(self, kind: str, selector: str = "") -> list[Object]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part).items()
        with self.lock:
            found = [o for (k, _), o in sorted(self.objects.items()) if k == kind]
        return [o for o in found if wanted <= o["metadata"].get("labels", {}).items()]

    def owned(self, owner: Object, *kinds: str) -> list[Object]:
        uid, found = owner["metadata"]["uid"], [o for kind in kinds for o in self.of(kind)]
        return [o for o in found
                if uid in [r["uid"] for r in o["metadata"].get("ownerReferences", [])]]  # fmt: skip

    def serve(self) -> BaseWSGIServer:
        """Starts the server on a free port."""
        logging.getLogger("werkzeug").setLevel("ERROR")
        server = make_server("127.0.0.1", 0, Request.application(self._respond), threaded=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def _respond(self, request: Request) -> Response:
        words = request.path.strip("/").split("/")
        if (asked := _asked(request.method, words)) and asked not in self.permitted:
            content, code = _failed(403, "Forbidden", f"{asked[1]} is forbidden: {asked[0]}")
            return Response(json.dumps(content), code, content_type="application/json")
        if words[-1] == "log":
            return Response(self._log(words[-2], "follow" in request.args))
        with self.lock:
            answer, code = self._answer(request, words)
            content = DISCOVERY if "openapi" in answer else "application/json"
            return Response(json.dumps(answer), code, content_type=content)

    def _answer(self, request: Request, words: list[str]) -> tuple[Object, int]:
        match [request.method, *words]:
            case ["GET", "api" | "apis" as root] | ["GET", "openapi" as root, "v3"]:
                return self._described(root), 200
            case ["GET", *_, "namespaces", _, plural]:
                items = self.of(self.kinds[plural][-1], request.args.get("labelSelector", ""))
                return {"kind": "List", "apiVersion": "v1", "items": items}, 200
            case ["POST", *_, space, plural]:
                return self._created(request.get_json(), space, plural, "dryRun" in request.args)
            case [verb, *_, "namespaces", _, plural, name]:
                if found := self.objects.get((self.kinds[plural][-1], name)):
                    if verb == "DELETE":
                        delete(found)
                    return found, 200
        return _failed(404, "NotFound", f"{' '.join(words[-2:])} not found")

    def _created(self, made: Object, space: str, plural: str, dry: bool) -> tuple[Object, int]:
        kind, name = made["kind"], made["metadata"]["name"]
        full = "exceeded quota" if kind == self.quota and not dry else ""
        if space == "closed" or full:
            return _failed(403, "Forbidden", f"{plural} is forbidden: {full or 'for user u'}")
        try:
            for each in made["spec"].get("replicatedJobs", [{"template": made}]):
                whole = {"apiVersion": "batch/v1", "kind": "Job", **each["template"]}
                kubernetes_validate.validate(whole, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return _failed(422, "Invalid", f'{kind} "{name}" is invalid: {error.message}')
        if (kind, name) in self.objects:
            return _failed(409, "AlreadyExists", f'{plural} "{name}" already exists')
        return made if dry else self.create(kind, made), 201

    def _described(self, root: str) -> Object:
        """What kubectl asks first: which kinds there are, and that their fields are judged here."""
        groups: dict[str, list[Object]] = {}
        paths: Object = {}
        for plural, (group, version, kind) in self.kinds.items():
            place = f"apis/{group}/{version}" if group else f"api/{version}"
            named = {"group": group, "version": version, "kind": kind}
            verbs = ["create", "delete", "get", "list"]
            resource = {"resource": plural, "singularResource": kind.lower(), "verbs": verbs}
            if place.startswith(f"{root}/"):
                groups.setdefault(group, [{"version": version, "resources": []}])
                resource |= {"scope": "Namespaced", "responseKind": named}
                groups[group][0]["resources"].append(resource)
            judged = [{"name": "fieldValidation", "in": "query"}]
            patch = {"parameters": judged, "x-kubernetes-group-version-kind": named}
            paths |= {place: {"serverRelativeURL": "/openapi/v3"}, f"/{plural}": {"patch": patch}}
        items = [{"metadata": {"name": group}, "versions": each} for group, each in groups.items()]
        said = {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2"}
        return {**said, "items": items, "openapi": "3.0.0", "paths": paths}

    def _log(self, pod: str, follow: bool) -> Iterator[bytes]:
        status = self.objects["Pod", pod]["status"]
        with open(self.root / "logs" / pod, "rb") as file:
            while follow and status["phase"] == "Running":
                yield file.read()
                time.sleep(0.05)
            yield file.read()


class Controllers:
    """JobSets become Jobs and Jobs become pods; what is deleted goes after what it owns."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def reconcile(self) -> None:
        for kind, control in (("JobSet", self._jobset), ("Job", self._job)):
            for owner in self.store.of(kind):
                ended, ttl = _ended(owner), owner["spec"].get("ttlSecondsAfterFinished", math.inf)
                if ended and time.monotonic() > ended["_at"] + ttl:
                    delete(owner)
                if not ended and "deletionTimestamp" not in owner["metadata"]:
                    control(owner)
        for key, gone in [*self.store.objects.items()]:
            if "deletionTimestamp" in gone["metadata"] and gone["kind"] != "Pod":
                for each in (owned := self.store.owned(gone, "Job", "Service", "Pod")):
                    delete(each)
                if not owned:
                    self.store.objects.pop(key)

    def _jobset(self, jobset: Object) -> None:
        spec, status, name = jobset["spec"], jobset["status"], jobset["metadata"]["name"]
        attempt, jobs = str(status.setdefault("restarts", 0)), self.store.owned(jobset, "Job")
        for job in jobs:
            if job["metadata"]["labels"][ATTEMPT] != attempt:
                delete(job)
        mine = [j for j in jobs if j["metadata"]["labels"][ATTEMPT] == attempt]
        ended = Counter((j["metadata"]["labels"][PART], _ended(j).get("type")) for j in mine)
        parts = {part["name"]: part["replicas"] for part in spec["replicatedJobs"]}
        status["replicatedJobsStatus"] = [
            {"name": p, "succeeded": ended[p, "Complete"], "failed": ended[p, "Failed"]}
            for p in parts
        ]
        complete = {p for p, replicas in parts.items() if ended[p, "Complete"] == replicas}
        if any(how == "Failed" for _, how in ended):
            self._recover(jobset, {_ended(j).get("reason") for j in mine})
        elif complete == parts.keys():
            self._end(jobset, "Completed", "AllJobsCompleted")
        else:
            service = {"clusterIP": "None", "selector": {SET: name}}
            self.store.create("Service", {"metadata": {"name": name}, "spec": service}, jobset)
            for part in spec["replicatedJobs"]:
                if complete >= {d["name"] for d in part.get("dependsOn", [])}:
                    for number in range(part["replicas"]):
                        self._child(jobset, part, number)

    def _recover(self, jobset: Object, reasons: set[str]) -> None:
        """The failure policy: what a rule says, else all starts again as often as is allowed."""
        policy = jobset["spec"]["failurePolicy"]
        rules = [r["action"] for r in policy["rules"] if reasons & {*r["onJobFailureReasons"]}]
        if rules[:1] == ["FailJobSet"]:
            self._end(jobset, "Failed", "FailJobSetFailurePolicyAction")
        elif jobset["status"]["restarts"] >= policy["maxRestarts"]:
            self._end(jobset, "Failed", "ReachedMaxRestarts")
        else:
            jobset["status"]["restarts"] += 1

    def _child(self, jobset: Object, part: Object, number: int) -> None:
        """Not before the one of that name is gone which belonged to the attempt before."""
        name, job = jobset["metadata"]["name"], copy.deepcopy(part["template"])
        marks = {SET: name, PART: part["name"], ATTEMPT: str(jobset["status"]["restarts"])}
        job["metadata"] = {"name": f"{name}-{part['name']}-{number}", "labels": marks}
        job["spec"]["template"]["metadata"]["labels"] |= marks
        job["spec"]["template"]["spec"]["subdomain"] = name
        self.store.create("Job", job, jobset)

    def _job(self, job: Object) -> None:
        spec, by_phase = job["spec"], defaultdict(list)
        for pod in self.store.owned(job, "Pod"):
            by_phase[pod["status"]["phase"]].append((pod["metadata"]["annotations"][INDEX], pod))
        live = {index for index, _ in by_phase["Pending"] + by_phase["Running"]}
        done = {index for index, _ in by_phase["Succeeded"]}
        rules = spec["podFailurePolicy"]["rules"]
        failed = [(index, _action(rules, pod)) for index, pod in by_phase["Failed"]]
        counted = Counter(index for index, action in failed if action == "Count")
        lost = {index for index, action in failed if action == "FailIndex"}
        lost |= {i for i, n in counted.items() if n > spec.get("backoffLimitPerIndex", math.inf)}
        job["status"] |= {"completedIndexes": ",".join(done), "failedIndexes": ",".join(lost)}
        free = [i for i in map(str, range(spec["completions"])) if i not in done | lost | live]
        if "FailJob" in [action for _, action in failed]:
            self._end(job, "Failed", "PodFailurePolicy")
        elif counted.total() > spec.get("backoffLimit", math.inf):
            self._end(job, "Failed", "BackoffLimitExceeded")
        elif len(lost) > spec.get("maxFailedIndexes", math.inf):
            self._end(job, "Failed", "MaxFailedIndexesExceeded")
        elif not live and not free:
            self._end(job, "Failed" if lost else "Complete", "FailedIndexes" if lost else "Done")
        else:
            for index in free[: spec["parallelism"] - len(live)]:
                self._pod(job, index)

    def _pod(self, job: Object, index: str) -> None:
        pod, name = copy.deepcopy(job["spec"]["template"]), job["metadata"]["name"]
        pod["metadata"]["name"] = f"{name}-{index}-{uuid.uuid4().hex[:5]}"
        pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] = name
        pod["metadata"].setdefault("annotations", {})[INDEX] = index
        pod["spec"]["hostname"] = f"{name}-{index}"
        pod["status"] = {"phase": "Pending", "conditions": []}
        self.store.create("Pod", pod, job)

    def _end(self, owner: Object, kind: str, reason: str) -> None:
        """Its last condition; what it owns and still runs is deleted."""
        last = {"type": kind, "status": "True", "reason": reason, "_at": time.monotonic()}
        owner["status"]["conditions"] = [last]
        for child in self.store.owned(owner, "Job", "Pod"):
            if not _ended(child) and child["status"].get("phase") not in ("Failed", "Succeeded"):
                delete(child)


def delete(gone: Object) -> None:
    gone["metadata"].setdefault("deletionTimestamp", now())


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _asked(method: str, words: list[str]) -> tuple[str, str] | None:
    """The verb and resource that a Role must permit; None of what every user may ask."""
    if "namespaces" not in words:
        return None
    _, plural, *name = words[words.index("namespaces") + 1 :]
    verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
    return verb, "/".join([plural, *name[1:]])


def _failed(code: int, reason: str, message: str) -> tuple[Object, int]:
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**said, "code": code, "reason": reason, "message": message}, code


def _ended(owner: Object) -> Object:
    """The condition with which a Job or JobSet ended; empty while it goes on."""
    return next(iter(owner["status"].get("conditions", [])), {})


def _action(rules: list[Object], pod: Object) -> str:
    code = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    had = {(c["type"], c["status"]) for c in pod["status"]["conditions"]}
    for rule in rules:
        wanted = {(c["type"], c["status"]) for c in rule.get("onPodConditions", [])}
        if had & wanted or code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return "Count"
