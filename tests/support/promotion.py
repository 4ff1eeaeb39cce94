"""Promotion in an embedded registry, of runs that are registered and scored in no time."""

from pipeline.config.schema import PromoteConfig
from pipeline.registry import promote, register
from pipeline.tracking.client import connect
from tests.support.trained import finished_run, registered, scored

NAME = "inpaint-msanet"


def uri(root):
    return f"sqlite:///{root}/mlflow.db"


def client(root):
    return connect(uri(root))


def candidate(root, name, psnr, seed, **options):
    """A registered and evaluated run."""
    run = finished_run(root / name, seed=seed, uri=uri(root))
    registered(run, uri(root))
    if psnr is not None:
        scored(run, psnr, **options)
    return run


def do(run, **options):
    return promote.main(PromoteConfig(model=options.pop("model", NAME), run=run, **options))


def champion(root, name=NAME):
    return register.find_version(client(root), f"models:/{name}@champion")


def verify(name=NAME):
    return promote.main(PromoteConfig(model=name, verify=True))
