"""The history of a production model: an append-only log of versions, and what follows from it.

A promotion is one new version that says, in tags set as it is created, which champion its gate was
decided against (`gate.baseline`). Numbers come from the database, so all readers see one order, and
`fold` gives the champion: a version counts if its baseline was the champion when its turn came. Of
two that were decided against the same champion, the later one does not count. The alias `champion`
only repeats what `fold` says. Each version holds the hash of its baseline's tags, so that a change
of the past shows.
"""

import hashlib
import json
from typing import Any, NamedTuple

ALIAS = "champion"
HEAD = "gate.head"
UNSEALED = ("gate.digest", "gate.result")


class History(NamedTuple):
    """`line`: every champion in order. `stack`: those that a rollback can go back through."""

    line: list[Any]
    stack: list[Any]

    @property
    def champion(self) -> Any | None:
        return self.line[-1] if self.line else None


def fold(versions: list[Any]) -> History:
    """`versions`: all of one registered model, oldest first."""
    line: list[Any] = []
    stack: list[Any] = []
    for version in versions:
        tags = version.tags
        if "gate.baseline" not in tags or int(tags["gate.baseline"]) != number(line):
            continue
        line.append(version)
        if tags["gate.kind"] == "rollback":
            while stack and content(stack[-1]) != tags["gate.content"]:
                stack.pop()
        else:
            stack.append(version)
    return History(line, stack)


def number(line: list[Any]) -> int:
    """The champion's version number; 0 before the first."""
    return int(line[-1].version) if line else 0


def content(version: Any) -> str:
    """The promotion whose bytes a version holds: its own, or the one rolled back to."""
    return version.tags.get("gate.content", str(version.version))


def append(client: Any, name: str, source: Any, tags: dict[str, str], baseline: Any | None) -> Any:
    """Creates the version that claims to follow `baseline`; returns it. `settle` tells if it does.

    source: (logged model id, run id or None, description).
    """
    model_id, run_id, description = source
    tags = {
        **tags,
        "gate.baseline": str(baseline.version if baseline else 0),
        "gate.previous": baseline.tags["gate.digest"] if baseline else "",
    }
    tags["gate.digest"] = digest(tags)
    return client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags=tags,
        description=description,
        model_id=model_id,
    )


def settle(client: Any, name: str) -> History:
    """Makes the alias say what the history says; by any number of processes at once."""
    from pipeline.registry import versions

    while True:
        history = fold(versions(client, name))
        champion = history.champion
        aliases = client.get_registered_model(name).aliases
        if champion is None or str(aliases.get(ALIAS)) == str(champion.version):
            return history
        client.set_registered_model_alias(name, ALIAS, str(champion.version))
        head = f"{champion.version} {champion.tags['gate.digest']}"
        client.set_registered_model_tag(name, HEAD, head)


def faults(client: Any, name: str, versions: list[Any]) -> list[str]:
    """What is wrong with the record: deleted or changed versions, an alias moved by hand."""
    found: list[str] = []
    there = {int(version.version): version for version in versions}
    history = fold(versions)
    model = client.get_registered_model(name)
    gone = set(range(1, max(there, default=0) + 1)) - set(there)
    head = model.tags.get(HEAD, "").split()
    if head and int(head[0]) not in there:
        gone.add(int(head[0]))
    found += [f"version {missing} was deleted" for missing in sorted(gone)]
    for version in versions:
        tags = version.tags
        if "gate.digest" not in tags:
            continue
        if digest(tags) != tags["gate.digest"]:
            found.append(f"the tags of version {version.version} were changed")
        baseline = there.get(int(tags["gate.baseline"]))
        if baseline is not None and baseline.tags.get("gate.digest") != tags["gate.previous"]:
            found.append(
                f"version {version.version} was decided against another {baseline.version}"
            )
        counts = any(version.version == v.version for v in history.line)
        if not counts and tags.get("gate.result") != "superseded" and not gone:
            found.append(f"version {version.version} is in no line of champions")
    alias = model.aliases.get(ALIAS)
    champion = str(history.champion.version) if history.champion else None
    if (str(alias) if alias else None) != champion:
        found.append(f"alias {ALIAS} says {alias}, the history {champion}")
    return found


def digest(tags: dict[str, str]) -> str:
    sealed = {k: v for k, v in tags.items() if k not in UNSEALED}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
