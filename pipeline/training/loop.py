"""The training loop, read top to bottom: stream, losses, step, log, validation, checkpoint.

`images_seen`, over all ranks, is both progress and position in the data. The same command
resumes a stopped run at the same sample and, with the same processes and threads, bit-exactly.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.common.environment import count
from pipeline.common.signals import stop_requests
from pipeline.config.phases import turn_at
from pipeline.config.schema import TrainConfig
from pipeline.evaluation.pair_images import contact_sheet
from pipeline.evaluation.pairs import validation_pairs
from pipeline.evaluation.scoring import validate
from pipeline.launch.restarts import FAILED
from pipeline.runs.folder import RunFolder, held
from pipeline.runs.identity import folder_of, resolve_auto
from pipeline.tracking.client import load_mlflow
from pipeline.tracking.provenance import other_node_metrics
from pipeline.training import checkpointing, flops, method
from pipeline.training.checkpointing import save
from pipeline.training.engine import Engine, load_accelerate
from pipeline.training.guards import check_consistency, out_of_memory
from pipeline.training.method import Batch, Method
from pipeline.training.profiling import profiled
from pipeline.training.progress import Meter, format_metrics
from pipeline.training.resume import resume
from pipeline.training.run_log import (
    StepLog,
    finish,
    headline,
    open_tracker,
    record_restart,
    save_sheet,
    tag_checkpoint,
)
from pipeline.training.stepping import Skips, Upload, lowers_scale
from pipeline.training.watchdog import Watchdog, straggler
from shards.decode import Crop
from shards.manifest import Manifest, open_manifest
from shards.masks import MaskPolicy
from shards.order import lanes_for, rank_positions
from shards.stream import Stream, check_guards

STOP = 2.0  # a vote to save and stop; 1 is one to save


def preload(config: TrainConfig) -> None:
    """Import what is otherwise imported when it is first needed."""
    load_accelerate()
    if config.tracking.enabled and os.environ["RANK"] == "0":
        load_mlflow()


def train(config: TrainConfig) -> None:
    """Train as one of the run's processes. SystemExit(75) after a requested stop."""
    run = folder_of(config)
    config = resolve_auto(config, run)
    engine = Engine(config)
    lanes = str(_lanes(config, engine.world_size))  # the run keeps them, on any number of ranks
    config = replace(config, data=replace(config.data, lanes=lanes))
    try:
        watching = Watchdog(engine.rank, engine.world_size, config.parallel.hang_timeout)
        with watching as watch, ExitStack() as stack:
            if engine.is_main:
                stack.enter_context(held(run))
            if _train(config, run, engine, watch, stack):
                raise SystemExit(os.EX_TEMPFAIL)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, config, engine.world_size) from None
    finally:
        engine.close(sys.exception())


