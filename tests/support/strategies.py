"""One rank of small runs under one strategy after another: `python strategies.py`.

It reads the name of a folder OUT a line, and when all of OUT/plan.json is done makes OUT/done-RANK.
plan.json: {case: {"method": one of `SIDES`, "strategy": ..., "steps": N, and optionally
"start": the case to resume from, "accumulate", "clip", "precision", "norm",
"nudge": change of the initial weights, "poison": step at which rank 1's gradient of the last
network is NaN, "sync_batchnorm", "wire": whether to record the exchanges}}. Rank 0 writes a
checkpoint to OUT/<case>/ and the losses of each step to OUT/<case>.json. Networks are tiny; images
are noise, the same in every case.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState

from models.densenet import DenseNetDiscriminator
from pipeline.config.groups import Phase
from pipeline.config.methods.context_encoder import ContextEncoderModel, ContextEncoderObjective
from pipeline.config.methods.deepfill import DeepfillModel, DeepfillObjective
from pipeline.config.methods.edgeconnect import EdgeconnectModel, EdgeconnectObjective
from pipeline.config.methods.glc import GlcModel, GlcObjective
from pipeline.config.methods.gmcnn import GmcnnModel, GmcnnObjective
from pipeline.config.methods.lama import LamaModel, LamaObjective
from pipeline.config.methods.msanet import MsanetModel, MsanetObjective
from pipeline.config.methods.musical import MusicalModel, MusicalObjective
from pipeline.config.methods.pconv import PconvModel, PconvObjective
from pipeline.config.methods.shiftnet import ShiftnetModel, ShiftnetObjective
from pipeline.config.phases import turn_at
from pipeline.config.schema import TrainConfig
from pipeline.launch.topology import free_port
from pipeline.runs import checkpoints
from pipeline.runs.folder import folder_at
from pipeline.training import checkpointing, method, resume
from pipeline.training.engine import Engine
from pipeline.training.loop import step

ROOT = Path(__file__).resolve().parents[2]
BATCH = 4  # over all ranks
SIDES = {"msanet": 40, "musical": 96, "pconv": 64, "edgeconnect": 64, "deepfill": 96}
# GLC: of 64 pixels its discriminator leaves one, and a norm over a batch of single pixels amplifies
# what rounding does.
SIDES |= {"glc": 128, "gmcnn": 64, "shiftnet": 64, "context_encoder": 64, "lama": 64}
EDGES, IMAGE = (
    {f"generator.{part}": 1e-3, f"discriminator.{part}": 1e-3} for part in ("edges", "image")
)
GENERATOR, DISCRIMINATOR = {"generator": 1e-3}, {"discriminator": 1e-3}
# Networks, losses and schedule of those that have phases.
PHASED = {
    "pconv": (
        PconvModel(levels=5, width=0.1),
        PconvObjective(
            phases=[Phase(until=3 * BATCH, lr=1e-3), Phase(lr=1e-3, frozen=["generator.encoder"])]
        ),
    ),
    "edgeconnect": (
        EdgeconnectModel(width=0.1),
        EdgeconnectObjective(
            phases=[
                Phase(until=2 * BATCH, rates=EDGES),
                Phase(until=4 * BATCH, rates=IMAGE, without=["predicted"]),
                Phase(rates=IMAGE),
            ]
        ),
    ),
    "deepfill": (
        DeepfillModel(width=0.1),
        DeepfillObjective(phases=[Phase(lr=1e-3, every={"generator": 2})]),
    ),
    "glc": (
        GlcModel(width=0.1, dilations=[2]),
        GlcObjective(
            d_width=0.1,
            local="masked",
            phases=[
                Phase(until=2 * BATCH, rates=GENERATOR, without=["adv"]),
                Phase(until=4 * BATCH, rates=DISCRIMINATOR),
                Phase(rates={**GENERATOR, **DISCRIMINATOR}),
            ],
        ),
    ),
    "gmcnn": (
        GmcnnModel(width=0.1, dilations=[1]),
        GmcnnObjective(
            d_width=0.1,
            phases=[
                Phase(until=2 * BATCH, rates=GENERATOR, without=["id_mrf", "adv"]),
                Phase(rates={**GENERATOR, **DISCRIMINATOR}, every={"generator": 2}),
            ],
        ),
    ),
    "shiftnet": (
        ShiftnetModel(width=0.1, levels=4),
        ShiftnetObjective(d_width=0.1, phases=[Phase(lr=1e-3)]),
    ),
    "context_encoder": (
        ContextEncoderModel(width=0.1, levels=4),
        ContextEncoderObjective(d_levels=4, d_width=0.1, phases=[Phase(lr=1e-3)]),
    ),
    "lama": (
        LamaModel(width=0.1, blocks=1),
        LamaObjective(d_width=0.1, phases=[Phase(lr=1e-3)]),
    ),
}


class Ranks:
    """Ranks that train one plan after another: their imports take longer than most plans."""

    def __init__(self, processes):
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TORCH_FR_BUFFER_SIZE": "100000",
        }
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        self.workers = [
            subprocess.Popen(
                [sys.executable, __file__],
                cwd=ROOT,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]

    def train(self, out, plan):
        """Train every case of `plan`, in order."""
        for done in Path(out).glob("done-*"):  # of an earlier plan
            done.unlink()
        Path(out, "plan.json").write_text(json.dumps(plan))
        for worker in self.workers:
            print(out, file=worker.stdin, flush=True)
        while not all(Path(out, f"done-{rank}").exists() for rank in range(len(self.workers))):
            assert [worker.poll() for worker in self.workers] == [None] * len(self.workers)
            time.sleep(0.05)

    def close(self):
        for worker in self.workers:
            worker.kill()
            worker.communicate()


@contextlib.contextmanager
def engine_of(config, monkeypatch):
    """Open an engine with one rank, in this process."""
    here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with monkeypatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        engine = Engine(config)
        try:
            yield engine
        finally:
            engine.close()
            AcceleratorState._reset_state(reset_partial_state=True)


def networks_of(plan, config, engine):
    """Build a method's networks, but smaller; Adam's epsilon avoids sign-only steps."""
    config.weights, phases = "random", [Phase(lr=1e-3)]
    config.model = MsanetModel(width=0.1, norm=plan.get("norm", "batch"))
    config.objective = MsanetObjective(l2=1.0, perceptual=0.01, phases=phases)
    if plan["method"] == "musical":
        config.model = MusicalModel(ngf=4)
        config.objective = MusicalObjective(l1=1.0, adv=0.1, phases=phases)
    if plan["method"] in PHASED:
        config.model, config.objective = PHASED[plan["method"]]
        config.data.crop = SIDES[plan["method"]]
    small = partial(DenseNetDiscriminator, growth=4, blocks=(1, 1, 1, 1))
    with mock.patch("pipeline.training.methods.musical.DenseNetDiscriminator", small):
        networks = method.build(config, engine)
    for player in networks.players:
        for parameter in player.module.parameters():
            parameter.data.add_(plan.get("nudge", 0.0) * torch.randn_like(parameter).sign())
        if player.ema is not None:
            player.ema.load_state_dict(player.module.state_dict())
        weights = player.module.parameters()
        player.optimizer = torch.optim.Adam(weights, lr=1e-3, betas=(0.5, 0.9), eps=1e-3)
    return networks


def wire():
    """List [collective, input bytes] of this process so far, from torch's flight recorder."""
    trace = json.loads(torch._C._distributed_c10d._dump_fr_trace_json())
    return [
        [entry["profiling_name"], sum(4 * math.prod(size) for size in entry["input_sizes"])]
        for entry in trace["entries"]
    ]


