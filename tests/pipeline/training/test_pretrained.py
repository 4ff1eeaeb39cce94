"""Nothing starts or is queued that would train on weights that nobody fetched."""

import hashlib
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs import scheduler
from models.densenet import DenseNetDiscriminator
from models.vgg import VGG16Features, VGG19Features
from pipeline import cli
from pipeline.config.compose import compose
from pipeline.launch import workers
from pipeline.training import launcher, pretrained, weights
from shards import store

ROOT = Path(__file__).resolve().parents[3]
NETWORKS = {"vgg16": partial(VGG16Features, blocks=5), "densenet121": DenseNetDiscriminator}
PAPER, RELEASED = "objective=musical_paper", "objective=musical_released"
# Read off conf/objective and the papers: what each looks at with published weights.
OBJECTIVES = {
    ("objective=msanet",): [],
    ("objective=msanet_vgg",): ["vgg16"],
    (PAPER,): ["vgg16", "densenet121"],
    (RELEASED,): ["vgg16"],  # its discriminator is drawn afresh
    (PAPER, "objective.adv=0"): ["vgg16"],
    (PAPER, "objective.style=0", "objective.perceptual=0"): ["densenet121"],
    ("model=msanet", RELEASED, "objective.d_pretrained=true"): ["vgg16", "densenet121"],
}
TAKING = [words for words, names in OBJECTIVES.items() if names]
PODS = ("cluster=kubernetes", "cluster.image=r/x@sha256:0", "cluster.gpus_per_node=0",
        "tracking.enabled=false", "cluster.volumes={c: /}")  # fmt: skip
SLURM = ("cluster=slurm", "cluster.gpus_per_node=0", "cluster.code=image")
WAYS = {
    "train": ("train",),
    "dry": ("train", "--dry-run"),
    "smoke": ("train", "smoke=true"),
    "slurm": ("submit", "train", *SLURM),
    "local": ("submit", "train", "cluster=local", "cluster.code=image"),
    "kubernetes": ("submit", "train", *PODS),
    "smoke on kubernetes": ("submit", "train", "smoke=true", *PODS),
    "sweep": ("submit", "train", "seed=0,1", *SLURM),
    "chain": ("submit", "shard", "source=.", "out=../out", *SLURM, "then", "train"),
}


