"""Promotion in an embedded registry, of runs that are registered and scored without training."""

from pipeline.config.commands import COMMANDS
from pipeline.config.schema import PromoteConfig
from pipeline.registry import promote
from pipeline.tracking import model_versions
from pipeline.tracking.client import connect
from tests.support.trained import finished_run, registered, scored

NAME = "inpaint-msanet"


def uri(root):
    return f"sqlite:///{root}/mlflow.db"


def client(root):
    return connect(uri(root))


def candidate(root, name, psnr, seed, **options):
    """A registered run, evaluated if `psnr` is given."""
    run = finished_run(root / name, seed=seed, uri=uri(root))
    registered(run, uri(root))
    if psnr is not None:
        scored(run, psnr, **options)
    return run


def do(run, **options):
    config = PromoteConfig(model=options.pop("model", NAME), run=run, **options)
    COMMANDS["promote"].check(config)
    return promote.main(config)


def champion(root, name=NAME):
    return model_versions.find_version(client(root), f"models:/{name}@champion")


def verify(name=NAME):
    return promote.main(PromoteConfig(model=name, verify=True))
