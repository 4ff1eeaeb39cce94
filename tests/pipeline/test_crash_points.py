"""Every crash point of sharding, checkpoints, spool, run lock, job records: the real recovery runs.

`make trust` prints how many points there are.
"""

import hashlib
import itertools
import json
import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from pipeline.common import locks
from pipeline.runs import job_record
from pipeline.runs.checkpoints import latest, list_checkpoints, pin
from pipeline.runs.folder import RunFolder
from pipeline.runs.run_json import read_run_json, update_run_json
from pipeline.tracking import remote_spool
from pipeline.tracking.spool import Spool, Unsent
from pipeline.training.checkpointing import Saver
from pipeline.training.run_log import StepLog
from shards import files, store
from shards.manifest import FILE, open_manifest
from tests.support import promotion
from tests.support.crashes import BUCKET, walk
from tests.support.sets import image_set

pytestmark = pytest.mark.slow


PLACES = ["disk", "bucket"]


def place(where, folder):
    return str(folder / "out") if where == "disk" else f"{BUCKET}/out"


# --- sharding -------------------------------------------------------------------------------------


def shard(folder, where):
    return image_set(place(where, folder), 3, per_shard=2, side=16)


def check_set(url):
    """A set whose manifest is there is whole: each file has the size and sha256 it names."""
    if not store.exists(store.join(url, FILE)):
        return
    manifest = open_manifest(url)
    for split, entry in manifest.splits.items():
        for one in entry.shards:
            for file, digest in ((manifest.shard_url(split, one), one.sha256),
                                 (manifest.index_url(split, one), one.index_sha256)):  # fmt: skip
                assert hashlib.sha256(store.read(file)).hexdigest() == digest, file


def walk_shard(tmp_path, where):
    digest = image_set(tmp_path / "whole", 3, per_shard=2, side=16).digest

    def work(folder, promise):
        shard(folder, where)
        promise("finished")

    def recover(folder, promised):
        url = place(where, folder)
        check_set(url)
        if promised:
            assert open_manifest(url).digest == digest, "a finished set was lost"
        assert shard(folder, where).digest == digest
        check_set(url)

    return walk(tmp_path, work, recover)


@pytest.mark.parametrize("where", PLACES)
def test_a_set_is_whole_or_absent_and_the_same_command_finishes_it(tmp_path, where):
    assert walk_shard(tmp_path, where) > 50


# --- checkpoints and steps ------------------------------------------------------------------------


ENGINE = SimpleNamespace(is_main=True, means=lambda sums: {k: float(v) for k, v in sums.items()})
LENGTH, BATCH, EVERY = 24, 4, 8


def opened(where, folder, local="run"):
    url = str(folder / "run") if where == "disk" else f"{BUCKET}/run"
    return RunFolder(url, folder / local)


def steps(run):
    text = store.read(store.join(run.url, "steps.jsonl")).decode()
    return [json.loads(line)["images_seen"] for line in text.split("\n")[:-1]]


def train(run, promise=lambda value: None):
    """Training without a network: the log and checkpoints of a run, from where it stands."""
    newest = latest(run.url)
    seen = newest.images_seen if newest else 0
    files.make_folder(run.local)
    log, saver = StepLog(run, ENGINE, 1), Saver(run, keep=1)
    log.cut(seen)
    pin(run.url, EVERY)
    for images in range(seen + BATCH, LENGTH + 1, BATCH):
        log.add({"loss": torch.tensor(images / 7)}, images, 0.1, 0, False)
        if images % EVERY == 0:
            saver.save(images, {"generator": {"w": torch.full((2,), float(images))}}, {})
            saver.wait()
            promise(images)
    saver.close()


