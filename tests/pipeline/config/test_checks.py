"""What each command's configuration is refused for, before it runs and before it is queued."""

from contextlib import nullcontext

import pytest
import torch

from models import GENERATORS
from models.densenet import DenseNetDiscriminator
from models.discriminators import StackDiscriminator
from pipeline import cli
from pipeline.common.errors import ConfigError
from pipeline.comparison import papers
from pipeline.config import checks, methods, schema
from pipeline.config.commands import AS_JOBS, COMMANDS
from pipeline.config.compose import compose
from pipeline.config.groups import ValidateConfig
from pipeline.config.methods import musical
from pipeline.config.resolve import entries
from pipeline.submission import submit
from pipeline.training.weights import PUBLISHED

REFUSED = {
    "train": [
        ("data.url=null", "data.url= is missing: the sharded set to train on"),
        ("objective.phases=[]", "objective.phases is empty"),
        ("objective.phases=[{until: null}, {until: 5}]", "ends must increase"),
        ("objective.betas=[0.9]", "expected two numbers"),
        ("model=glc", "objective.features=internal compares features of the generator, and mod"),
        ("model=pconv objective.perceptual=0", "model=pconv has none: give objective.features=v"),
        ("model=musical objective.style=0", "model=musical has none"),
        ("processes=all", "invalid processes=all: expected a positive integer or auto"),
        ("processes=0", "invalid processes=0"),
        ("threads=-1", "invalid threads=-1"),
        ("parallel=zero1 precision=fp16", "parallel=zero1 takes bf16 or fp32"),
        ("data.validate=test", "the best checkpoint would be selected on"),
        ("masks.kind=none", "masks.kind=none leaves no hole"),
        ("masks.low=0.5 masks.high=0.5", "masks.low=0.5 is not below masks.high=0.5"),
        ("masks.kind=external", "masks.kind=external needs masks.url="),
        ("masks.url=m", "masks.url=m needs masks.kind=external"),
        ("masks.kind=square masks.sides=[96,257]", "sides of at most data.crop=256"),
        ("masks.kind=square masks.sides=[9,65] validate.size=64", "and validate.size=64"),
        ("masks.kind=square masks.sides=[96,64]", "expected increasing sides"),
        ("masks.high=0.9 masks.border=0.5", "does not fit inside the border constraint"),
        ("data.crop=100", "data.crop=100 does not fit model=msanet: give a multiple of 8"),
        ("validate.size=32", "validate.size=32 does not fit model=msanet: give a multiple of 8"),
        (
            "model=musical objective.features=vgg16 data.crop=104",
            "fit model=musical: give a multiple of 16, at least 48",
        ),
        (
            "objective=edgeconnect",
            "model=msanet does not fit objective.method=edgeconnect: give mo",
        ),
        (
            "model=edgeconnect objective=edgeconnect data.crop=20",
            "discriminator of objective.method=edgeconnect: give a multiple of 8, at least 24",
        ),
        (
            "model=edgeconnect objective=edgeconnect "
            "objective.phases=[{rates:{generator.image:1e-4}}]",
            "objective.phases give discriminator.edges no learning rate",
        ),
        (
            "model=deepfill objective=deepfill parallel=zero2",
            "parallel=zero2 cannot differentiate the gradient penalty of objective.method=deepf",
        ),
        (
            "model=deepfill objective=deepfill parallel.compile=true",
            "parallel.compile=true cannot differentiate the gradient penalty",
        ),
        (
            "model=deepfill objective=deepfill data.crop=144",
            "discriminator of objective.method=deepfill: give a multiple of 32, at least 32",
        ),
        ("objective=musical_paper data.crop=80", "does not fit the discriminator of objective."),
        (
            "model=musical objective=musical_paper data.crop=208",
            "give a multiple of 32, at least 96",
        ),
        ("data.resize_short=80", "data.crop=256 is larger than data.resize_short=80"),
        ("data.resize_short=80 data.crop=64", "validate.size=256 is larger than data.resize_short"),
        (
            "model=musical objective=musical_paper model.attention=direct",
            "give model.order=released, or model.attention=",
        ),
        ("model.iru=[64]", "model.iru=[64] does not fit model.fe=[64, 64]"),
        ("model.taps=5", "taps at most 4"),
        ("init=models:/a/b/c", "invalid models:/a/b/c: expected models:/NAME@champion"),
    ],
    "evaluate": [
        ("model=telea masks.url=m out=d/photo.png", "out=d/photo.png: results are a table; give a"),
        ("model=telea masks.url=m out=s3://b/folder", "out=s3://b/folder: results are a table"),
        ("model=telea masks.url=m out=a.csv", "a file that ends in .parquet"),
        ("model=telea data.url=null", "data.url= is missing: the sharded set that holds"),
        ("", "nothing to score: give one of checkpoint="),
        ("model=telea checkpoint=c", "checkpoint= and model= are given"),
        ("export=e model=telea predictions=p", "model= and predictions= are given"),
        ("model=telea features=f", "features= needs the layers of a generator"),
        ("model=telea processes=two", "invalid processes=two"),
        ("model=telea", "masks.url= is missing: this protocol needs a set of masks"),
        ("model=telea protocol.buckets=[center,'(0.1,0.2]']", "masks.url= is missing"),
        ("model=telea masks.url=m protocol.ssim=uniform51_gray protocol.size=48", "at least 51"),
        ("model=telea masks.url=m data.resize_short=200", "protocol.size=256 is larger than data."),
        ("model=models:/@b masks.url=m", "invalid models:/@b: expected models:/NAME@champion"),
        ("predictions=p export=./p masks.url=m", "export: ./p would overwrite the input predict"),
    ],
    "shard": [
        ("source=s", "shard: out= is missing"),
        ("action=verify", "shard verify needs the URL"),
        ("action=gc", "shard gc needs the URL"),
        ("source=s3://b/x out=o", "source=s3://b/x: published files are read from a local disk"),
        ("source=https://h/x.tar out=o", "source=https://h/x.tar: published files"),
        ("data=celeba source=gs://b/x out=o", "copy them there first"),
        ("data=places365_standard source=s3://b/x.tar out=o", "(WebDataset tars, data=wds, are"),
        ("source=s out=o task=9/8", "invalid task=9/8: expected I/N with 0 <= I < N"),
        ("source=s out=o task=a", "invalid task=a: expected I/N"),
        ("source=s out=o data.layout=foo", "unknown data.layout=foo: choose one of folder"),
        ("data=wds source=s out=o task=0/8", "existing tars are indexed by one process"),
        ("data=wds source=s out=o workers=2", "existing tars are indexed by one process"),
        ("source=s out=s/new", "out: s/new lies inside the input source=s"),
        ("gc url=s older_than=1h", "older_than=1h is less than 24h"),
    ],
    "masks": [
        ("out=m source=s3://b/masks.zip", "source=s3://b/masks.zip: published files are read"),
        ("out=s3://b/m source=s3a://b/masks", "copy them there first"),
        ("out=m source=m", "out: m would overwrite the input source=m"),
    ],
    "predict": [
        ("tile=100 overlap=60", "overlap=60 with tile=100: expected 0 < overlap < tile / 2"),
        ("mask=1,2,3", "mask=1,2,3: a rectangle is x,y,w,h in whole pixels"),
        ("out=o.gif", "out=o.gif: results are not written as .gif; use one of .png, .jpg"),
        ("model=models:/a/b/c", "invalid models:/a/b/c"),
    ],
    "demo": [("model=telea against=models:/@x", "invalid models:/@x")],
    "register": [("run=r name=a/b", "invalid name of a registered model 'a/b'")],
    "promote": [
        ("model=-x", "invalid name of a registered model '-x'"),
        ("model=a@champion", "invalid name of a registered model 'a@champion'"),
        ("model=a/first", "invalid models:/a/first"),
        ("model=a into=a:b", "invalid name of a registered model 'a:b'"),
    ],
    "rollback": [("model=a/1", "invalid name of a registered model 'a/1'")],
    "runs": [
        ("prune keep=none", "keep=none is not allowed: expected best, last or best,last"),
        ("prune older_than=1h", "older_than=1h is less than 24h"),
        ("close older_than=soon", "invalid older_than='soon'"),
    ],
    "fetch": [
        (
            "vgg6",
            "invalid value names=vgg6; did you mean vgg16? (allowed: vgg16, vgg19, densenet121, "
            "alexnet, lpips_vgg, lpips_alex, dists, stlpips, inception)",
        ),
        ("sha256=0123abcd", "sha256= is for one file: give one name of vgg16, vgg19, densenet121"),
        ("vgg16 sha256=xyz", "invalid sha256=xyz: give its first 8 to 64 hexadecimal digits"),
    ],
    "quickstart": [("out=s3://b/out", "invalid out='s3://b/out': expected a folder")],
    "compare": [("table=7", "invalid value table=7 (allowed: 1, 2, 3, 4, 5, 6, musical/1")],
}
GIVEN = {  # words without which each of the rows above would be refused for what it lacks
    "train": ["data.url=s"],
    "evaluate": ["data.url=s"],
    "predict": ["model=telea", "image=d", "mask=alpha", "out=o"],
}
SUBMIT = ["cluster=slurm", "cluster.code=image", "cluster.gpus_per_node=0"]
ACCEPTED = {
    "train": [
        "processes=2 threads=1",
        "parallel=zero1 precision=bf16",
        "masks.kind=square",
        "init=models:/a/latest",
        "data.crop=104",
        "model=glc objective.features=vgg16",
        "model=glc objective.perceptual=0 objective.style=0",
        "model=deepfill objective=deepfill objective.local=masked data.crop=144",
        "model=deepfill objective=deepfill objective.penalty=0 parallel=zero1 precision=bf16",
        "data.crop=300 data.resize_short=256 data.crop_mode=resized data.crop=304",
    ],
    "evaluate": [
        "export=e masks.url=m",
        "export=e model=telea masks.url=m",
        "checkpoint=c features=f masks.url=m",
        "model=telea masks.url=m out=s3://b/a.parquet",
        "model=models:/a@champion protocol.buckets=[center]",
    ],
    "shard": [
        "",
        "source=s out=o",
        "source=file:///s out=o",
        "action=info url=u",
        "data=wds source=s3://b/x out=o",
        "data=wds source=https://h/x.tar out=o",
    ],
    "masks": ["out=m", "out=m source=file:///s"],
    "predict": ["mask=1,2,3,4", "mask=m out=o.png image=a.jpg", "overlap=255"],
    "promote": ["model=a/7", "model=a"],
    "runs": ["prune older_than=2d keep=last", "list"],
    "fetch": ["", "vgg16 sha256=0123ABCD", "vgg16 densenet121"],
    "compare": ["", "table=6", "table=musical/1"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")


def words_of(command, text):
    words = text.replace("}, {", "},{").replace(": ", ":").split()
    names = {word.partition("=")[0] for word in words}
    lacking = [w for w in GIVEN.get(command, []) if w.partition("=")[0] not in names]
    return [*words, *lacking]


ROWS = [(c, *row) for c, rows in REFUSED.items() for row in rows]


@pytest.mark.parametrize(("command", "text", "message"), ROWS)
def test_a_wrong_configuration_is_refused_in_one_line(capsys, command, text, message):
    assert cli.main([command, *words_of(command, text), "--dry-run"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


@pytest.mark.parametrize(("command", "text", "message"), ROWS)
def test_and_it_is_not_queued_either(tmp_path, command, text, message):
    """As the later part of a chain, of which nothing is run or opened before."""
    words = ["fetch", "vgg16", *SUBMIT, "then", command, *words_of(command, text)]
    with pytest.raises(ValueError) as error:
        submit.main(words, dry_run=True)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "text"), [(c, t) for c, ts in ACCEPTED.items() for t in ts])
def test_a_right_configuration_is_accepted(command, text):
    words = COMMANDS[command], words_of(command, text)
    COMMANDS[command].check(compose(command, cli.positional(*words)).config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("batch=8 cluster.nodes=3", "batch=8 is not divisible by cluster.nodes=3 x 1 processes"),
        ("batch=8 accumulate=3", "choose a multiple of 3"),
        ("batch=8 parallel=single cluster.nodes=2", "parallel=single is one process, but cluster"),
        ("precision=fp16", "precision=fp16 needs a GPU"),
    ],
)
def test_what_depends_on_the_processes_of_a_run_is_checked_in_each_part_of_a_chain(words, message):
    train = ["train", "data.url=s", *words.split()]
    for before in ([*train, *SUBMIT], ["masks", "out=m", *SUBMIT, "then", *train]):
        with pytest.raises(ConfigError, match=message):
            submit.main(before, dry_run=True)
    on_gpus = [word.replace("gpus_per_node=0", "gpus_per_node=1") for word in SUBMIT]
    if "fp16" in words:
        assert submit.main([*train, *on_gpus], dry_run=True)


def test_a_set_that_one_process_indexes_is_not_divided_into_tasks():
    words = ["shard", "source=s", "out=o", *SUBMIT, "cluster.tasks=8"]
    with pytest.raises(ConfigError, match=r"one process; remove task= \(or cluster.tasks=\)"):
        submit.main([*words, "data=wds"], dry_run=True)
    assert submit.main(words, dry_run=True)


# --- facts about what needs torch -----------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "model=msanet",
        "model=msanet_const",
        "model=musical",
        "model=pconv",
        "model=pconv model.levels=5",
        "model=glc",
        "model=glc model.dilations=[1,3]",
        "model=glc model.dilations=[]",
        "model=gmcnn",
        "model=gmcnn model.dilations=[3,1]",
        "model=shiftnet",
        "model=shiftnet model.levels=5",
        "model=context_encoder",
        "model=context_encoder model.levels=5 model.output=center",
        "model=edgeconnect",
        "model=lama",
        "model=deepfill",
        "model=msanet model.fe=[8] model.msau=[[8,4]] model.iru=[8] model.taps=1",
        "model=msanet model.fe=[8,8,8,8] model.msau=[[8,4]] model.iru=[8,8,8,8]",
    ],
)
def test_sides_are_those_of_the_networks(words):
    model = compose("train", words.split()).config.model
    options = {name: value for name, value in vars(model).items() if name != "name"}
    with torch.device("meta"):
        network = GENERATORS[model.name](**options)
    assert model.sides() == (network.multiple, network.smallest)
    assert (DenseNetDiscriminator.multiple, DenseNetDiscriminator.smallest) == musical.DISCRIMINATOR


