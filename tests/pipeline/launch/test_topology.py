"""A process never falls back to the CPU unsaid, and never shares its GPU."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import cli
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import choose_precision, uses_gpu
from pipeline.quickstart.steps import steps
from pipeline.runs.folder import RunFolder
from pipeline.training.engine import Engine
from pipeline.training.run_log import headline


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A machine whose driver lists two GPUs, of which this torch sees none."""
    found = tmp_path / "nvidia-smi"
    found.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: a)'\necho 'GPU 1: H100 (UUID: b)'\n")
    found.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_gpus_that_torch_does_not_see_are_no_reason_to_train_on_the_cpu(driver):
    with pytest.raises(ConfigError, match="has 2 GPUs by its driver, but torch sees none"):
        Engine(TrainConfig())


def test_who_says_how_many_processes_or_hides_the_gpus_may(driver, monkeypatch):
    assert not uses_gpu(TrainConfig(processes="2"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not uses_gpu(TrainConfig())


def test_gpus_that_a_job_asked_for_must_be_there(driver):
    asked = compose("train", ["cluster.gpus_per_node=8", "processes=8"]).config
    with pytest.raises(ConfigError, match="cluster.gpus_per_node=8, but torch sees no GPU"):
        Engine(asked)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """Accelerate would give two of them one device, and NCCL end both at their first exchange."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes .* sees 1 GPUs: give processes=auto"):
        Engine(TrainConfig())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert uses_gpu(TrainConfig())


@pytest.mark.parametrize("gpus, ends", [("0", True), ("0,1", False), ("", False)])
def test_quickstart_takes_one_process_where_there_is_one_gpu(monkeypatch, gpus, ends):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    train = next(step for step in steps("out") if step.name == "train")
    assert (train.words[-1] == "processes=auto") == ends


def test_a_gpu_without_bf16_is_told_of_fp16(monkeypatch):
    """`auto` came to fp32 there; who asks for bf16 is refused."""
    engine = SimpleNamespace(precision="fp32", device=torch.device("cuda"), world_size=1)
    run = RunFolder("runs/a", Path("runs/a"))
    networks = SimpleNamespace(fillers=[SimpleNamespace(size=1)], players=[])
    message = "this GPU has no bf16: precision=fp16"
    assert message in headline(TrainConfig(), run, engine, 0, networks)
    assert message not in headline(TrainConfig(precision="fp32"), run, engine, 0, networks)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(ConfigError, match="use precision=fp16"):
        choose_precision("bf16", on_gpu=True)
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU; on this CPU use fp32"):
        choose_precision("fp16", on_gpu=False)


@pytest.mark.parametrize("words", [[], ["--dry-run"]], ids=["train", "dry run"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_launcher_without_gpus_refuses_fp16_before_it_opens_anything(
    monkeypatch, tmp_path, capsys, words, precision
):
    """A wrong data.url is what it would refuse next."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    line = ["train", f"data.url={tmp_path}/none", f"run={tmp_path}/run", f"precision={precision}"]
    assert cli.main([*line, *words]) == 2
    message = "precision=fp16 needs a GPU" if precision == "fp16" else "holds no manifest.json"
    assert message in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert cli.main([*line, *words]) == 2
    assert "holds no manifest.json" in capsys.readouterr().err