def walk_train(tmp_path, where, local="run"):
    def recover(folder, promised):
        run = opened(where, folder, local)
        newest = latest(run.url)
        saved = newest.images_seen if newest else 0
        assert saved >= max(promised, default=0), "a checkpoint was lost"
        if saved:
            assert steps(run)[: saved // BATCH] == list(range(BATCH, saved + 1, BATCH))
        train(run)
        kept = [c.images_seen for c in list_checkpoints(run.url)]
        assert kept[0] == EVERY and kept[-1] == LENGTH, "a pinned or the newest one was deleted"
        assert float(latest(run.url).read("generator")["w"][0]) == LENGTH
        run.publish()
        assert steps(run) == list(range(BATCH, LENGTH + 1, BATCH)), "one history"

    def work(folder, promise):
        train(opened(where, folder), promise)

    return walk(tmp_path, work, recover)


@pytest.mark.parametrize(
    ("where", "local"), [("disk", "run"), ("bucket", "run"), ("bucket", "new")]
)
def test_no_checkpoint_and_no_step_before_it_is_lost(tmp_path, where, local):
    """In a bucket also where another machine resumes, which has nothing of the first one's disk."""
    assert walk_train(tmp_path, where, local) > 100


# --- tracking events ------------------------------------------------------------------------------


def sent(folder, limit=100):
    """Drain as the sender does; the steps that MLflow would be sent."""
    unsent, found = Unsent(folder), []
    while events := unsent.read(limit):
        found += [event.fields["step"] for event in events if event.kind == "metrics"]
        unsent.advance(events[-1].after)
    return found


def test_every_tracking_event_that_was_synced_is_sent(tmp_path):
    def work(folder, promise):
        spool, step = Spool(folder / "spool"), 0
        for round in range(3):
            for _ in range(2):
                step += 1
                spool.append("metrics", step=step)
            if round == 1:
                spool.rotate()
            spool.sync()
            promise(("synced", step))
            if round:
                unsent = Unsent(folder / "spool")
                events = unsent.read(3)
                promise(("sent", [e.fields["step"] for e in events if e.kind == "metrics"]))
                unsent.advance(events[-1].after)
        spool.close()

    def recover(folder, promised):
        again = Spool(folder / "spool")
        again.append("metrics", step=99)
        already = {step for kind, value in promised if kind == "sent" for step in value}
        got = sent(folder / "spool")
        assert got == sorted(got), "order"
        assert got[-1] == 99
        last = max((value for kind, value in promised if kind == "synced"), default=0)
        assert set(range(1, last + 1)) <= already | set(got), "a synced event was lost"
        again.close()
        assert sent(folder / "spool") == []

    assert walk(tmp_path, work, recover) > 80


def test_every_tracking_event_that_reached_the_bucket_is_sent_by_another_machine(tmp_path):
    run = f"{BUCKET}/run"

    def work(folder, promise):
        spool = Spool(folder / "spool")
        state = {"uid": "u", "attempt": 1, "at": remote_spool.place(folder / "spool")}
        remote_spool.write_json(folder / "spool" / remote_spool.STATE, state)
        for step in (1, 2, 3):
            spool.append("metrics", step=step)
            spool.rotate()
            remote_spool.push_spool(run, folder / "spool")
            promise(("pushed", step))
            if step == 2:
                promise(("sent", sent(folder / "spool")))
        spool.close()

    def recover(folder, promised):
        elsewhere = folder / "elsewhere"
        remote_spool.fetch_spool(run, elsewhere)
        again = Spool(elsewhere)
        already = {step for kind, value in promised if kind == "sent" for step in value}
        got = set(sent(elsewhere))
        pushed = max((value for kind, value in promised if kind == "pushed"), default=0)
        assert set(range(1, pushed + 1)) <= already | got, "a pushed event was lost"
        again.close()

    assert walk(tmp_path, work, recover) > 60


# --- one writer -----------------------------------------------------------------------------------


def test_a_run_in_a_bucket_has_one_writer_after_any_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 60.0)
    monkeypatch.setattr(locks, "STALE", 0.0)
    run = f"{BUCKET}/run"

    def work(folder, promise):
        with locks.leased(run):
            promise("held")

    def recover(folder, promised):
        before = locks._newest(store.join(run, ".lock"))
        with locks.leased(run):
            now = locks._newest(store.join(run, ".lock"))
            assert now == before + 1
            with pytest.raises(FileExistsError):
                store.write(locks._attempt(store.join(run, ".lock"), now), b"late", exclusive=True)

    assert walk(tmp_path, work, recover) >= 15


# --- job records ----------------------------------------------------------------------------------


RECORD = dict(verb="train", number="", cluster={"scheduler": "slurm"}, submitted="t")


