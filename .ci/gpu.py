"""What a GPU shows of this software, in LIMIT_S seconds: `make gpu`, or `python .ci/gpu.py [OUT]`.

Parts come in order of worth, and correctness first. After each OUT/gpu.json is written, and
OUT/figures.md, the rows for docs/figures.md, if all of correctness holds. Nothing is installed or
downloaded. Without a GPU every part runs in a small form, which shows that the script works.
Exit status: 0 if every part that was reached holds, 1 if not.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from statistics import median

import torch

from models import GENERATORS
from models.masking import erase
from pipeline.common.environment import commit, cpu_name
from pipeline.data.photographs import write_crops
from pipeline.training import flops

ROOT = Path(__file__).resolve().parent.parent
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
LIMIT = float(os.environ.get("LIMIT_S", "480"))
BEGAN = time.monotonic()
STEPS = 100 if GPU else 30
RECIPE = (
    "experiment=quickstart model.width=0.1 data.crop=64 batch=2 processes=1 threads=1 ema=0.9 "
    "objective.style=25 objective.perceptual=0.001 validate.every_images=0 validate.size=64 "
    "validate.samples=0 log.every=1 tracking.enabled=false precision=fp32 "
    f"max_images={2 * STEPS} validate.pairs={64 if GPU else 2}"
)
REAL = {  # one recipe a network, for `smoke` at its real batch
    "msanet": "msanet/table6/places2", "musical": "musical/places",
    **{n: f"compare/{n}" for n in GENERATORS if n not in ("msanet", "musical")},
}  # fmt: skip
SMALL = {
    "attention": {"batch": 1, "size": 16, "channels": 8},
    "predict": {"images": 2, "width": 0.125},
}
TOLERANCE = {"output": 1e-3, "losses": 1e-2, "bf16 psnr": 0.5}


class NotReached(Exception):
    """No time is left, or what the part needs is absent."""


def left():
    return LIMIT - (time.monotonic() - BEGAN)


def start(*words, gpu=True):
    env = {k: v for k, v in os.environ.items() if k != "LACUNA_CONF"}
    env |= {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process):
    """Standard output of a process, which must end in time and without error."""
    try:
        out, error = process.communicate(timeout=max(1.0, left()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise NotReached("its time was up") from None
    if process.returncode:
        last = (error.strip() or out.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"exit status {process.returncode}: {last[:300]}")
    return out


def run_json(*words):
    return json.loads(ended(start("-m", "pipeline", *words, "--json")).splitlines()[-1])


def training(out, name, *words, gpu=True):
    recipe = [*RECIPE.split(), f"data.url={out / 'set'}", f"run={out / name}"]
    return start("-m", "pipeline", "train", *recipe, *words, gpu=gpu)


def lines(out, name):
    return (out / name / "steps.jsonl").read_text().splitlines()


def difference(out, one, other):
    """Largest relative difference of any loss in any step."""
    worst = 0.0
    for a, b in zip(map(json.loads, lines(out, one)), map(json.loads, lines(out, other))):
        for key in (key for key in a if key.startswith("g/")):
            worst = max(worst, abs(a[key] - b[key]) / max(abs(a[key]), 1e-12))
    return worst


def last_checkpoint(out, name):
    folder = max((out / name / "checkpoints").iterdir())
    files = sorted(folder.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def psnr(out, name):
    return json.loads((out / name / "run.json").read_text())["result"]["val/psnr"]


def data(out):
    write_crops(out / "photographs")
    ended(start("-m", "pipeline", "shard", f"source={out / 'photographs'}", f"out={out / 'set'}"))
    return {}


# --- correctness


def outputs(out):
    """Largest difference of each network's output between the device and the CPU, in fp32."""
    from pipeline.training.stepping import choose_algorithms

    choose_algorithms(deterministic=True)
    side, found = 256, {}
    drawn = torch.Generator().manual_seed(0)
    image, mask = torch.rand(2, 3, side, side, generator=drawn), torch.zeros(2, 1, side, side)
    mask[0, :, side // 4 : side // 2, side // 4 : side // 2] = mask[1, :, : side // 3, 5:40] = 1
    for name, network in GENERATORS.items():
        torch.manual_seed(0)
        small = {"ngf": 8} if name == "musical" else {"width": 0.125}
        network, erased = network(**({} if GPU else small)).eval(), erase(image, mask)
        with torch.no_grad():
            expected = network(erased, mask).image
            there = network.to(DEVICE)(erased.to(DEVICE), mask.to(DEVICE)).image
        found[name] = (there.cpu() - expected).abs().max().item()
    return {"largest difference": found, "holds": max(found.values()) <= TOLERANCE["output"]}


def losses(out):
    """The same steps in fp32 on the CPU and on the device, bit-equal after kill -9 and resume."""
    runs = [training(out, "cpu", gpu=False), training(out, "device")]
    for run in runs:
        ended(run)
    worst = difference(out, "cpu", "device")
    same = len(lines(out, "cpu")) == len(lines(out, "device")) == STEPS
    return {"steps": STEPS, "difference": worst, "holds": same and worst <= TOLERANCE["losses"]}


def resume(out):
    every = f"checkpoint.every_images={2 * (STEPS // 3)}"
    killed = training(out, "killed", every)
    checkpoints = out / "killed" / "checkpoints"
    while not list(checkpoints.glob("*/state.json")):
        if killed.poll() is not None or left() < 5:
            raise NotReached("no checkpoint before the end")
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = len(lines(out, "killed"))
    ended(training(out, "killed", every))
    equal = lines(out, "killed") == lines(out, "device")
    equal = equal and last_checkpoint(out, "killed") == last_checkpoint(out, "device")
    return {"killed after steps": before, "bit-equal": equal, "holds": equal}


def bf16(out):
    ended(training(out, "bf16", "precision=bf16"))
    worst, gap = difference(out, "device", "bf16"), psnr(out, "bf16") - psnr(out, "device")
    held = abs(gap) <= TOLERANCE["bf16 psnr"]  # single losses drift apart, as after any rounding
    return {"difference": worst, "psnr, dB": gap, "holds": held}


def tests(out):
    words = ["-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/models", "tests/pipeline/training"]
    return {"pytest": ended(start("-m", "pytest", *words)).splitlines()[-1], "holds": True}


# --- speed


def bench(what):
    def part(out):
        if GPU:
            answer = run_json("bench", what)
        elif what in SMALL:
            answer = import_module(f"pipeline.bench.{what}").run(**SMALL[what])
        else:
            raise NotReached("minutes on a CPU")
        rows = {row["name"]: median(row["seconds"]) for row in answer["rows"]}
        return {"seconds": rows, "ratios": answer["ratios"], "targets": answer["targets"]}

    return part


def steps(out):
    """Images a second and MFU of whole training steps; each variant in a process of its own."""
    found = {}
    for method in ("msanet", "musical"):
        for variant in ("eager", "channels_last", "compile") if GPU else ("eager",):
            word = ended(start(__file__, "--step", method, variant)).splitlines()[-1]
            found[f"{method} {variant}"] = json.loads(word)
    return found


def one_step(method_name, variant):
    """Time training steps of a recipe on one batch; prints JSON."""
    from pipeline.config.compose import compose
    from pipeline.config.phases import turn_at
    from pipeline.training import method
    from pipeline.training.engine import Engine
    from pipeline.training.loop import step

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    small = ["batch=1", "data.crop=96", "precision=fp32"]
    small += ["model.ngf=8"] if method_name == "musical" else ["model.width=0.125"]
    words = [f"experiment={REAL[method_name]}", "weights=random", "data.url=none", "processes=1"]
    words += ["parallel.strategy=single", "parallel.deterministic=false", *([] if GPU else small)]
    words += [f"parallel.channels_last={variant != 'eager'}".lower()]
    words += [f"parallel.compile={variant == 'compile'}".lower()]
    config = compose("train", words).config
    engine = Engine(config)
    networks = method.build(config, engine)
    flop = flops.flop_per_image(networks, engine, config)
    engine.start(networks.players)
    networks.begin(turn_at(config.objective.phases, 0, config.batch, config.objective.players))
    shape = (config.batch, config.data.crop, config.data.crop)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).to(engine.device)
    masks = (torch.rand(shape) < 0.3).to(torch.uint8).to(engine.device)

    def take(count):
        began = now()
        for _ in range(count):
            step(networks, engine, images, masks, config)
            engine.step(networks.learning, config.ema)
        return (now() - began) / count

    take(5 if GPU else 1)
    seconds = take(20 if GPU else 1)
    peak = flops.peak(torch.cuda.get_device_name(), engine.precision) if GPU else None
    rate = config.batch / seconds
    done = {"batch": config.batch, "precision": engine.precision, "images/s": rate}
    done |= {"GFLOP an image": flop / 1e9, "MFU": rate * flop / peak if peak else None}
    done |= {"peak MB": torch.cuda.max_memory_allocated() / 1e6 if GPU else None}
    print(json.dumps(done))


