"""Manage accounts of the tracking server: trainers record runs, promoters change production.

    python jobs/deploy/server/accounts.py trainer  NAME experiment=NAME... model=NAME...
    python jobs/deploy/server/accounts.py promoter NAME model=NAME...

The server is `MLFLOW_TRACKING_URI`; the caller is an administrator (`MLFLOW_TRACKING_USERNAME`,
`MLFLOW_TRACKING_PASSWORD`); the new account's password is read from `ACCOUNT_PASSWORD`. Existing
accounts are kept, and grants renewed. All accounts may read everything (`default_permission`).

A trainer has EDIT on its experiments and on the registered models that hold candidates
(`inpaint-msanet`). A promoter has MANAGE on the model that production follows (`inpaint`, made by
`promote inpaint-msanet into=inpaint`) and on its experiment `registry/inpaint`, and reads the rest.
"""

import base64
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

PERMISSIONS = {"trainer": "EDIT", "promoter": "MANAGE"}


def main(arguments: list[str]) -> None:
    if len(arguments) < 2 or arguments[0] not in PERMISSIONS:
        raise SystemExit(__doc__)
    role, name, *resources = arguments
    account = {"username": name, "password": os.environ["ACCOUNT_PASSWORD"]}
    query = urllib.parse.urlencode({"username": name})
    if not ask("GET", f"2.0/mlflow/users/get?{query}", there="RESOURCE_DOES_NOT_EXIST"):
        ask("POST", "2.0/mlflow/users/create", account)
    for argument in resources:
        kind, _, resource = argument.partition("=")
        if kind not in ("experiment", "model") or not resource:
            raise SystemExit(f"{argument}: give experiment=NAME or model=NAME")
        grant(name, kind, resource, PERMISSIONS[role])
        if kind == "model" and role == "promoter":
            grant(name, "experiment", f"registry/{resource}", PERMISSIONS[role])


def grant(account: str, kind: str, resource: str, permission: str) -> None:
    """Grant the permission to `account`; create the experiment or model if it is missing."""
    if kind == "experiment":
        identity = experiment(resource)
    else:
        tags = [{"key": "lacuna.network", "value": network(resource)}]
        made = {"name": resource, "tags": tags}
        ask(
            "POST",
            "2.0/mlflow/registered-models/create",
            made,
            there="RESOURCE_ALREADY_EXISTS",
        )
        identity = resource
    which = {
        "username": account,
        "resource_type": {"experiment": "experiment", "model": "registered_model"}[kind],
        "resource_id": identity,
    }
    query = urllib.parse.urlencode(which)
    if ask("GET", f"3.0/mlflow/users/permissions/get?{query}").get("permission") != permission:
        ask("POST", "3.0/mlflow/users/permissions/revoke", which, there="RESOURCE_DOES_NOT_EXIST")
        ask("POST", "3.0/mlflow/users/permissions/grant", {**which, "permission": permission})
    print(f"{account}: {permission} on {kind} {resource}")


def network(model: str) -> str:
    """Return the network that a model accepts: of `inpaint-NETWORK` this one, else any."""
    return model.removeprefix("inpaint-") if model.startswith("inpaint-") else "any"


def experiment(name: str) -> str:
    made = ask(
        "POST",
        "2.0/mlflow/experiments/create",
        {"name": name},
        there="RESOURCE_ALREADY_EXISTS",
    )
    if made:
        return str(made["experiment_id"])
    query = urllib.parse.urlencode({"experiment_name": name})
    found = ask("GET", f"2.0/mlflow/experiments/get-by-name?{query}")
    return str(found["experiment"]["experiment_id"])


def ask(method: str, path: str, body: Any = None, there: str = "") -> dict[str, Any]:
    """Send a request; `{}` for the error code `there`. Other errors end the program in one line."""
    where = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
    user, password = (os.environ[f"MLFLOW_TRACKING_{key}"] for key in ("USERNAME", "PASSWORD"))
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(
        f"{where}/api/{path}",
        json.dumps(body).encode() if body is not None else None,
        {"Content-Type": "application/json", "Authorization": f"Basic {credentials}"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.loads(answer.read() or b"{}"))
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        if there and there in text:
            return {}
        # Not the text itself: for some errors it holds SQL with password hashes.
        raise SystemExit(f"{method} {path}: the server answered {error.code}") from None
    except urllib.error.URLError as error:
        raise SystemExit(f"{where} does not answer: {error.reason}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
