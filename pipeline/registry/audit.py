"""`promote NAME verify=true`: is the record of promotions whole, and every promoted file?"""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.registry import history as champions
from pipeline.registry import register as registry
from pipeline.tracking import client as server


def verify(name: str, root: str = "runs") -> dict[str, Any]:
    """Checks the record and every promoted file. Raises ValueError that names what is wrong."""
    uri = server.tracking_uri(root)
    client = server.connect(uri, make=False)
    with server.explained(uri):
        registry.find_version(client, f"models:/{name}")
        every = registry.versions(client, name)
        found = champions.faults(client.get_registered_model(name), every)
        promoted = [version for version in every if "gate.digest" in version.tags]
        for version in promoted:
            found += _damage(uri, version)
    if found:
        raise ValueError(f"{name}: {'; '.join(found)}")
    return {"name": name, "versions": len(promoted), "faults": []}


def _damage(uri: str, version: Any) -> list[str]:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            registry.download(uri, version.tags["lacuna.model_id"], "", Path(scratch))
        except (MlflowException, OSError):
            return [f"the files of version {version.version} are gone"]
        if registry.tree_digest(Path(scratch)) != version.tags["lacuna.tree_sha256"]:
            return [f"the files of version {version.version} were changed"]
    return []
