"""What each command's configuration is refused for, before it runs and before it is queued."""

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config import checks
from pipeline.config.compose import compose

REFUSED = {
    "train": [
        ("data.url=null", "data.url= is missing: the sharded set to train on"),
        ("objective.phases=[]", "objective.phases is empty"),
        ("objective.phases=[{until: null}, {until: 5}]", "ends must increase"),
        ("objective.betas=[0.9]", "expected two numbers"),
        ("processes=all", "invalid processes=all: expected a positive integer or auto"),
        ("processes=0", "invalid processes=0"),
        ("threads=-1", "invalid threads=-1"),
        ("parallel=zero1 precision=fp16", "parallel=zero1 takes bf16 or fp32"),
        ("data.validate=test", "the best checkpoint would be selected on"),
        ("masks.kind=none", "masks.kind=none leaves no hole"),
        ("masks.low=0.5 masks.high=0.5", "masks.low=0.5 is not below masks.high=0.5"),
        ("masks.kind=external", "masks.kind=external needs masks.url="),
        ("masks.url=m", "masks.url=m needs masks.kind=external"),
    ],
    "evaluate": [
        ("model=telea data.url=null", "data.url= is missing: the sharded set that holds"),
        ("", "nothing to score: give one of checkpoint="),
        ("model=telea checkpoint=c", "checkpoint= and model= are given"),
        ("export=e model=telea predictions=p", "model= and predictions= are given"),
        ("model=telea features=f", "features= needs the layers of a generator"),
        ("model=telea processes=two", "invalid processes=two"),
    ],
    "shard": [
        ("source=s", "shard: out= is missing"),
        ("action=verify", "shard verify needs the URL"),
        ("action=gc", "shard gc needs the URL"),
        ("source=s3://b/x out=o", "source=s3://b/x: published files are read from a local disk"),
        ("source=https://h/x.tar out=o", "source=https://h/x.tar: published files"),
        ("data=celeba source=gs://b/x out=o", "copy them there first"),
        ("data=places365_standard source=s3://b/x.tar out=o", "(WebDataset tars, data=wds, are"),
    ],
    "masks": [
        ("out=m source=s3://b/masks.zip", "source=s3://b/masks.zip: published files are read"),
        ("out=s3://b/m source=s3a://b/masks", "copy them there first"),
    ],
}
ACCEPTED = {
    "train": ["processes=2 threads=1", "parallel=zero1 precision=bf16", "masks.kind=square"],
    "evaluate": ["export=e", "export=e model=telea", "checkpoint=c features=f"],
    "shard": [
        "",
        "source=s out=o",
        "source=file:///s out=o",
        "action=info url=u",
        "data=wds source=s3://b/x out=o",
        "data=wds source=https://h/x.tar out=o",
    ],
    "masks": ["out=m", "out=m source=file:///s"],
}


def checked(command, text):
    words = ["data.url=s"] if command in ("train", "evaluate") else []
    words += text.replace("}, {", "},{").replace(": ", ":").split()
    checks.check(command, compose(command, words).config)


@pytest.mark.parametrize(
    ("command", "text", "message"), [(c, *row) for c, rows in REFUSED.items() for row in rows]
)
def test_a_wrong_configuration_is_refused_in_one_line(command, text, message):
    with pytest.raises(ValueError) as error:
        checked(command, text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("command", "text"), [(c, t) for c, ts in ACCEPTED.items() for t in ts])
def test_a_right_configuration_is_accepted(command, text):
    checked(command, text)


@pytest.mark.parametrize(("batch", "world", "accumulate"), [(8, 3, 1), (8, 2, 3), (6, 4, 1)])
def test_a_batch_that_processes_cannot_share_equally_is_refused(batch, world, accumulate):
    config = compose("train", [f"batch={batch}", f"accumulate={accumulate}"]).config
    with pytest.raises(ConfigError, match=f"choose a multiple of {world * accumulate}$"):
        checks.divisible(config, world)
    config.batch = world * accumulate * 2
    checks.divisible(config, world)