class Started(BaseException):
    """Workers were started, or a job was queued."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Folders of its own; whatever would start raises `Started`."""

    def started(*_, **__):
        raise Started

    monkeypatch.chdir(tmp_path)
    for name in ("LACUNA_CONF", "MLFLOW_TRACKING_URI", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(workers, "supervise", started)
    monkeypatch.setattr(scheduler, "submit", started)
    monkeypatch.setattr(scheduler, "judge", lambda _: None)
    monkeypatch.setattr(scheduler, "located", lambda cluster: cluster)
    before = {n: signal.getsignal(n) for n in launcher.STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def begun(small_set, tmp_path, capsys):
    """`begun(way, words…)`: the exit status and stderr, or None where it began."""

    def begin(way, *words):
        given = [*WAYS[way], "model.width=0.1", "data.crop=96", "validate.size=96", *words,
                 "tracking.enabled=false"]  # fmt: skip
        given += ["processes=1"] if way in ("train", "dry", "smoke") else []
        given += [f"root={tmp_path}/runs", f"data.url={small_set}"]
        try:
            return cli.main(given), capsys.readouterr().err
        except Started:
            return None, capsys.readouterr().err

    return begin


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A folder of what `fetch` leaves, of the networks' own tensors."""
    folder = tmp_path_factory.mktemp("fetched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name, network in NETWORKS.items():
            torch.save(network().state_dict(), folder / f"{name}.pth")
            digest = hashlib.sha256((folder / f"{name}.pth").read_bytes()).hexdigest()
            weights.fetch(name, str(folder / f"{name}.pth"), digest)
    return folder / "lacuna" / "weights"


@pytest.fixture
def cached(fetched):
    """`cached(names…)`: they lie in the cache."""

    def put(*names):
        for name in names:
            weights.cached(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(fetched / f"{name}.safetensors", weights.cached(name))

    return put


def upload(folder, url):
    for path in (p for p in Path(folder).rglob("*") if p.is_file()):
        store.upload(store.join(url, str(path.relative_to(folder))), path)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        *OBJECTIVES.items(),
        (("objective=pconv",), ["vgg16"]),
        (("objective=edgeconnect",), ["vgg19"]),
        (("objective=edgeconnect", "objective.style=0", "objective.perceptual=0"), []),
    ],
)
def test_the_weights_that_an_objective_needs(words, names):
    assert compose("train", list(words)).config.objective.published() == names


def test_missing_weights_are_refused_without_torch():
    program = "import sys, pipeline.training.preflight; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("way", "words"), [*(("train", words) for words in TAKING), *((way, TAKING[1]) for way in WAYS)]
)
def test_an_empty_cache_is_refused_before_anything_starts(begun, tmp_path, way, words):
    status, output = begun(way, *words)
    name = OBJECTIVES[words][0]
    assert status == 2, output
    last = output.splitlines()[-1]
    assert f"{tmp_path}/cache/lacuna/weights/{name}.safetensors" in last, last
    for fix in (f"python -m pipeline fetch {name}", "weights=random", "URL"):
        assert fix in last
    runs = tmp_path / "runs"
    assert not [p for p in runs.rglob("*") if p.name in ("config.yaml", "job.json", "job.sbatch")]


@pytest.mark.parametrize("way", ["train", "smoke", "slurm", "kubernetes"])
def test_weights_random_needs_no_files(begun, way):
    assert begun(way, PAPER, "weights=random")[0] is None
    assert not Path("cache/lacuna/weights").exists()


@pytest.mark.parametrize("way", ["train", "smoke", "local", "chain"])
def test_cached_weights_are_used_and_missing_ones_are_named(begun, cached, way):
    cached("vgg16")
    assert begun(way, "objective=msanet_vgg")[0] is None
    status, output = begun(way, PAPER)
    assert status == 2 and "densenet121.safetensors" in output.splitlines()[-1]


def cut(data):
    return data[:-100]


def flipped(data):
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize(
    ("way", "spoil"),
    [
        ("train", cut),
        ("slurm", flipped),
        ("kubernetes", lambda _: b""),
        ("train", lambda _: b"<html>no such file"),
    ],
)
def test_a_damaged_file_is_refused_before_anything_starts(begun, cached, way, spoil):
    cached("vgg16")
    path = weights.cached("vgg16")
    path.write_bytes(spoil(path.read_bytes()))
    status, output = begun(way, "objective=msanet_vgg")
    assert status == 2, output
    last = output.splitlines()[-1]
    assert f"{path} is damaged" in last and "fetch vgg16" in last


@pytest.mark.parametrize(
    ("words", "name", "theirs"),
    [
        (("objective=msanet_vgg",), "vgg16", partial(VGG19Features)),
        ((PAPER,), "densenet121", partial(VGG16Features, blocks=5)),
        (("model=gmcnn", "model.dilations=[2]", "objective=gmcnn"), "vgg19", NETWORKS["vgg16"]),
    ],
)
def test_the_weights_of_a_sibling_are_refused(begun, cached, words, name, theirs):
    cached("vgg16")
    save_file(theirs().state_dict(), weights.cached(name))
    status, output = begun("train", *words)
    assert status == 2 and f"{name}.safetensors is not of {name}" in output.splitlines()[-1], output


def test_a_folder_or_url_replaces_the_cache(begun, cached, tmp_path):
    cached("vgg16")
    Path("cache/lacuna/weights").rename("theirs")
    assert begun("train", "objective=msanet_vgg", f"weights={tmp_path}/theirs")[0] is None
    status, output = begun("train", "objective=msanet_vgg", "weights=radnom")
    assert status == 2 and "weights=radnom: radnom/vgg16.safetensors cannot be read" in output
    status, output = begun("kubernetes", PAPER, f"weights={tmp_path}/theirs")
    assert status == 2 and "densenet121.safetensors" in output


def test_a_file_of_an_earlier_version_is_still_read(begun):
    weights.cached("vgg16").parent.mkdir(parents=True)
    save_file(VGG16Features().state_dict(), weights.cached("vgg16"), {"sha256": "ab" * 32})
    assert begun("train", "objective=msanet_vgg")[0] is None


# Row 48
@pytest.mark.parametrize("cluster", [SLURM, ("cluster=local", "cluster.code=image")])
def test_a_job_on_this_disk_reads_the_submitters_cache(
    begun, cached, tmp_path, monkeypatch, cluster
):
    cached("vgg16")
    monkeypatch.setattr(scheduler, "submit", lambda rendered, _: ["7" for _ in rendered.stages])
    way = "slurm" if cluster is SLURM else "local"
    status, output = begun(way, "objective=msanet_vgg")
    assert status == 0, output
    (config,) = tmp_path.glob("runs/*/config.yaml")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    pretrained.check(compose("train", [f"run={config.parent}"]).config)
    assert f"weights: {tmp_path}/cache/lacuna/weights\n" in config.read_text()


# Row 48
@pytest.mark.s3
@pytest.mark.parametrize("more", [(), ("smoke=true",), ("seed=0,1",)])
def test_a_job_brings_the_files_to_pods_with_an_empty_cache(
    bucket, small_set, cached, tmp_path, monkeypatch, more
):
    cached("vgg16", "densenet121")
    data = f"{bucket}/set"
    upload(small_set, data)
    monkeypatch.setattr(scheduler, "submit", lambda rendered, _: ["7" for _ in rendered.stages])
    words = ["submit", "train", *PODS, PAPER, "data.crop=96", "validate.size=96", *more]
    assert cli.main([*words, f"root={bucket}/runs", f"data.url={data}"]) == 0
    kept = {name: weights.cached(name).read_bytes() for name in NETWORKS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "pod"))
    places = [store.join(bucket, "runs", n) for n in store.names(f"{bucket}/runs")]
    configs = [f"{p}/config.yaml" for p in places if store.exists(f"{p}/config.yaml")]
    assert len(configs) == (2 if "seed=0,1" in more else 1)
    for url in configs:
        config = compose("train", [f"config={url}"]).config
        assert config.weights.startswith(bucket)
        assert {name: pretrained.read(config.weights, name) for name in NETWORKS} == kept