def now():
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def roofline(out):
    """Of each convolution of MSA-Net, forward: FLOP a byte, and FLOP/s reached."""
    network = GENERATORS["msanet"](**({} if GPU else {"width": 0.125})).to(DEVICE).eval()
    rows, began = [], {}

    def before(layer, given):
        began[layer] = now()

    def after(name):
        def hook(layer, given, made):
            seconds = now() - began[layer]
            weight = layer.weight
            flop = 2 * weight[0].numel() * made.numel()
            if isinstance(layer, torch.nn.ConvTranspose2d):
                flop = 2 * weight[0].numel() * given[0].numel()
            moved = sum(t.numel() * t.element_size() for t in (given[0], made, weight))
            rows.append(
                {"layer": name, "us": 1e6 * seconds, "FLOP/byte": flop / moved,
                 "TFLOP/s": flop / seconds / 1e12}
            )  # fmt: skip

        return hook

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    shape = (16, 3, 256, 256) if GPU else (1, 3, 64, 64)
    image = torch.rand(shape, device=DEVICE)
    mask = (torch.rand_like(image[:, :1]) < 0.3).float()
    half = torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU)
    with torch.no_grad(), half:
        network(erase(image, mask), mask)
        for name, layer in network.named_modules():
            if isinstance(layer, kinds):
                layer.register_forward_pre_hook(before)
                layer.register_forward_hook(after(name))
        network(erase(image, mask), mask)
    rows.sort(key=lambda row: -row["us"])
    for row in rows[:12]:
        print("  " + "  ".join(f"{k} {v:.4g}" if k != "layer" else v for k, v in row.items()))
    return {"layers": rows}