def _train(
    config: TrainConfig, run: RunFolder, engine: Engine, watch: Watchdog, stack: ExitStack
) -> bool:
    """Train to the end; True after a requested stop.

    Returns a flag, not an exception, whose traceback would keep the networks alive.
    """
    # Build the networks, and compare the ranks before training: if they differed in configuration
    # or data, they would train toward different losses or wait for each other forever.
    assert config.data.url is not None
    manifest = open_manifest(config.data.url)
    networks = method.build(config, engine)
    check_consistency(config, manifest, engine)
    image_seconds = flops.ideal_seconds_per_image(networks, engine, config)

    # Resume: weights before the engine wraps them, then the data position. A set whose order would
    # differ from the checkpoint's is refused.
    state = resume(config, run, networks, manifest, engine)
    engine.start(networks.players)
    stream = stack.enter_context(open_stream(config, engine, manifest, state.images_seen))
    check_guards(state.data or stream.guards(), stream.guards())
    state.data = stream.guards()
    pairs = validation_pairs(config, manifest)

    # Wait for all ranks, then handle stop signals: until here a signal ends the process, as there
    # is nothing to save; from here on ranks vote at each step's end, and stop together.
    engine.any(False)
    stop = stack.enter_context(stop_requests())

    # Open what records the run.
    tracker = stack.enter_context(open_tracker(config, run, engine, manifest))
    for name, source in networks.pretrained.items():
        tracker.tag(f"weights.{name}", source)
    saver = checkpointing.Saver(run, config.checkpoint.keep)
    stack.callback(saver.close)
    ranks = engine.is_main, engine.world_size
    meter = Meter(state.images_seen, config.max_images, *ranks, image_seconds)
    stack.callback(meter.close)
    steps_shown = config.profile if engine.is_main else 0
    end_of_step = stack.enter_context(profiled(run, tracker, steps_shown, engine.on_device))
    log = StepLog(run, engine, config.log.every or (20 if engine.device.type == "cuda" else 1))
    repeated = log.cut(state.images_seen)
    meter.say(headline(config, run, engine, state.images_seen, networks))

    # Checkpoints by the clock: rank 0 votes for one, and it is saved where a line of the log ends,
    # so that neither losses nor lines depend on the clock. Saving averages statistics that ranks
    # have of their own, and rounds them: where they do, there are none.
    seconds, saved_at = config.checkpoint.every_seconds, time.monotonic()
    alike = engine.world_size == 1 or config.parallel.sync_batchnorm
    by_clock = engine.is_main and seconds > 0 and alike
    restarted = engine.is_main and FAILED in os.environ
    phases, players = config.objective.phases, config.objective.players
    skips, upload = Skips(state, late=int(engine.on_device)), Upload(engine.device)
    stopping, save_due, by_clock_due = False, False, False
    while state.images_seen < config.max_images and not stopping:
        # Fetch a batch. The watchdog reports the rank and activity of a process that hangs.
        began = time.perf_counter()
        number = state.images_seen // config.batch + 1
        watch.mark(number, "waiting for data")
        batch = next(stream)
        waited = time.perf_counter() - began
        images, masks = upload(batch.images, batch.masks)

        # Gradients and one optimizer step of all networks that learn; if any gradient is not
        # finite, no network takes it.
        watch.mark(number, "computing")
        turn = turn_at(
            phases, state.images_seen, config.batch, players, config.max_images, config.lr_scale
        )
        networks.begin(turn)
        losses = step(networks, engine, images, masks, config, state.images_seen)
        stepped = engine.step(networks.learning, config.ema)
        skips.add(stepped, lowers_scale(networks.learning, engine.device))

        # Decide what is due. A periodic checkpoint and a requested stop wait for a step that is not
        # skipped, because the weights may have diverged; the final checkpoint is saved in any case.
        # A GPU is waited for only if something is due; else it runs a step behind this loop.
        watch.mark(number, "voting")
        before, state.images_seen = state.images_seen, batch.position
        late = by_clock and time.monotonic() - saved_at > seconds
        saved_at = time.monotonic() if late else saved_at  # one vote for each
        vote = engine.vote(STOP if stop else float(late))
        asked, by_clock_due = vote == STOP, by_clock_due or vote > 0
        done = state.images_seen >= config.max_images
        due = partial(_crossed, before, state.images_seen)
        save_due = save_due or due(config.checkpoint.every_images) or (by_clock_due and log.due)
        validating = done or due(config.validate.interval(config.max_images))
        last_taken = skips.read(now=asked or save_due or validating or log.due)
        stopping = asked and last_taken
        saving = done or stopping or (save_due and last_taken)

        # Log. Every line before a checkpoint must be in steps.jsonl, hence `flush`.
        logged = log.add(losses, state.images_seen, turn.lr, state.skipped, flush=saving)
        meter.step(config.batch, time.perf_counter() - began, waited, logged, turn.cycle)
        if logged:
            norms = {name: norm.item() for name, norm in engine.norms.items()}
            values = {**logged, "g/lr": turn.lr, **norms, **meter.values()}
            tracker.metrics(values, state.images_seen)
        if restarted:
            record_restart(run, tracker, state.images_seen, repeated)
            restarted = False
        if skips.in_a_row >= config.max_skipped:
            raise FloatingPointError(
                f"non-finite gradients in {skips.in_a_row} consecutive steps, the last at "
                f"{state.images_seen} images: lower the learning rate (lr_scale=) or set "
                f"clip=; max_skipped= allows more; the last checkpoint is from before these steps"
            )

        # Validate, before saving: the checkpoint stores the metrics by which the best is selected.
        if validating and not stopping:
            began = time.perf_counter()
            watch.mark(number, "validating")
            engine.average_buffers(networks.players)
            inpaint = inpainter(networks.evaluated(), engine, watch)
            state.metrics = validate(
                inpaint, pairs, engine.gather, engine.device, engine.rank, engine.world_size
            )
            tracker.metrics(state.metrics, state.images_seen)
            meter.say(f"{state.images_seen} images: " + format_metrics(state.metrics))
            if engine.is_main:
                sheet = contact_sheet(inpaint, pairs, config.validate.samples, engine.device)
                save_sheet(run, tracker, sheet, state.images_seen)
            meter.elsewhere(time.perf_counter() - began)

        # Save. Every rank takes part in collecting the tensors; rank 0 writes them in a thread, so
        # that only a write that outlasts a whole interval makes the ranks wait.
        if saving:
            began = time.perf_counter()
            watch.after(number, "writing the previous checkpoint", saver.wait)
            watch.mark(number, "saving")
            engine.average_buffers(networks.players)
            save(config, networks, engine, saver, manifest, state)
            save_due, by_clock_due, saved_at = False, False, time.monotonic()
            tag_checkpoint(tracker, saver.published)
            meter.elsewhere(time.perf_counter() - began, stall=True)
            # Collect what other nodes measure here, because the ranks are together anyway.
            for machine in engine.gather(other_node_metrics()):
                tracker.metrics(machine, state.images_seen)
            ratio, line = straggler(engine.gather(meter.pace()))
            tracker.metrics({"perf/straggler": ratio}, state.images_seen)
            if line:
                meter.say(line)
            tracker.publish()
        end_of_step()

    # Finish the last checkpoint and record the result; writing may take any time.
    watch.rest()
    saver.wait()
    tag_checkpoint(tracker, saver.published)
    if engine.is_main:
        finish(run, tracker, meter, state, "stopped" if stopping else "finished")
    if stopping:
        meter.say(f"stopped ({stop.reason or 'another rank'}): saved at {state.images_seen} images")
    return stopping