@pytest.mark.s3
def test_a_refused_submission_leaves_no_weights_in_the_bucket(bucket, small_set, cached):
    cached("vgg16")
    upload(small_set, f"{bucket}/set")
    words = ["submit", "train", *PODS, "objective=msanet_vgg", f"root={bucket}/runs"]
    with pytest.raises(Started):
        cli.main([*words, "data.crop=96", "validate.size=96", f"data.url={bucket}/set"])
    (run,) = store.names(f"{bucket}/runs")
    left = set(store.names(f"{bucket}/runs/{run}")) - {".lock", ".submit"}  # released leases
    assert not left


# Row 48
@pytest.mark.parametrize("scheduled", ["slurm", "local"])
@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "AWS_REGION", "MLFLOW_TRACKING_URI"])
def test_a_job_gets_what_it_needs_to_reach_cache_store_and_server(monkeypatch, scheduled, name):
    from pipeline.submission import submit

    monkeypatch.setenv(name, "https://there.example.org/a")
    script = submit.main([*WAYS[scheduled][1:], "data.url=set"], dry_run=True)
    assert f"export {name}=https://there.example.org/a\n" in script
    monkeypatch.delenv(name)
    assert name not in submit.main([*WAYS[scheduled][1:], "data.url=set"], dry_run=True)


def test_a_container_and_a_pod_have_a_cache_of_their_own(monkeypatch, tmp_path):
    from pipeline.submission import submit

    box = ["cluster.container=pyxis", "cluster.image=r/x@sha256:0", "cluster.python=python"]
    words = [*WAYS["slurm"][1:], *box, f"root={tmp_path}", "data.url=/set"]
    plain = submit.main(words, dry_run=True)
    needing = submit.main([*words, "objective=msanet_vgg"], dry_run=True)
    assert "XDG_CACHE_HOME" not in plain + needing
    mount = f"{tmp_path}/cache/lacuna/weights"
    assert f"{mount}:{mount}" in needing and mount not in plain
