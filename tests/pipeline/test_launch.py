"""The launcher's place in a job."""

import pytest

from pipeline.compose import ConfigError
from pipeline.launch import Place, place

PET = {
    "PET_NNODES": "3",
    "PET_NODE_RANK": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_MASTER_ADDR": "n1",
    "PET_MASTER_PORT": "29400",
}


def test_a_node_takes_its_place_from_torchruns_names():
    here = place(PET, 1)
    assert here == Place(3, 2, 4, "n1", 29400)
    environment = here.worker(1)
    assert environment["RANK"] == "9" and environment["WORLD_SIZE"] == "12"
    assert environment["LOCAL_RANK"] == "1" and environment["MASTER_ADDR"] == "n1"


def test_ranks_of_all_nodes_are_each_number_once():
    places = [place({**PET, "PET_NODE_RANK": str(node)}, 1) for node in range(3)]
    ranks = [int(p.worker(local)["RANK"]) for p in places for local in range(p.processes)]
    assert sorted(ranks) == list(range(12))


def test_a_place_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="PET_"):
        place({**PET, "PET_NODE_RANK": "first"}, 1)
