"""Ranks that were given different things do not begin to train."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

from models.vgg import VGG16Features
from pipeline.common.errors import ConfigError
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import free_port
from pipeline.runs.checkpoints import list_checkpoints
from pipeline.training.guards import check_consistency
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]


def two_ranks(config=None, digest="ab" * 32, precision="bf16"):
    """Rank 0 has the recipe's defaults, rank 1 what is given here."""
    ranks = []

    def rank(config, digest, precision):
        engine = SimpleNamespace(
            precision=precision, gather=lambda mine: ranks.append(mine) or ranks
        )
        check_consistency(config, SimpleNamespace(digest=digest), engine)

    rank(TrainConfig(), "ab" * 32, "bf16")
    rank(config or TrainConfig(), digest, precision)
    return ranks


def test_per_node_keys_may_differ():
    own = TrainConfig(run="/scratch/run", processes="4", weights="/scratch/weights")
    own.data.url, own.cluster.scheduler = "/scratch/set", "slurm"
    assert len(two_ranks(own)) == 2  # both have compared, and none has raised


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": TrainConfig(batch=32)}, "has batch=32, rank 0 on .* batch=16: start every"),
        ({"config": TrainConfig(max_images=9)}, "has max_images=9, rank 0"),
        ({"digest": "12" * 32}, "has data.url=121212121212, rank 0 .*: copy the same set"),
        ({"precision": "fp32"}, "has precision=fp32, rank 0 on .* precision=bf16: their devices"),
    ],
)
def test_a_difference_between_ranks_is_named_with_host_and_hint(given, message):
    with pytest.raises(ConfigError, match=f"^rank 1 on .* {message}"):
        two_ranks(**given)


@pytest.mark.slow
@pytest.mark.dist
def test_two_nodes_of_which_the_second_lacks_vgg16_train_with_that_of_the_first(
    small_set, tmp_path
):
    """Or its losses would be others."""
    features = tmp_path / "cache0" / "lacuna" / "weights" / "vgg16.safetensors"
    features.parent.mkdir(parents=True)
    save_file(VGG16Features().state_dict(), features, {"sha256": "ab" * 32})
    place = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_PORT": str(free_port())}
    words = [*TINY, "objective=msanet_vgg", f"data.url={small_set}", f"run={tmp_path}/run"]
    launchers = []
    for node in (0, 1):
        own = {"XDG_CACHE_HOME": str(tmp_path / f"cache{node}"), "PET_NODE_RANK": str(node)}
        launchers.append(
            subprocess.Popen(
                [sys.executable, "-m", "pipeline", "train", *words, "max_images=16"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **place, **own},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    message = [launcher.communicate(timeout=120)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], message
    (saved,) = list_checkpoints(str(tmp_path / "run"))
    assert saved.state["pretrained"] == {"vgg16": "ab" * 32}
