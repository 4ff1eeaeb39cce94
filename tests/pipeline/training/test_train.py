"""Training as a user starts it: real processes, DDP over gloo, checkpoints on a disk."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.runs.checkpoints import list_checkpoints
from shards import store
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]
STEPS, BATCH = 20, 8


def steps(run):
    return [json.loads(line) for line in (Path(run) / "steps.jsonl").read_text().splitlines()]


def tensors(run, images_seen, name="generator"):
    return load_file(Path(run) / "checkpoints" / f"{images_seen:012d}" / f"{name}.safetensors")


def files(run, images_seen):
    url = store.join(str(run), "checkpoints", f"{images_seen:012d}")
    names = [n for n in store.names(url) if n.endswith(".safetensors")]
    return {name: store.read(store.join(url, name)) for name in names}


def trained(train, run, *words, status=0):
    done = train(run, *words)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def two_ranks(train, tmp_path_factory):
    """Twenty steps on two ranks, undisturbed."""
    run = tmp_path_factory.mktemp("two") / "run"
    done = trained(train, run, f"max_images={STEPS * BATCH}", "processes=2", "--json")
    return run, done


def test_a_run_leaves_what_the_contract_names(two_ranks):
    run, done = two_ranks
    assert {"config.yaml", "run.json", "steps.jsonl", "checkpoints", "samples"} <= set(
        os.listdir(run)
    )
    lines = steps(run)
    assert [line["images_seen"] for line in lines] == [BATCH * (i + 1) for i in range(STEPS)]
    assert set(lines[0]) == {"images_seen", "g/l2", "g/perceptual", "g/style", "lr", "skipped"}
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 1
    assert result["images_seen"] == STEPS * BATCH and 5 < result["val/psnr"] < 50
    assert "2 x cpu" in done.stderr and f"{STEPS * BATCH} images: val/psnr" in done.stderr


@pytest.mark.slow
def test_the_same_command_after_the_end_changes_no_result(two_ranks, train):
    run, done = two_ranks
    again = trained(train, run, f"max_images={STEPS * BATCH}", "processes=2", "--json")
    assert f"has already seen {STEPS * BATCH} of {STEPS * BATCH} images" in again.stderr
    assert json.loads(again.stdout) == json.loads(done.stdout)


def test_ten_steps_and_the_same_command_without_run_equal_twenty_bit_for_bit(
    two_ranks, verb, small_set, tmp_path
):
    """The folder's name is the hash of what was given, whatever `auto` came to at first."""
    words = ["train", *TINY, f"data.url={small_set}", f"root={tmp_path}", "processes=2"]
    for images in (STEPS * BATCH // 2, STEPS * BATCH):
        done = verb(*words, f"max_images={images}")
        assert done.returncode == 0, done.stderr
    assert "at 80 of 160" in done.stderr
    (run,) = tmp_path.glob("quickstart-*")
    assert (run / "steps.jsonl").read_bytes() == (two_ranks[0] / "steps.jsonl").read_bytes()
    ours, theirs = files(run, STEPS * BATCH), files(two_ranks[0], STEPS * BATCH)
    assert len(ours) == 3 and ours == theirs


def test_the_gradient_of_two_half_batches_is_that_of_the_whole(train, tmp_path):
    """After Adam's first step its first moment is a tenth of the gradient.

    Without the style loss: the sign in its gradient makes a jump of any rounding.
    """
    found, curves = [], []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        words = ("objective.style=0", "checkpoint.every_images=8", f"processes={processes}")
        trained(train, run, f"max_images={3 * BATCH}", *words)
        found.append(tensors(run, BATCH, "generator_optimizer"))
        curves.append([line["g/l2"] for line in steps(run)])
    whole, halves = found
    names = [name for name in whole if name.endswith("/exp_avg")]
    largest = max(float(whole[name].abs().max()) for name in names)
    assert len(names) > 50 and largest > 0
    for name in names:
        apart = float((whole[name] - halves[name]).abs().max())
        assert apart <= 1e-5 * largest, name
        assert apart <= 1e-3 * float(whole[name].abs().max()), name  # small ones are not lost
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[0][2] != pytest.approx(curves[0][1], rel=1e-2)  # other images


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.slow
@pytest.mark.dist
def test_zero_has_the_losses_of_ddp(two_ranks, train, tmp_path):
    """Three steps; but for rounding."""
    run, words = tmp_path / "run", (f"max_images={3 * BATCH}", "processes=2")
    done = trained(train, run, "parallel=zero1", *words)
    assert "2 x cpu, zero1, fp32" in done.stderr and done.stdout.count("status: finished") == 1
    ours, theirs = steps(run), steps(two_ranks[0])[:3]
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    assert theirs[2]["g/l2"] != pytest.approx(theirs[1]["g/l2"], rel=1e-2)  # it does train


@pytest.mark.slow
def test_a_checkpoint_has_the_scores_of_its_own_weights_or_none(train, tmp_path):
    """Else the best would be one that nobody validated, and the one that was would be dropped."""
    words = ["checkpoint.every_images=8", "validate.every_images=16", "checkpoint.keep=9"]
    trained(train, tmp_path / "run", *words, "max_images=40", "processes=1")
    found = {
        c.images_seen: set(c.state["metrics"]) for c in list_checkpoints(str(tmp_path / "run"))
    }
    scores = {"val/psnr", "val/ssim", "val/l1"}
    assert found == {8: set(), 16: scores, 24: set(), 32: scores, 40: scores}


def start(small_set, run, *words, env=None):
    """A training process in the background, its messages readable."""
    from tests.conftest import TINY

    words = ["train", *TINY, f"data.url={small_set}", f"run={run}", "processes=2", *words]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )


