"""Which package imports which, and which package knows which library; read from the files."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pipeline.config.commands import COMMANDS
from pipeline.registry.package import CODE

ROOT = Path(__file__).resolve().parent.parent
BELOW = {  # what each top-level package may not import
    "models": {"shards", "jobs", "pipeline", "omegaconf", "hydra", "mlflow", "accelerate", "PIL"},
    "shards": {"models", "jobs", "pipeline", "omegaconf", "hydra", "mlflow", "accelerate"},
    "jobs": {"models", "shards", "pipeline", "torch", "mlflow", "numpy", "pyarrow", "accelerate"},
}
# Packages of pipeline/ from the bottom up; each may import itself and those it names.
PACKAGES = {
    "common": "",
    "config": "common",
    "launch": "common config",
    "runs": "common config",
    "data": "common config",
    "tracking": "common config runs",
    "inference": "common config runs tracking",
    "evaluation": "common config launch runs tracking inference",
    "comparison": "common config runs tracking inference evaluation",
    "registry": "common config runs tracking inference evaluation",
    "training": "common config launch runs tracking inference evaluation",
    "submission": "common config launch runs tracking training",
    "quickstart": "common config launch data tracking",
    "bench": "common config launch runs data tracking inference evaluation training",
    "doctor": "common config launch tracking training",
    "unpack": "submission",
    "cli": "common config launch",
}
SERVED = "jobs/deploy/serve"  # runs in an image of its own, without our packages
LIBRARIES = {  # a library that must not spread, and where it may be imported
    "accelerate": {"pipeline/training/engine.py"},
    "deepspeed": {"pipeline/training/network.py"},
    "fcntl": {"pipeline/common/locks.py", "shards/file_lock.py"},
    "hydra": {"pipeline/config"},
    "mlflow": {"pipeline/tracking", "pipeline/registry", "pipeline/bench/tracking.py", SERVED},
    "psutil": {"pipeline/launch", "pipeline/tracking"},
    "s3fs": {"shards/store.py", "shards/objects.py"},
}
FLOORS = 8


@cache
def tree(path):
    return ast.parse(path.read_text())


def sources(*packages):
    for package in packages:
        place = ROOT / package
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def imports(node):
    """Dotted names that a file, or a statement of it, imports: modules, and names in them."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
        elif isinstance(found, ast.ImportFrom) and not found.level:
            yield from (f"{found.module}.{alias.name}" for alias in found.names)


def at_module_level(path):
    """Statements that run at import: neither in a function nor for the type checker alone."""
    for node in tree(path).body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ):
            yield node


def shown(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", BELOW)
def test_a_top_level_package_imports_only_what_lies_below_it(package):
    wrong = {
        f"{shown(path)} imports {name}"
        for path in sources(package)
        for name in imports(tree(path))
        if name.partition(".")[0] in BELOW[package] and not shown(path).startswith(SERVED)
    }
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_of_the_pipeline_imports_only_those_that_it_names(package):
    """Imports inside functions count; `cli` imports commands by the names in `config.commands`."""
    allowed = {package, *PACKAGES[package].split()}
    wrong = {
        f"{shown(path)} imports {name}"
        for path in sources(f"pipeline/{package}")
        for name in imports(tree(path))
        if name.startswith("pipeline.") and name.split(".")[1] not in allowed
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_the_table_names_every_package_in_an_order_that_allows_no_circle():
    found = {p.name.removesuffix(".py") for p in (ROOT / "pipeline").iterdir()}
    assert {name for name in found if not name.startswith("__")} == set(PACKAGES)
    above = set()
    for package, below in PACKAGES.items():
        assert set(below.split()) <= above, package
        above.add(package)


def test_every_command_is_a_module_with_a_main():
    for command, spec in COMMANDS.items():
        assert "main" in functions(spec.module), command
        assert spec.inputs is None or "check_inputs" in functions(spec.inputs), command


def functions(module):
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}


def file_imports():
    """For each file of pipeline/ the files of pipeline/ that it imports when it is imported."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sources("pipeline")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found = {}
    for name, path in files.items():
        names = {n for node in at_module_level(path) for n in imports(node)}
        found[name] = {n if n in files else n.rpartition(".")[0] for n in names} & set(files)
        found[name] -= {name}
    return found


def test_files_import_each_other_in_few_floors_and_no_circle():
    edges, floors = file_imports(), {}

    def floor(name, under=()):
        assert name not in under, f"circle: {' -> '.join((*under, name))}"
        if name not in floors:
            floors[name] = 1 + max((floor(n, (*under, name)) for n in edges[name]), default=0)
        return floors[name]

    highest = max(map(floor, edges))
    assert highest <= FLOORS, [name for name, n in floors.items() if n > FLOORS]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_known_where_it_belongs(library):
    wrong = {
        shown(path)
        for path in sources("models", "shards", "jobs", "pipeline")
        for name in imports(tree(path))
        if name.partition(".")[0] == library
        and not any(shown(path).startswith(place) for place in LIBRARIES[library])
    }
    assert not wrong, f"{library} is imported in {sorted(wrong)}"


@pytest.mark.parametrize(
    "statement",
    [
        "import pipeline.cli, pipeline.config.compose, pipeline.training.launcher",
        "from pipeline.cli import main; main(['--help'])",
        "from pipeline.cli import main; main(['train', '--help'])",
        "from pipeline.cli import main; main(['train', 'experiment=quickstart', '--dry-run'])",
        "from pipeline.cli import main; main(['submit', 'train', 'experiment=quickstart', "
        "'data.url=s3://bucket/set', 'cluster=slurm', 'cluster.code=image', '--dry-run'])",
        f"import {', '.join(spec.inputs for spec in COMMANDS.values() if spec.inputs)}",
        "import jobs.spec, jobs.slurm, jobs.kubernetes, jobs.local, jobs.snapshot",
    ],
)
def test_a_login_node_loads_neither_torch_nor_mlflow(statement):
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "mlflow", "accelerate", "pandas"} & set(done.stdout.split())


def test_git_is_called_in_one_place():
    called = {
        shown(path)
        for path in sources("models", "shards", "jobs", "pipeline")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.List)
        and node.elts
        and isinstance(node.elts[0], ast.Constant)
        and node.elts[0].value == "git"
    }
    assert called == {"jobs/git.py"}


def test_what_is_stored_with_a_model_imports_only_what_is_stored_or_installed_with_it():
    stored = {f"{place}/{name}.py" for place, names in CODE.items() for name in names}
    installed = {"mlflow", "torch", "numpy", "PIL", "cv2", "pandas", "fsspec"}
    for path in (ROOT / "pipeline/registry/pyfunc.py", *(ROOT / file for file in stored)):
        for name in {n for node in at_module_level(path) for n in imports(node)}:
            top, file = name.partition(".")[0], name.replace(".", "/")
            ours = {f"{file}.py", f"{file.rpartition('/')[0]}.py"} & stored
            assert ours or top in installed | sys.stdlib_module_names, f"{shown(path)}: {name}"