@pytest.mark.parametrize("where", PLACES)
def test_a_job_record_is_whole_and_names_the_queued_job(tmp_path, where, monkeypatch):
    """The record comes before the job, whose number comes after it: none is queued unrecorded."""

    def work(folder, promise):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.chdir(folder)
        run = "out" if where == "disk" else f"{BUCKET}/out"
        update_run_json(run, mlflow_run_id="m")
        record = job_record.SubmittedJob(id="a", run=run, folder=run, sought=("a",), **RECORD)
        job_record.write(record)
        job_record.point_to(record)
        promise("queued")
        job_record.write(job_record.replace(record, number="17"))
        promise("answered")

    def recover(folder, promised):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.chdir(folder)
        run = "out" if where == "disk" else f"{BUCKET}/out"
        record = job_record.read(run)
        assert read_run_json(run) in ({}, {"mlflow_run_id": "m"})
        if promised:
            assert record.sought == ("a",) and record.number in ("", "17")
        if "answered" in promised:
            assert record.number == "17"
        for record in job_record.every("."):
            assert isinstance(record, job_record.SubmittedJob)

    assert walk(tmp_path, work, recover) > 40


# --- promotion ------------------------------------------------------------------------------------

WRITES = re.compile("create|set|log|finalize|delete|update|rename|transition")


class Died(BaseException):
    """The process is no more: nothing in it may run after this."""


@contextmanager
def dying(monkeypatch, number, answered):
    """Die at the n-th request of MLflow's client that changes anything, `answered` or before it."""
    from mlflow import MlflowClient

    calls, inside = [], []

    def counted(real):
        def call(self, *arguments, **options):
            if inside:  # a method that calls another is one request
                return real(self, *arguments, **options)
            calls.append(real.__name__)
            if len(calls) == number + 1 and not answered:
                raise Died
            inside.append(real)
            try:
                done = real(self, *arguments, **options)
            finally:
                inside.clear()
            if len(calls) == number + 1 and answered:
                raise Died
            return done

        return call

    with monkeypatch.context() as patch:
        for name, method in vars(MlflowClient).items():
            if WRITES.match(name) and callable(method):
                patch.setattr(MlflowClient, name, counted(method))
        yield calls


def test_a_promotion_that_dies_anywhere_leaves_the_old_champion_or_the_new_one(root, monkeypatch):
    """Before each request to the registry, and after each whose answer is lost; then run again."""
    promoted, points = 1, 0
    runs = [promotion.candidate(root, "0", 20.0, 0)]
    before = promotion.do(runs[0])["version"]
    for answered in (False, True):
        for number in itertools.count():
            runs.append(promotion.candidate(root, str(len(runs)), 20.0 + len(runs), len(runs)))
            promoted += 1
            try:
                with dying(monkeypatch, number, answered) as calls:
                    before = promotion.do(runs[-1])["version"]
                break  # it has no such request any more
            except Died:
                where = f"request {number}, {calls[-1]}, {'answered' if answered else 'not sent'}"
            points += 1
            assert promotion.champion(root).tags["lacuna.run"] in runs[-2:], where
            again = promotion.do(runs[-1])
            assert promotion.champion(root).tags["lacuna.run"] == runs[-1], where
            assert again["champion_before"] == int(before), where
            before = again["version"]
    # Each promoted file is whole, and each promotion is in one history.
    assert promotion.verify()["versions"] == promoted
    print(f"crash points: {points} of {points}")
    assert points > 5


# --- planted faults -------------------------------------------------------------------------------


def test_a_missing_sync_is_found(tmp_path, monkeypatch):
    """The walk of sharding fails without the sync of files, and without that of names."""
    for number, kind in enumerate(("sync", "sync_folder")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr("tests.support.crashes.SKIPPED", {kind})
            with pytest.raises((AssertionError, ValueError, FileNotFoundError)):
                walk_shard(folder, "disk")


def test_an_unsynced_log_of_steps_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "publish", lambda self: None)
    with pytest.raises((AssertionError, FileNotFoundError)):
        walk_train(tmp_path, "disk")


@pytest.mark.parametrize("where", PLACES)
def test_an_early_manifest_is_found(tmp_path, where, monkeypatch):
    image_set(tmp_path / "made", 3, per_shard=2, side=16)
    manifest, real = (tmp_path / "made" / FILE).read_bytes(), store.write

    def early(url, data, exclusive=False):
        if url.endswith("shard-000001.tar") and "whole" not in url:
            real(url.replace("train/shard-000001.tar", FILE), manifest)
        real(url, data, exclusive)

    monkeypatch.setattr(store, "write", early)
    with pytest.raises((ValueError, FileNotFoundError), match="no such|No such"):
        walk_shard(tmp_path, where)