def wait_for_steps(run, count, process):
    deadline = time.monotonic() + 120
    path = Path(run) / "steps.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("asked", ["launcher", pytest.param("worker", marks=pytest.mark.slow)])
def test_a_stop_saves_and_the_same_command_resumes_bit_exactly(
    two_ranks, small_set, train, tmp_path, asked
):
    import psutil

    run = tmp_path / "run"
    process = start(small_set, run, f"max_images={STEPS * BATCH}")
    wait_for_steps(run, 3, process)
    workers = psutil.Process(process.pid).children()
    for worker in workers:  # or it would be over before the other has started
        worker.suspend()
    refused = trained(train, run, f"max_images={STEPS * BATCH}", "processes=2", status=2)
    assert re.search(r"is being trained by \S+ pid \d+", refused.stderr), refused.stderr
    if asked == "launcher":
        process.send_signal(signal.SIGINT)  # which wakes them too
    else:  # either worker: the other learns of it by the vote
        workers[1].send_signal(signal.SIGUSR1)
        for worker in workers:
            worker.resume()
    assert process.wait(180) == 75
    output = process.stderr.read()
    stopped = list_checkpoints(str(run))[-1].images_seen
    asked = "SIGINT" if asked == "launcher" else r"SIGUSR1|another rank"
    assert re.search(rf"stopped \(({asked})\): saved at {stopped} images", output), output
    assert stopped < STEPS * BATCH
    trained(train, run, f"max_images={STEPS * BATCH}", "processes=2")
    ours, theirs = files(run, STEPS * BATCH), files(two_ranks[0], STEPS * BATCH)
    assert ours == theirs
    assert (run / "steps.jsonl").read_bytes() == (two_ranks[0] / "steps.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(train, soak, tmp_path_factory):
    """A run, and its images: enough for every kill to come before its end."""
    run, images = tmp_path_factory.mktemp("undisturbed") / "run", (16 + soak.count(30) * 8) * BATCH
    trained(train, run, f"max_images={images}", "processes=2")
    return run, images


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.s3
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_kills_at_random_points_change_no_bit(
    undisturbed, small_set, train, tmp_path, request, soak, place
):
    """Rank 0, rank 1 and the launcher in turn; on a bucket that fails, each time as a new pod."""
    import psutil

    run, draw, words = (
        str(tmp_path / "run"),
        random.Random(soak.seed),
        ["checkpoint.every_images=8", "cluster.retries=0"],
    )
    if place == "bucket":
        faults = request.getfixturevalue("faults")
        run = f"{faults.server.bucket()}/run"
        faults.set(
            {"act": "status", "status": 503, "code": "SlowDown", "rate": 0.1},
            {"act": "reset", "rate": 0.05},
        )
    expected, images = undisturbed
    words += [f"max_images={images}"]
    for kill in range(soak.count(30)):
        cache = {"XDG_CACHE_HOME": str(tmp_path / f"cache{kill}")}
        process = start(small_set, run, *words, env=cache)
        if kill % 2:  # in the middle of training; else at any moment from the start on
            wait_for_more(run, saved(run), process)
        time.sleep(draw.uniform(0, 0.3 if kill % 2 else 6))
        assert process.poll() is None, process.stderr.read()
        workers = psutil.Process(process.pid).children()
        victims = [process, *sorted(workers, key=lambda p: int(rank_of(p)))]
        victims[kill % 3 if len(victims) == 3 else 0].kill()
        assert process.wait(180) != 0
        psutil.wait_procs(workers, timeout=30)
        assert not [w for w in workers if w.is_running()], "a worker trains on"
    assert 0 < saved(run) < images
    trained(train, run, *words, "processes=2")
    assert files(run, images) == files(expected, images)
    kept = store.read(store.join(run, "steps.jsonl"))
    assert kept == (expected / "steps.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.soak
def test_workers_killed_and_stopped_at_random_start_again_in_place_and_no_bit_changes(
    undisturbed, small_set, tmp_path, soak
):
    """One launcher throughout. The first is killed, the second hangs; then as drawn."""
    import psutil

    expected, images = undisturbed
    run, draw, faults = str(tmp_path / "run"), random.Random(soak.seed), soak.count(20)
    words = [f"max_images={images}", "checkpoint.every_images=16", "parallel.hang_timeout=6"]
    words += ["parallel.restart_in_place=true"]
    process = start(small_set, run, *words)
    found = []
    try:
        for number in range(faults):
            wait_for_more(run, saved(run) + 16, process)  # past first steps: they may take longer
            time.sleep(draw.uniform(0, 0.3))
            stops = number == 1 or number > 1 and draw.random() < 0.3
            workers = sorted(psutil.Process(process.pid).children(), key=lambda p: p.create_time())
            victim = workers[draw.randrange(2)]  # those that wait for the next failure came later
            found.append(("is silent" if stops else "SIGKILL", rank_of(victim)))
            victim.send_signal(signal.SIGSTOP if stops else signal.SIGKILL)
            end = time.monotonic() + 120
            while sum("repeated" in each for each in restarts(run)) <= number:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
        assert process.wait(600) == 0, process.stderr.read()
    finally:
        process.kill()
    for each, (word, rank) in zip(restarts(run), found, strict=True):
        assert f"rank {rank} on " in each["cause"] and word in each["cause"]
        assert each["seconds"] > 0 and each["repeated"] >= 0
    assert files(run, images) == files(expected, images)
    assert Path(run, "steps.jsonl").read_bytes() == (expected / "steps.jsonl").read_bytes()


def restarts(run):
    path = Path(run, "run.json")
    return json.loads(path.read_text()).get("restarts", []) if path.exists() else []


def saved(run):
    """images_seen of the newest checkpoint; 0 where there is none."""
    return max((c.images_seen for c in list_checkpoints(run)), default=0)


def wait_for_more(run, before, process):
    deadline = time.monotonic() + 120
    while saved(run) <= before:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def rank_of(process):
    return process.environ()["RANK"]


def refused(train, run, *words):
    done = train(run, *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_invalid_configurations_are_refused_before_a_worker_starts(
    two_ranks, train, small_set, tmp_path
):
    run, fresh = two_ranks[0], tmp_path / "fresh"
    assert "with seed=1: it was started with seed=0" in refused(train, run, "seed=1")
    assert "batch=8 is not divisible by 3" in refused(train, fresh, "processes=3")
    assert "data.train=trian is not a split" in refused(train, fresh, "data.train=trian")
    assert "no manifest.json" in refused(train, fresh, f"data.url={tmp_path}")
    assert "data.validate=test: the best" in refused(train, fresh, "data.validate=test")
    assert "holds no checkpoint: give a run" in refused(train, fresh, f"init={tmp_path}")
    single = refused(train, fresh, "parallel=single", "processes=2")
    assert "parallel=single is one process" in single
    assert "invalid processes=all" in refused(train, fresh, "processes=all")
    assert not fresh.exists()


@pytest.mark.slow
def test_errors_inside_a_worker_are_one_line_too(train, tmp_path):
    for words, message in (
        (("precision=fp16",), "precision=fp16 needs a GPU"),
        (("cluster.gpus_per_node=8",), "torch sees no GPU"),
        (("data.crop=128",), "96"),
    ):
        done = train(tmp_path / "run", *words, "processes=1")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.06, 0.0])
def test_musical_trains_with_its_discriminator_or_builds_none(verb, small_set, tmp_path, weight):
    done = verb(
        "train",
        "model=musical",
        "model.ngf=8",
        "objective=musical_released",
        "weights=random",
        f"objective.adv={weight}",
        "masks=center",
        "data.crop=96",
        f"data.url={small_set}",
        f"run={tmp_path}/run",
        "batch=4",
        "accumulate=2",
        "processes=1",
        "threads=1",
        "max_images=8",
        "validate.size=96",
        "validate.pairs=2",
        "tracking.drain=false",
        process=False,
    )
    assert done.returncode == 0, done.stderr
    spool = "".join(p.read_text() for p in (tmp_path / "run" / "spool").glob("*.jsonl"))
    assert '"weights.vgg16": "random"' in spool
    assert ('"weights.densenet121": "random"' in spool) == (weight > 0)
    adversarial = {"g/adv", "d/loss"}
    for line in steps(tmp_path / "run"):
        found = adversarial & set(line)
        assert found == (adversarial if weight else set())
        assert all(line[name] is not None for name in line)
    names = {n.partition("_")[0].partition(".")[0] for n in files(tmp_path / "run", 8)}
    assert names == ({"generator", "discriminator"} if weight else {"generator"})
