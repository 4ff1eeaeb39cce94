"""Which steps of quickstart run again, and what the folder's record rejects."""

import pytest

from pipeline.common.errors import ConfigError
from pipeline.quickstart import steps
from pipeline.quickstart.steps import Step


@pytest.fixture
def run(tmp_path):
    """`run(*steps)`: the names of the steps that ran, and of those that were skipped."""
    out = tmp_path / "out"

    def run(*those):
        ran = []
        with steps.lock(out, "out"):
            todo = []
            for name, identity, resumes in those:

                def work(folder, name=name):
                    ran.append(name)
                    file = folder / f"{name}.txt"
                    file.write_text((file.read_text() if file.exists() else "") + "x")

                todo.append(Step(name, (f"{name}.txt",), identity, (), work, resumes))
            results, seconds, _ = steps.run(todo, out, "out")
        assert list(seconds) == ran
        return ran, [name for name in results if name not in seconds]

    return run


@pytest.mark.parametrize(
    ("second", "missing", "ran"),
    [
        ("abc", None, []),
        ("abc", "c.txt", ["c"]),
        ("abc", "b.txt", ["b", "c"]),
        ("aBc", None, ["b", "c"]),
        ("Abc", None, ["a", "b", "c"]),
    ],
)
def test_a_changed_or_missing_step_runs_again_with_all_that_follow(
    run, tmp_path, second, missing, ran
):
    assert run(*((name, name, False) for name in "abc")) == (["a", "b", "c"], [])
    if missing:
        (tmp_path / "out" / missing).unlink()
    again = run(*((name.lower(), name, False) for name in second))
    assert again == (ran, [name for name in "abc" if name not in ran])
    assert (tmp_path / "out" / "c.txt").read_text() == "x", "its old file was removed first"


@pytest.mark.parametrize(("identity", "text"), [("a", "1x"), ("other", "x")])
def test_an_interrupted_step_that_resumes_keeps_its_files_unless_it_changed(
    run, tmp_path, identity, text
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quickstart.json").write_text('{"a": {"identity": "a", "done": false}}')
    (tmp_path / "out" / "a.txt").write_text("1")
    assert run(("a", identity, True)) == (["a"], [])
    assert (tmp_path / "out" / "a.txt").read_text() == text


def test_a_second_quickstart_in_the_same_folder_is_rejected(tmp_path):
    with (
        steps.lock(tmp_path, "out"),
        pytest.raises(ConfigError, match="out=out is being used by another process: wait"),
    ):
        steps.lock(tmp_path, "out")


@pytest.mark.parametrize(
    ("given", "content", "line"),
    [
        ("out", "{", "out=out: quickstart.json cannot be read; remove the folder"),
    ],
)
def test_an_unusable_folder_is_rejected(tmp_path, given, content, line):
    if content:
        (tmp_path / "quickstart.json").write_text(content)
    with pytest.raises(ConfigError, match=line):
        steps.recorded(tmp_path, given)


def test_the_table_marks_the_best_of_each_row_and_counts_wins():
    def buckets(*psnr):
        return {"buckets": {f"b{i}": {"psnr": value, "n": 4} for i, value in enumerate(psnr)}}

    text = steps.show(
        {
            **buckets(20.0, 30.0),
            "baselines": {
                "mean_color": buckets(19.0, 29.0),
                "harmonic": buckets(20.5, 29.5),
                "telea": buckets(21.0, 31.0),
            },
            "seconds": {"total": 90.0},
            "reused": ["shard"],
            "model_uri": "models:/inpaint-msanet/1",
            "promoted": 2,
            "strip": "strip.png",
            "tracking_uri": "sqlite:////tmp/mlflow.db",
        }
    )
    rows = [line.split() for line in text.splitlines() if line.startswith("b")]
    assert rows == [
        ["b0", "4", "20.00", "19.00", "20.50", "21.00*"],
        ["b1", "4", "30.00", "29.00", "29.50", "31.00*"],
    ]
    assert "better than mean color in 2, harmonic in 1, Telea in 0 of 2 rows." in text
    assert "1.5 minutes, 1 steps skipped; models:/inpaint-msanet/1 is registered" in text
