"""What a command asks for of a site's nodes: no more than it uses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs.spec import Cluster
from pipeline.common.errors import ConfigError
from pipeline.config.commands import AS_JOBS, COMMANDS
from pipeline.config.resolve import Resolved, merge, near
from pipeline.config.schema import SubmitConfig

# Options of sbatch that ask for much of a node (gres, exclusive, mem, …), and those that choose a
# node with GPUs (constraint, prefer, reservation); sbatch accepts any beginning of a name.
LARGE = r"gpu|mem|cpus|cores|excl|(gres|tres).*=.*gpu"
CHOOSING = r"cons|pref|rese"
LEAST_GB = 8  # memory of a command that loads torch, MLflow and one batch, if the site sets any


def fitted(
    verb: str, settings: Resolved, whole: Cluster, config: Any, args: Sequence[str]
) -> Cluster:
    """Reduce a site's resources, or those of an earlier stage, to what the command uses.

    whole: the cluster without `cluster.gpus_per_node=` of the command line. The settings of
    `cluster.commands` and keys given with the command itself replace these.
    """
    cluster = _of_fewer_gpus(settings, whole)
    given = {arg.partition("=")[0].split(".")[1] for arg in args if arg.startswith("cluster.")}
    wanted = _of_command(verb, cluster)
    own = {*given, *wanted}
    uses = COMMANDS[verb].job
    fit: dict[str, Any] = {} if uses == "nodes" else {"nodes": 1}
    gpus, options = cluster.gpus_per_node, cluster.sbatch
    on_gpus = gpus > 0 or any(re.match(r"gpu|.*=.*gpu", f"{k}={v}") for k, v in options.items())
    if uses == "gpu" and gpus > 1:
        cores = -(-(cluster.cpus_per_node or 0) // gpus)
        fit |= {
            "gpus_per_node": 1,
            "cpus_per_node": cores or None,
            "sbatch": _without(LARGE, options),
        }
        fit |= _memory(cluster, 1 / gpus)
    elif uses == "cpu":
        cores = config.workers if verb == "shard" else 1
        fit |= {"gpus_per_node": 0, "processes_per_node": None, "cpus_per_node": cores}
        fit |= _memory(cluster, cores / (cluster.cpus_per_node or cores))
        fit["sbatch"] = _without(LARGE, options)
        if on_gpus and "gpus_per_node" not in own:
            fit |= {"partition": None, "node_selector": {}}
            fit["sbatch"] = _without(f"{LARGE}|{CHOOSING}", options)
    shares = {key: value for key, value in fit.items() if key not in own}
    mine = {key: value for key, value in wanted.items() if key not in given}
    return replace(cluster, **{**shares, **mine})


def _of_fewer_gpus(settings: Resolved, whole: Cluster) -> Cluster:
    """Where the command line asks for fewer GPUs of a node, take their share of the rest."""
    cluster: Cluster = settings.config.cluster
    if not 0 < cluster.gpus_per_node < whole.gpus_per_node:
        return cluster
    share = cluster.gpus_per_node / whole.gpus_per_node
    fit: dict[str, Any] = {"sbatch": _without(LARGE, cluster.sbatch), **_memory(cluster, share)}
    if cluster.cpus_per_node:
        fit["cpus_per_node"] = math.ceil(cluster.cpus_per_node * share)
    chosen = {k for k in fit if settings.origins.get(f"cluster.{k}") == "command line"}
    return replace(cluster, **{k: v for k, v in fit.items() if k not in chosen})


def _memory(cluster: Cluster, share: float) -> dict[str, Any]:
    """Return the memory keys for a share of a node."""
    whole, shared = cluster.memory_gb, max(1, int(cluster.shm_gb * share))
    if whole is None:
        return {"shm_gb": shared}
    memory = min(whole, max(LEAST_GB, round(whole * share)))
    return {"memory_gb": memory, "shm_gb": min(shared, max(1, memory - 1))}


def _without(pattern: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if not re.match(pattern, f"{k}={v}")}


def _of_command(verb: str, cluster: Cluster) -> dict[str, Any]:
    """Return the site's own settings of a command; check those of all commands."""
    checked: dict[str, dict[str, Any]] = {}
    for name, keys in cluster.commands.items():
        if name not in AS_JOBS or not isinstance(keys, dict):
            hint = "expected {key: value}" if name in AS_JOBS else near(name, AS_JOBS).lstrip("; ")
            raise ConfigError(f"cluster.commands.{name}: {hint}")
        layers = [(f"cluster.{k}", v, f"cluster.commands.{name}") for k, v in keys.items()]
        own = merge("submit", layers, {"submit": SubmitConfig}).config.cluster
        checked[name] = {key: getattr(own, key) for key in keys}
    return checked.get(verb, {})
