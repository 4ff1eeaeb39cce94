"""DESIGN's layers, by the imports that stand in the files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"models", "shards", "jobs", "pipeline", "conf"}
FORBIDDEN = {
    "models": {"shards", "jobs", "pipeline", "omegaconf", "hydra", "mlflow", "accelerate", "PIL"},
    "shards": {"models", "jobs", "pipeline", "omegaconf", "hydra", "mlflow", "accelerate"},
    "jobs": {"models", "shards", "pipeline", "torch", "mlflow", "numpy", "pyarrow", "accelerate"},
    "pipeline": set(),
}


def imports(path):
    """Top-level names that a file imports anywhere, with their full dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_lies_below_it(package):
    assert sources(package)
    for path in sources(package):
        wrong = {name.partition(".")[0] for name in imports(path)} & FORBIDDEN[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("accelerate", {"pipeline/training/engine.py"}),
        ("deepspeed", {"pipeline/training/zero.py"}),
        ("s3fs", {"shards/store.py", "shards/objects.py"}),
    ],
)
def test_a_library_is_known_to_one_room(library, allowed):
    found = {
        str(path.relative_to(ROOT))
        for package in FORBIDDEN
        for path in sources(package)
        if any(name.partition(".")[0] == library for name in imports(path))
    }
    assert found <= allowed, f"{library} is imported in {found - allowed}"


def loaded_by(statement):
    """Names of modules in sys.modules after a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import pipeline.cli, pipeline.config.compose, pipeline.training.launcher",
        "from pipeline.cli import main; main(['--help'])",
        "from pipeline.cli import main; main(['train', '--help'])",
        "from pipeline.cli import main; main(['train', 'experiment=quickstart', '--dry-run'])",
        "import jobs.spec, jobs.slurm, jobs.kubernetes, jobs.local, jobs.snapshot",
    ],
)
def test_a_login_node_loads_neither_torch_nor_mlflow(statement):
    assert not {"torch", "mlflow", "accelerate", "pandas"} & loaded_by(statement)
