"""The promotion history of a registered model: an append-only log of versions.

A promotion creates one new version. Tags set at its creation name the champion that its gate
decision was made against (`gate.baseline`). Version numbers come from the database, so all readers
see one order. `fold` computes the champion: a version counts if its baseline was the champion when
its turn came. Of two promotions decided against the same champion, the later one does not count.
The alias `champion` only repeats the result of `fold`. Each version holds the hash of its
baseline's tags, so that changes to past entries are detected.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.registry import package
from pipeline.tracking import errors, model_versions

ALIAS = "champion"
HEAD = "gate.head"
SEALED = ("lacuna.", "gate.")  # prefixes of tags that a promotion writes once
UNSEALED = ("gate.digest", "gate.result")


class History(NamedTuple):
    """`line`: all champions in order. `stack`: those that rollbacks can return to."""

    line: list[Any]
    stack: list[Any]

    @property
    def champion(self) -> Any | None:
        return self.line[-1] if self.line else None


def fold(versions: list[Any]) -> History:
    """Fold all versions of one registered model, oldest first, into its history."""
    line: list[Any] = []
    stack: list[Any] = []
    champion = "0"
    for version in versions:
        tags = version.tags
        if tags.get("gate.baseline") != champion:
            continue
        line.append(version)
        champion = str(version.version)
        if tags["gate.kind"] == "rollback":
            while stack and content(stack[-1]) != tags["gate.content"]:
                stack.pop()
        else:
            stack.append(version)
    return History(line, stack)


def is_promotion(version: Any) -> bool:
    """Return whether a promotion or rollback created the version, not `register`."""
    return "gate.baseline" in version.tags


def content(version: Any) -> str:
    """Return the promotion whose files a version holds: its own, or the one rolled back to."""
    return version.tags.get("gate.content", str(version.version))


def target(name: str, history: History, version: int | None) -> Any:
    """Return the promotion that a rollback restores; ValueError if there is none."""
    if not history.line:
        raise ValueError(f"{name} has no champion: promote a version first")
    if version is not None:
        return promoted(name, history.line[:-1], version)
    if len(history.stack) < 2:
        raise ValueError(f"{name} has no earlier champion than {history.line[-1].version}")
    return history.stack[-2]


def promoted(name: str, among: list[Any], version: int) -> Any:
    """Return the version of that number among former champions; ValueError lists them."""
    champions = {int(each.version): each for each in among if is_promotion(each)}
    if version not in champions:
        known = ", ".join(map(str, champions)) or "none"
        raise ValueError(f"version {version} of {name} was never champion; choose from: {known}")
    return champions[version]


def settle(client: Any, name: str) -> History:
    """Set the alias to the champion of the history; safe for concurrent processes.

    Raises ValueError if a promoted version was deleted: the history would name an old champion.
    """
    while True:
        every = model_versions.versions(client, name)
        model = client.get_registered_model(name)
        if missing := deleted(model, every):
            raise ValueError(
                f"promoted version {missing[0]} of {name} was deleted: choose the version to "
                f"continue from with `rollback {name} version=N`"
            )
        history = fold(every)
        champion = history.champion
        if champion is None or str(model.aliases.get(ALIAS)) == str(champion.version):
            return history
        # Another process may have read an older state and set it last: check again after setting.
        client.set_registered_model_alias(name, ALIAS, str(champion.version))
        client.set_registered_model_tag(name, HEAD, str(champion.version))


def deleted(model: Any, versions: list[Any]) -> list[int]:
    """List the deleted versions that other promotions, or the model's tag, refer to."""
    named = {
        int(v.tags["gate.baseline"])
        for v in versions
        if is_promotion(v) and v.tags.get("gate.result") != "orphaned"
    }
    named |= {int(number) for number in model.tags.get(HEAD, "").split()[:1]}
    return sorted(named - {int(version.version) for version in versions} - {0})


def repair(client: Any, name: str, versions: list[Any], gone: list[int], target: Any) -> None:
    """Make `target` the champion that the log names after the deletion of `gone`."""
    for version in versions:
        if int(version.tags.get("gate.baseline", 0)) in gone:
            client.set_model_version_tag(name, str(version.version), "gate.result", "orphaned")
    client.set_registered_model_tag(name, HEAD, str(target.version))


def sealed(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of a new promotion with their hash."""
    return {**tags, "gate.digest": digest(tags)}


def digest(tags: dict[str, str]) -> str:
    held = {k: v for k, v in tags.items() if k.startswith(SEALED) and k not in UNSEALED}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def faults(model: Any, versions: list[Any]) -> list[str]:
    """List faults of the record: deleted or changed versions, an alias moved by hand."""
    lines = [f"promoted version {number} was deleted" for number in deleted(model, versions)]
    by_number = {str(version.version): version for version in versions}
    for version in filter(is_promotion, versions):
        if digest(version.tags) != version.tags["gate.digest"]:
            lines.append(f"the tags of version {version.version} were changed")
        baseline = by_number.get(version.tags["gate.baseline"])
        if baseline and baseline.tags.get("gate.digest") != version.tags["gate.previous"]:
            lines.append(
                f"version {baseline.version} changed after version {version.version} was decided "
                "against it"
            )
    champion = fold(versions).champion
    expected = str(champion.version) if champion else "nothing"
    if (alias := str(model.aliases.get(ALIAS, "nothing"))) != expected:
        lines.append(
            f"alias {ALIAS} names {alias}, the history {expected}: the next promote or rollback "
            "corrects it"
        )
    return lines


def verify(uri: str, client: Any, name: str) -> dict[str, Any]:
    """Check the history and every promoted file. Raises ValueError that lists the faults."""
    with errors.explained(uri):
        model_versions.find_version(client, f"models:/{name}")
        every = model_versions.versions(client, name)
        lines = faults(client.get_registered_model(name), every)
        promotions = [version for version in every if is_promotion(version)]
        lines += [fault for version in promotions if (fault := _damage(uri, version))]
    if lines:
        raise ValueError(f"{name}: {'; '.join(lines)}")
    return {"name": name, "versions": len(promotions), "faults": []}


def _damage(uri: str, version: Any) -> str:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as scratch:
        try:
            model_versions.download(uri, version.tags["lacuna.model_id"], "", Path(scratch))
        except (MlflowException, OSError):
            return f"the files of version {version.version} are missing"
        changed = package.tree_digest(Path(scratch)) != version.tags["lacuna.tree_sha256"]
    return f"the files of version {version.version} were changed" if changed else ""
