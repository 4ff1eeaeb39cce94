"""The command line as a user meets it: help, refusals, exit status."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.config.commands import COMMANDS
from pipeline.config.groups import key
from pipeline.config.resolve import known_keys
from shards.objects import StoreError, Unavailable

ROOT = Path(__file__).resolve().parents[2]
DESIGNED = {
    "quickstart", "doctor", "fetch", "shard", "masks", "train", "evaluate", "compare", "runs",
    "register", "promote", "rollback", "predict", "demo", "submit", "status", "logs", "cancel",
    "sync", "bench", "import", "export",
}  # fmt: skip


def test_version_names_the_commit(capsys, monkeypatch):
    monkeypatch.setenv("LACUNA_COMMIT", "1a2b3c")
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    version = re.search(r"(?m)^version: (.+)", (ROOT / "CITATION.cff").read_text())[1]
    assert capsys.readouterr().out == f"lacuna {version}, commit 1a2b3c\n"


def test_help_lists_every_verb_and_only_designed_ones(verb):
    text = verb("--help").stdout
    assert set(COMMANDS) <= DESIGNED
    for name, spec in COMMANDS.items():
        assert f"  {name} " in text and spec.help in text
    for name in DESIGNED - set(COMMANDS):
        assert f"  {name} " not in text


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_verb_lists_its_keys_with_meaning_and_default(verb, name):
    done = verb(name, "--help")
    assert done.returncode == 0 and not done.stderr
    assert "keys:" in done.stdout


def listed(text, section):
    """The first words of the lines under a heading of --help."""
    block = text.partition(f"{section}:\n")[2].partition("\n\n")[0]
    return [line.split()[0] for line in block.splitlines()]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_lists_the_options_that_the_verb_takes_and_no_other(name, capsys):
    """Each is tried; a key that is none keeps the verb from doing anything."""
    assert cli.main([name, "--help"]) == 0
    message = listed(capsys.readouterr().out, "options")
    taken = []
    for option in ("--check", "-f", "--watch", "--force", "-n", "--json", "--dry-run"):
        assert cli.main([name, option, "no.such.key=1"]) == 2
        if "unknown option" not in capsys.readouterr().err:
            taken.append(option)
    assert cli.main([name, "-h"]) == 0 and "keys:" in capsys.readouterr().out
    assert message == [*taken, "--help"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_lists_the_keys_that_the_verb_takes_and_no_other(name, capsys):
    assert cli.main([name, "--help"]) == 0
    message = [word for word in listed(capsys.readouterr().out, "keys") if word != "config"]
    assert set(message) == set(known_keys(COMMANDS[name].schema))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_values_as_they_are_typed(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert not re.search(r"\b(True|False|None)\b", capsys.readouterr().out)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_module_of_each_verb_does_it(name):
    from importlib import import_module

    assert callable(import_module(COMMANDS[name].module).main)


def test_no_verb_a_wrong_verb_and_a_wrong_option_end_with_status_2(verb):
    for words in ((), ("tran",), ("train", "--fast"), ("train", "batch=x")):
        done = verb(*words)
        assert done.returncode == 2, words
        assert "Traceback" not in done.stderr
    assert "did you mean train?" in verb("tran").stderr


def test_inside_a_job_a_configuration_error_is_not_retried(verb):
    done = verb("train", "batch=x", env={"PET_NNODES": "1"})
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1


def test_a_line_that_says_what_went_wrong_stays_readable(monkeypatch, capsys):
    def fails(*_):
        raise OSError("g++ said:\n" + "overflow in conversion\n" * 4000)

    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["doctor"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pipeline doctor: g++ said: overflow") and len(line) < 1010


@pytest.mark.parametrize(
    ("words", "message"),
    [(["cancel", "a", "b"], "a b: give one id at a time"), (["logs", "id=[a,b]"], "expected str")],
)
def test_several_words_where_one_is_taken_are_refused_in_one_line(words, message, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("late"), 1), (StoreError("no right"), 78)]
)
def test_storage_without_an_answer_is_tried_again_and_a_lasting_fault_is_not(
    monkeypatch, error, status
):
    def fails(*_):
        raise error

    monkeypatch.setenv("PET_NNODES", "1")
    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["evaluate"]) == status


def test_json_is_one_object_on_the_last_line_of_stdout(verb, photograph_folder, tmp_path):
    words = ("shard", f"source={photograph_folder}", f"out={tmp_path}/set", "data.min_side=64")
    done = verb(*words, "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["splits"] == {"train": 24, "val": 6, "test": 6}
    assert len(done.stdout.splitlines()) == 1 and done.stderr


def test_a_module_that_shadows_ours_is_named(verb, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pipeline.cli import main; "
    code += "raise SystemExit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and "models" in done.stderr


def test_an_installation_without_the_recipes_says_so(tmp_path):
    """As from a wheel: the packages, and no `conf/` beside them."""
    for package in ("pipeline", "models", "shards", "jobs"):
        shutil.copytree(ROOT / package, tmp_path / package)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "compare", "table=6"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"pipeline compare: {tmp_path} holds no conf/: run from a checkout"
    )


def test_a_field_shares_no_default_with_another():
    assert key([1], "help").default_factory() is not key([1], "help").default_factory()


# Row 41
def test_a_job_runs_no_other_code_than_its_snapshot(tmp_path):
    (tmp_path / "same").symlink_to(ROOT)
    for code, status in ((tmp_path / "at 12:00", 2), (tmp_path / "same", 0)):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "masks", "out=m", "--dry-run"],
            cwd=ROOT,
            env={**os.environ, "LACUNA_CODE": str(code)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert (f"from {ROOT} instead of" in done.stderr) == bool(status)


# Row 62
@pytest.mark.parametrize(
    "words", ["--help", "train --help", "runs --help", "masks out=m --dry-run", "bench what=x -h"]
)
def test_a_reader_that_leaves_after_one_line_is_not_an_error(words):
    """By a real shell's pipe, whose first line `head` takes; `pipefail` shows our status."""
    line = f"set -o pipefail; {sys.executable} -m pipeline {words} | (read line; exec true)"
    for closed in (line, line.replace("(read line; exec true)", "true")):
        done = subprocess.run(["bash", "-c", closed], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


# Row 60
@pytest.mark.parametrize(
    "words", [("status",), ("runs", "du", "root=."), ("masks", "out=m", "--dry-run")]
)
def test_a_rank_left_in_the_environment_does_not_silence_a_command(verb, tmp_path, words):
    done = verb(*words, env={"RANK": "1", "PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


# Row 60
@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ({}, "WORLD_SIZE and MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "1"}, "MASTER_ADDR and MASTER_PORT"),
    ],
)
@pytest.mark.parametrize("words", [("train",), ("evaluate", "model=telea", "masks.url=m")])
def test_a_rank_without_the_rest_of_a_launchers_variables_is_named(
    words, present, missing, monkeypatch, capsys
):
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in present.items():
        monkeypatch.setenv(name, value)
    assert cli.main([*words, "data.url=s"]) == os.EX_CONFIG
    assert f"RANK=0 is set, but {missing} is not: unset RANK" in capsys.readouterr().err


def test_a_users_own_cluster_file_does_not_reach_the_tests():
    from pipeline.config.compose import search_folders

    assert [name for name, _ in search_folders()] == ["conf"]
    assert not list(Path(os.environ["XDG_CONFIG_HOME"]).rglob("*.yaml"))