def test_names_of_weights_and_tables_are_those_that_there_are():
    assert tuple(PUBLISHED) == schema.WEIGHTS
    assert tuple(papers.load()["tables"]) == schema.TABLES


@pytest.mark.parametrize(("batch", "world", "accumulate"), [(8, 3, 1), (8, 2, 3), (6, 4, 1)])
def test_a_batch_that_processes_cannot_share_equally_is_refused(batch, world, accumulate):
    config = compose("train", [f"batch={batch}", f"accumulate={accumulate}"]).config
    with pytest.raises(ConfigError, match=f"choose a multiple of {world * accumulate}$"):
        checks.workers(config, world)
    config.batch = world * accumulate * 2
    checks.workers(config, world)


CE, GLC = "model=context_encoder objective=context_encoder", "model=glc objective=glc"
SMALL = "model.levels=4 objective.d_levels=4 data.crop=64 validate.size=64"


@pytest.mark.parametrize(
    ("words", "world", "refused"),
    [
        (f"{CE} {SMALL} batch=2", 2, False),
        (f"{CE} {SMALL} batch=2 parallel.sync_batchnorm=false", 2, True),
        (f"{CE} {SMALL} batch=2 parallel.sync_batchnorm=false", 1, False),
        (f"{CE} {SMALL} batch=2 accumulate=2", 1, True),
        (f"{CE} {SMALL} batch=1", 1, True),
        (f"{CE} {SMALL} batch=1 data.crop=80", 1, False),
        (f"{GLC} data.crop=64 batch=2 parallel.sync_batchnorm=false", 2, True),
        (f"{GLC} data.crop=128 batch=2 parallel.sync_batchnorm=false", 2, False),
        ("model=msanet batch=2 parallel.sync_batchnorm=false", 2, False),
    ],
)
def test_a_batch_norm_over_a_single_value_is_refused(words, world, refused):
    config = compose("train", words.split()).config
    message = r"would average a single value; give parallel\.sync"
    with pytest.raises(ConfigError, match=message) if refused else nullcontext():
        checks.workers(config, world)


