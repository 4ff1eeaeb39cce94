"""The closed schema of the verbs that put other verbs on machines: submit, status, logs, cancel."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from jobs.spec import Cluster
from pipeline.config.groups import key, section
from pipeline.config.schema import Verb


@dataclass
class SubmitConfig(Verb):
    cluster: Cluster = section(Cluster)
    root: str = key("runs", "where runs and jobs without a name of their own go")
    check: bool = key(False, "ask the scheduler whether it would take the job; submit nothing")


@dataclass
class StatusConfig(Verb):
    id: str | None = key(None, "a job's or run's id, folder or URL; null: all under root")
    root: str = key("runs", "the folder of runs")


@dataclass
class LogsConfig(Verb):
    id: str = key(MISSING, "a job's or run's id, folder or URL")
    root: str = key("runs", "the folder of runs")
    follow: bool = key(False, "go on until the job ends; -f for short")


@dataclass
class CancelConfig(Verb):
    id: str = key(MISSING, "a job's or run's id, folder or URL")
    root: str = key("runs", "the folder of runs")