def smoke(name):
    def part(out):
        small = ["model.width=0.125", "batch=2", "data.crop=64"]
        small += ["validate.pairs=2", "validate.size=64"]
        if not GPU and name != "msanet":
            raise NotReached("minutes on a CPU")
        words = [f"experiment={REAL[name]}", "smoke=true", "weights=random", f"run={out}/{name}"]
        words += [f"data.url={out / 'set'}", "processes=1", *([] if GPU else small)]
        return run_json("train", *words)

    return part


PARTS = {
    "data": data,
    "outputs": outputs, "losses": losses, "resume": resume, "bf16": bf16, "gpu tests": tests,
    "steps": steps, "roofline": roofline, "bench predict": bench("predict"),
    "bench attention": bench("attention"), "smoke msanet": smoke("msanet"),
    "smoke musical": smoke("musical"), "bench train": bench("train"),
    **{f"smoke {n}": smoke(n) for n in GENERATORS if n not in ("msanet", "musical")},
}  # fmt: skip
CORRECTNESS = ("outputs", "losses", "resume", "bf16", "gpu tests")


def figures(report):
    """Rows of docs/figures.md."""
    head = f"Measured on {report['device']}, {report['date']}, commit {report['commit']}."
    rows = [head, "", "| what | figure |", "|---|---|"]
    for name, row in report["parts"].get("steps", {}).items():
        mfu = "MFU not known" if row["MFU"] is None else f"MFU {row['MFU']:.1%}"
        rows.append(
            f"| training step, {name}, batch {row['batch']}, {row['precision']} "
            f"| {row['images/s']:.1f} images/s, {mfu} |"
        )
    for bench_name in (name for name in report["parts"] if name.startswith("bench ")):
        for ratio, value in report["parts"][bench_name]["ratios"].items():
            rows.append(f"| `{bench_name}`: {ratio} | {value:.3g} |")
    return "\n".join(rows) + "\n"


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if GPU else f"{cpu_name()} (no GPU)"
    report = {"device": device, "torch": torch.__version__, "commit": commit()}
    report |= {"date": time.strftime("%Y-%m-%d"), "limit_s": LIMIT, "parts": {}}
    report |= {"failed": {}, "not reached": {}, "seconds": {}}
    for name, part in PARTS.items():
        began = time.monotonic()
        try:
            if left() < 5:
                raise NotReached("no time was left")
            report["parts"][name] = part(out)
            if not report["parts"][name].get("holds", True):
                report["failed"][name] = report["parts"][name]
        except NotReached as reason:
            report["not reached"][name] = str(reason)
        except Exception as error:
            report["failed"][name] = f"{type(error).__name__}: {error}"
        report["seconds"][name] = round(time.monotonic() - began, 1)
        (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        state = next((k for k in ("failed", "not reached") if name in report[k]), "done")
        print(f"{name}: {state}, {report['seconds'][name]} s, {left():.0f} s left", flush=True)
    right = all(n in report["parts"] and n not in report["failed"] for n in CORRECTNESS)
    if right:
        (out / "figures.md").write_text(figures(report))
    for kind in ("failed", "not reached"):
        for name, reason in report[kind].items():
            print(f"{kind}: {name}: {reason}")
    print(out / "gpu.json", out / "figures.md" if right else "(no figures: see above)")
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        one_step(*sys.argv[2:4])
    else:
        sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gpu").absolute()))