@pytest.mark.parametrize("side", [64, 80, 128])
def test_torch_refuses_the_batch_norms_that_we_do(side):
    """One image: torch's own batch norm raises where there is a single cell."""
    model = methods.ContextEncoderModel(levels=4, width=0.1)
    options = {name: value for name, value in vars(model).items() if name != "name"}
    networks = [(model, lambda x, m: GENERATORS["context_encoder"](**options)(x, m))]
    if side % 64 == 0:  # GLC's global half
        judge = StackDiscriminator(side, [8] * 6, norm="batch", act="relu")
        networks.append((methods.GlcObjective(), lambda x, m: judge(x)))
    for config, network in networks:
        try:
            network(torch.rand(1, 3, side, side), torch.ones(1, 1, side, side))
        except ValueError as error:
            assert "more than 1 value per channel" in str(error)
            assert config.normalized(side) == 1
        else:
            assert config.normalized(side) > 1


# --- keys that hold a path ------------------------------------------------------------------------

PATHS = {  # + for what is written, ++ if it may be a file
    "quickstart": "+out",
    "doctor": "+url",
    "fetch": "source",
    "import": "file +out",
    "shard": "source +out url",
    "masks": "+out source",
    "train": "run init weights data.url masks.url",
    "evaluate": "checkpoint model predictions verify +export data.url masks.url ++out +features",
    "compare": "runs +out",
    "register": "run",
    "promote": "run pairs",
    "predict": "model image mask.file ++out",
    "export": "model ++out",
    "demo": "model against",
    "sync": "dir",
}


@pytest.mark.parametrize("command", AS_JOBS)
def test_each_key_that_holds_a_path_is_marked_as_one(command):
    signs = {"read": "", "read or name": "", "written": "+", "written file": "++"}
    marked = [
        signs[f.metadata["path"]] + name
        for name, _, f in entries(COMMANDS[command].schema())
        if f.metadata.get("path")
    ]
    assert " ".join(marked) == PATHS.get(command, "")


@pytest.mark.parametrize(
    ("every", "longest", "interval"),
    [
        (20_000, 9_600_000, 200_000),
        (20_000, 1_000_000, 20_000),
        (20_000, 1_000_001, 40_000),
        (500, 300, 500),
        (0, 10**7, 0),
    ],
)
def test_a_run_validates_at_most_fifty_times_at_multiples_of_the_given_interval(
    every, longest, interval
):
    assert ValidateConfig(every_images=every).interval(longest) == interval
    assert interval == 0 or -(-longest // interval) <= 50
