import weakref

import torch

from models.patch_scores import fork


def test_forked_blocks_are_let_go_once_every_branch_has_passed_them():
    alive = []

    def blocks():
        for _ in range(100):
            block = torch.ones(1)
            alive.append(weakref.ref(block))
            yield block
            del block

    most = 0
    for _ in zip(*fork(blocks(), 3)):
        most = max(most, sum(reference() is not None for reference in alive))
    assert len(alive) == 100 and most <= 3