def run(out, case, plan):
    config = TrainConfig(batch=BATCH, threads="1", ema=0.9, clip=plan.get("clip"))
    config.precision, config.accumulate = plan.get("precision", "fp32"), plan.get("accumulate", 1)
    config.parallel.strategy, config.parallel.channels_last = plan["strategy"], False
    config.parallel.sync_batchnorm = plan.get("sync_batchnorm", True)
    AcceleratorState._reset_state()
    engine = Engine(config)
    networks, first = networks_of(plan, config, engine), 0
    if "start" in plan:
        checkpoint = checkpoints.latest(str(out / plan["start"]))
        resume.restore(checkpoint, networks.players)
        first = checkpoint.images_seen // BATCH
    number = first
    if "poison" in plan and engine.rank == 1:
        victim = list(networks.players[-1].module.parameters())[-1]
        victim.register_hook(lambda g: g * float("nan") if number == plan["poison"] else g)
    engine.start(networks.players)
    side = SIDES[plan["method"]]
    mine = slice(engine.rank, None, engine.world_size)  # as `rank_positions`
    steps = []
    for number in range(first, plan["steps"]):
        drawn = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (BATCH, side, side, 3), generator=drawn).to(torch.uint8)
        masks = (torch.rand(BATCH, side, side, generator=drawn) < 0.2).to(torch.uint8)
        networks.begin(
            turn_at(config.objective.phases, number * BATCH, BATCH, config.objective.players)
        )
        losses = step(networks, engine, images[mine], masks[mine], config, number * BATCH)
        stepped = bool(engine.step(networks.learning, config.ema))
        sent = wire() if "wire" in plan else []
        norms = {name: norm.item() for name, norm in engine.norms.items()}
        seen = {"stepped": stepped, "norms": norms, "wire": sent}
        steps.append({**engine.means(losses), **seen})
    files = checkpointing.checkpoint_files(networks.players)
    if engine.is_main:
        saver = checkpointing.Saver(folder_at(str(out / case)), 1)
        saver.save(plan["steps"] * BATCH, files, {"dataset": "noise"})
        saver.close()
        (out / f"{case}.json").write_text(json.dumps(steps))
    engine.any(False)  # the next case may read what rank 0 wrote


if __name__ == "__main__":
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        for name, given in json.loads((folder / "plan.json").read_text()).items():
            run(folder, name, given)
        (folder / f"done-{os.environ['RANK']}").touch()
