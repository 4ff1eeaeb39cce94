"""The `next:` line of each command is one that this command line reads."""

import shlex

import pytest

from pipeline.config.commands import COMMANDS, positional
from pipeline.config.compose import compose
from pipeline.config.following import following

TRAINED = {"run": "runs/a b"}
CASES = {
    "shard": (["source=p", "out=sets/a"], {}, "train experiment=RECIPE data.url=sets/a"),
    "shard of a task": (["source=p", "out=s"], {"shards_left": 2}, ""),
    "shard verify": (["url=s", "action=verify"], {}, ""),
    "masks": (["out=m"], {}, "evaluate checkpoint=RUN data.url=SET masks.url=m"),
    "train": (
        ["data.url=s"],
        TRAINED,
        "evaluate 'checkpoint=runs/a b/checkpoints/best' data.url=s masks.url=MASKS",
    ),
    "train musical": (
        ["data.url=s", "experiment=musical/paris"],
        {"run": "r"},
        "evaluate checkpoint=r/checkpoints/best data.url=s data.resize_short=350 protocol=musical",
    ),
    "train smoke": (["data.url=s", "smoke=true"], {}, ""),
    "evaluate": (["checkpoint=r"], {"run": "r", "images_seen": 64}, "register run=r checkpoint=64"),
    "evaluate baseline": (["model=telea"], {"name": "telea"}, ""),
    "register": (["run=r"], {"name": "inpaint-a", "version": 3}, "promote inpaint-a/3"),
    "register before evaluate": (["run=r"], {"name": "a", "version": 3, "next": "evaluate"}, ""),
    "promote": (
        ["model=a"],
        {"model_uri": "models:/a@champion"},
        "predict model=models:/a@champion image=IMAGE mask=MASK out=OUT",
    ),
    "compare": ([], {"rows": []}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_finished_command_names_the_next(case):
    words, result, expected = CASES[case]
    command = case.split()[0]
    line = following(command, compose(command, words).config, result)
    assert line == (f"next: python -m pipeline {expected}" if expected else "")
    if expected and "RECIPE" not in expected:
        name, *arguments = shlex.split(expected)
        compose(name, positional(COMMANDS[name], arguments))  # every key is one of that command's
