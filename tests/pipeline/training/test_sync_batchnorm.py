"""Synchronised statistics over two real processes, against torch's own norm on the whole batch."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from pipeline.launch.topology import free_port
from pipeline.training.sync_batchnorm import SyncBatchNorm2d, synchronize

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import sys, torch, torch.distributed as dist
from pipeline.training.sync_batchnorm import differentiable_twice, synchronize
out, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", rank=rank, world_size=2)
given = torch.load(f"{out}/given.pt", weights_only=True)
norm = torch.nn.BatchNorm2d(5)
norm.load_state_dict(given["norm"])
network = synchronize(torch.nn.Sequential(norm), "cpu")
norm = network[0]
x = given["x"][slice(0, 3) if rank == 0 else slice(3, None)].clone().requires_grad_()
dy = given["dy"][slice(0, 3) if rank == 0 else slice(3, None)]
y = norm(x)
y.backward(dy)
points = x.detach().requires_grad_()
with differentiable_twice(network):
    (slope,) = torch.autograd.grad(network(points).tanh().sum(), points, create_graph=True)
    (twice,) = torch.autograd.grad(slope.square().sum(), norm.weight)
found = {"y": y.detach(), "twice": twice, "slope": slope.detach()}
torch.save({**found, "dx": x.grad, "dw": norm.weight.grad, "db": norm.bias.grad,
            **norm.state_dict()}, f"{out}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_uneven_batches_are_normalized_as_one(tmp_path):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(7, 5, 6, 4) * 3 + 100  # far from zero: a mean of squares would cancel
    dy = torch.randn_like(x)
    torch.save({"norm": norm.state_dict(), "x": x, "dy": dy}, tmp_path / "given.pt")
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(rank)], cwd=ROOT, env=environment
        )
        for rank in range(2)
    ]
    assert [w.wait(120) for w in workers] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    whole = copy.deepcopy(norm).double()
    reference = x.double().requires_grad_()
    y = whole(reference)
    y.backward(dy.double())
    once = copy.deepcopy(whole.state_dict())

    def close(got, expected):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-4, atol=1e-4)

    close(torch.cat([f["y"] for f in found]), y)
    close(torch.cat([f["dx"] for f in found]), reference.grad)
    close(found[0]["dw"] + found[1]["dw"], whole.weight.grad)
    close(found[0]["db"] + found[1]["db"], whole.bias.grad)
    points = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(whole(points).tanh().sum(), points, create_graph=True)
    close(torch.cat([f["slope"] for f in found]), slope)
    (twice,) = torch.autograd.grad(slope.square().sum(), whole.weight)
    close(found[0]["twice"] + found[1]["twice"], twice)
    whole.load_state_dict(once)
    for f in found:
        close(f["running_mean"], whole.running_mean)
        close(f["running_var"], whole.running_var)
        assert int(f["num_batches_tracked"]) == 1


def test_the_swap_keeps_weights_buffers_and_names():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    before = dict(network.state_dict())
    weight = network[1][0].weight
    swapped = synchronize(network, "cpu")
    assert isinstance(swapped[1][0], SyncBatchNorm2d) and swapped[1][0].weight is weight
    assert list(swapped.state_dict()) == list(before)


def test_one_process_agrees_with_torchs_own_norm():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    ours, theirs = SyncBatchNorm2d(3), nn.BatchNorm2d(3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
