"""What a profile of some steps holds."""

import gzip
import json

import torch

from pipeline.runs.folder import folder_at
from pipeline.training.profiling import BEFORE, profiled


class Tracker:
    def __init__(self):
        self.files = {}

    def artifact(self, name, data):
        self.files[name] = data


def test_a_profile_holds_its_steps_and_the_dearest_operations_first(tmp_path):
    tracker, x = Tracker(), torch.rand(300, 300)
    with profiled(folder_at(str(tmp_path)), tracker, steps=2, on_gpu=False) as end_of_step:
        for _ in range(BEFORE + 4):
            x.mm(x).add_(1)
            end_of_step()
    trace = gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes())
    events = [event.get("name", "") for event in json.loads(trace)["traceEvents"]]
    assert events.count("aten::mm") == 2
    table = (tmp_path / "profile" / "operations.txt").read_text()
    assert 0 < table.index("aten::mm") < table.index("aten::add_")
    assert tracker.files == {
        f"profile/{path.name}": path.read_bytes() for path in (tmp_path / "profile").iterdir()
    }


def test_without_a_number_of_steps_nothing_is_written(tmp_path):
    with profiled(folder_at(str(tmp_path)), None, steps=0, on_gpu=False) as end_of_step:
        end_of_step()
    assert not list(tmp_path.iterdir())
