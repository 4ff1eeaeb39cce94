"""What the documents name exists: files, modules, functions, commands, packages."""

import ast
import re
from pathlib import Path

import pytest

import pipeline
from pipeline.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    + list(ROOT.glob("docs/*.md"))
)
PACKAGES = ("models", "shards", "jobs", "pipeline")
FOLDERS = (*PACKAGES, "conf", "docs", "tests", ".ci")


def unknown(text, folder=ROOT):
    """Names in a document that do not exist: links, and files and modules in backticks."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not (folder / target.partition("#")[0]).exists():
            yield target
    for name in re.findall(r"`([^`\n]+)`", text):
        first = re.split(r"[./]", name.lstrip("."))[0]
        path = re.fullmatch(r"\.?[\w-]+/[\w./-]*", name) and name.split("/")[0] in FOLDERS
        module = re.fullmatch(r"[a-z]\w*(\.(?!json$|py$)\w+)+", name) and first in PACKAGES
        if (path and not (ROOT / name).exists()) or (module and not defined(name)):
            yield name


def defined(name):
    """True if a dotted name is a module, or a definition in one, or an attribute of a class."""
    path, *rest = ROOT, *name.split(".")
    while rest and (path / rest[0]).is_dir():
        path = path / rest.pop(0)
    file = path / f"{rest[0]}.py" if rest else path
    if rest and file.exists():
        rest.pop(0)
    else:
        file = path / "__init__.py"
    scope = ast.parse(file.read_text()).body
    while rest:
        wanted = rest.pop(0)
        for node in scope:
            names = [getattr(node, "name", None)]
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                names.append(getattr(target, "id", None))
            if wanted in names:
                scope = getattr(node, "body", [])
                break
        else:
            return False
    return True


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(document):
    assert sorted(set(unknown(document.read_text(), document.parent))) == []


@pytest.mark.parametrize(
    "text",
    [
        "[loop](pipeline/loop.py)",
        "`pipeline/loop.py`",
        "`docs/missing.md`",
        "`.ci/missing`",
        "`pipeline.training.loop.missing`",
        "`pipeline.training.missing.train`",
        "`shards.stream.Stream.missing`",
    ],
)
def test_a_name_that_does_not_exist_is_found(text):
    assert list(unknown(text)) == [re.sub(r"^\[loop\]|[`()]", "", text)]


@pytest.mark.parametrize(
    "text",
    [
        "[cli](pipeline/cli.py)",
        "[a site](https://example.org/pipeline/x.py)",
        "`.ci/run`",
        "`pipeline/training/`",
        "`models.GENERATORS`",
        "`pipeline.training.loop.step`",
        "`shards.stream.Stream.close`",
        "`data.url`",
        "`conf/data/<name>.yaml`",
    ],
)
def test_a_name_that_exists_or_is_none_of_ours_passes(text):
    assert list(unknown(text)) == []


def test_the_readme_lists_every_command_as_help_does(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    expected = re.findall(r"^  ([a-z]+) {2,}(.+)$", capsys.readouterr().out, re.M)
    assert len(expected) > 15
    table = "\n".join(f"| `{name}` | {text} |" for name, text in expected)
    assert table in (ROOT / "README.md").read_text(), f"write into README.md:\n{table}"


def test_the_readme_shows_every_package():
    text = (ROOT / "README.md").read_text()
    packages = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert {name for name in packages if not re.search(rf"^ +{name}/ ", text, re.M)} == set()


def test_the_changelog_begins_with_what_is_unreleased_or_the_version():
    version = pipeline.__version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] in ("Unreleased", version) and version in headings
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


DELETING = {  # of any object
    "unlink", "rmdir", "truncate", "rm_file", "delete_run", "delete_tag", "rename",
    "write_text", "write_bytes",
}  # fmt: skip
CALLS = {"remove": set(), "kubectl": {"delete"}, "open": {"w", "wb"}}  # with these arguments
DELETING_OF = {
    ("store", "remove"),
    ("checkpoints", "remove"),
    ("shutil", "rmtree"),
    ("os", "replace"),
    ("os", "remove"),
    ("os", "rmdir"),
    ("os", "ftruncate"),
    *(("files", name) for name in ("remove", "remove_folder", "replace", "cut")),
}


def deletes(code):
    """True if the code names a function that deletes, replaces or cuts files."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, "id", None)
            if node.attr in DELETING or (owner, node.attr) in DELETING_OF:
                return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            words = {getattr(word, "value", None) for word in node.args}
            if node.func.id in CALLS and (not CALLS[node.func.id] or CALLS[node.func.id] & words):
                return True
    return False


# Row 1
def test_every_file_that_deletes_or_overwrites_is_in_the_table():
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## What deletes")[2]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "bench" not in path.parts and deletes(path.read_text())
    }
    scripts = (ROOT / "jobs").rglob("start")
    found |= {str(path.relative_to(ROOT)) for path in scripts if "\nrm " in path.read_text()}
    assert found == listed


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("undo.callback(store.remove, url)", True),
        ("(folder / name).unlink()", True),
        ("os.replace(a, b)", True),
        ("remove(store.join(base, name))", True),
        ("path.write_text(text)", True),
        ("open(path, 'w')", True),
        ("kubectl(cluster, 'delete', name)", True),
        ("open(path, 'ab')", False),
        ("text.replace(a, b)", False),
        ("names.remove(name)", False),
    ],
)
def test_calls_that_delete_are_recognized(code, expected):
    assert deletes(code) == expected
