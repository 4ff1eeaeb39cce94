"""A run as it was opened, and `run.json`, which several processes write."""

import threading

from pipeline.runs.checkpoints import pin
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json, update_run_json
from shards import store


def test_two_writers_of_run_json_keep_each_others_keys(tmp_path):
    def write(name):
        for value in range(20):
            update_run_json(str(tmp_path), **{name: value})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_run_json(str(tmp_path)) == {"a": 19, "b": 19, "c": 19}
    assert update_run_json(str(tmp_path), b=None) == {"a": 19, "c": 19}


def test_checkpoints_pinned_at_the_same_time_are_all_kept(tmp_path):
    def pin_some(first):
        for images_seen in range(first, 30, 3):
            pin(str(tmp_path), images_seen)

    threads = [threading.Thread(target=pin_some, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_run_json(str(tmp_path))["pinned"] == list(range(30))


def test_a_run_is_read_once_and_stays_as_it_was_opened(tmp_path, monkeypatch):
    update_run_json(str(tmp_path), dataset="before")
    reads, read = [], store.read
    monkeypatch.setattr(store, "read", lambda url, *rest: reads.append(url) or read(url, *rest))
    run = folder_at(str(tmp_path))
    assert (run.facts, run.config, run.images_saved) == ({"dataset": "before"}, None, 0)
    (tmp_path / "run.json").write_text('{"dataset": "after"}')
    assert (run.facts, run.config, run.images_saved) == ({"dataset": "before"}, None, 0)
    assert len(reads) == 2  # run.json and config.yaml
    assert folder_at(str(tmp_path)).facts == {"dataset": "after"}
