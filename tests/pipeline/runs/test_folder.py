"""`run.json`, which several processes write."""

import threading

from pipeline.runs.run_json import read_run_json, update_run_json


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