def step(
    networks: Method,
    engine: Engine,
    images: Tensor,
    masks: Tensor,
    config: TrainConfig,
    position: int = 0,
) -> dict[str, Tensor]:
    """Accumulate one batch's gradients over micro-batches; returns this rank's mean of each term.

    images: uint8 N x H x W x 3, masks: uint8 N x H x W, 1 = hole; made float on the device.
    position: of the global batch in the order of the data.
    """
    engine.begin(networks.learning)
    parts, share = config.accumulate, 1 / config.accumulate
    mine = rank_positions(position, config.batch, engine.rank, engine.world_size)
    each = len(mine) // parts
    sums: dict[str, Tensor] = {}
    for i, (pixels, holes) in enumerate(zip(images.chunk(parts), masks.chunk(parts), strict=True)):
        image = pixels.to(engine.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        mask = holes.to(engine.device, non_blocking=True).unsqueeze(1).float()
        batch = Batch(image, mask, mine[i * each : (i + 1) * each], config.seed)
        with engine.micro_batch(networks.learning, last=i == parts - 1):
            values = method.backward(networks, engine, batch, share)
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value * share
    return sums


def inpainter(generator: torch.nn.Module, engine: Engine, watch: Watchdog) -> Any:
    """Return validation's function (erased image, mask) -> image, in evaluation mode."""

    def inpaint(image: Tensor, mask: Tensor) -> Tensor:
        watch.touch()
        before = generator.training
        generator.eval()
        try:
            with torch.no_grad(), engine.autocast():
                image = generator(image, mask).image
        finally:
            generator.train(before)
        if not torch.isfinite(image).all():
            raise FloatingPointError(
                "validation gave non-finite images, so training has diverged: lower the learning "
                "rate or set clip=; the last checkpoint is from before this step"
            )
        return image

    return inpaint


def open_stream(config: TrainConfig, engine: Engine, manifest: Manifest, position: int) -> Stream:
    """Open this rank's stream of training batches at `position` images over all ranks."""
    data = config.data
    crop = Crop(data.crop, data.crop_mode, data.resize_short, data.flip)  # type: ignore[arg-type]
    return Stream(
        manifest,
        data.train,
        batch=config.batch,
        rank=engine.rank,
        world_size=engine.world_size,
        seed=config.seed,
        crop=crop,
        masks=MaskPolicy(**asdict(config.masks)),
        threads=config.loader_threads,
        position=position,
        lanes=_lanes(config, engine.world_size),
    )


def _lanes(config: TrainConfig, world_size: int) -> int:
    return count("data.lanes", config.data.lanes) or lanes_for(world_size)


def _crossed(before: int, after: int, every: int) -> bool:
    """Return whether a multiple of `every` images was reached in this step; 0 disables."""
    return every > 0 and before // every < after // every
