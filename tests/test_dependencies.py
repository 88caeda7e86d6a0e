"""What pyproject.toml declares is used, and what is used is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import halikit

PACKAGE = Path(halikit.__file__).parent
ROOT = PACKAGE.parent

# What is used without an import: the file that uses it, and the words there.
TOOLS = {
    "mkdocs": ("Makefile", "mkdocs build"),
    "mkdocs-material": ("mkdocs.yml", "name: material"),
    "mkdocstrings": ("mkdocs.yml", "mkdocstrings:"),
    "mypy": ("Makefile", "/mypy"),
    "pytest-timeout": ("pyproject.toml", "\ntimeout ="),
    "pytest-xdist": ("Makefile", "--dist"),
    "ruff": ("Makefile", "/ruff check"),
    "tensorboard": ("halikit/runs/events.py", 'find_spec("tensorboard")'),
    "trackio": ("halikit/runs/loggers.py", 'package="trackio"'),
    "wandb": ("halikit/runs/loggers.py", 'package="wandb"'),
}
# Extras that tests do without: they are large, and a stand-in has their functions.
REPLACED = ("trackio", "wandb")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def declared(extra: str | None = None) -> frozenset[str]:
    """The packages of an extra, or those that are always installed; extras of halikit itself are resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: set[str] = set()
    for line in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        if own := re.fullmatch(r"halikit\[(.+)\]", line):
            found.update(*(declared(each.strip()) for each in own[1].split(",")))
        else:
            found.add(canonical(re.match(r"[\w.-]+", line)[0]))
    return frozenset(found)


@cache
def distributions() -> dict[str, list[str]]:
    """The installed packages by the module that they bring; to list them takes a second."""
    return dict(packages_distributions())


@cache
def extras() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return tuple(project["optional-dependencies"])


def modules_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def imported(*folders: Path, on_import: bool = False) -> dict[str, str]:
    """The packages that files of these folders import, each with a file that does.

    Args:
        *folders: Folders with Python files.
        on_import: Only what is imported when the file is: not within functions, and not for types alone.
    """
    found: dict[str, str] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        trees: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
        if on_import:
            trees = [node for node in trees[0].body if isinstance(node, ast.Import | ast.ImportFrom)]
        for module in {module.split(".")[0] for tree in trees for module in modules_of(tree)}:
            is_local = (path.parent / f"{module}.py").exists()
            if module not in sys.stdlib_module_names and module != "halikit" and not is_local:
                for distribution in distributions().get(module, [module]):
                    found.setdefault(canonical(distribution), str(path.relative_to(ROOT)))
    return found


@cache
def of_package() -> dict[str, str]:
    return imported(PACKAGE)


@cache
def of_development() -> dict[str, str]:
    return imported(ROOT / "tests", ROOT / "examples", ROOT / "docs")


def is_used(name: str, imports: dict[str, str]) -> bool:
    file, words = TOOLS.get(name, ("", ""))
    return name in imports or (bool(file) and words in (ROOT / file).read_text("utf-8"))


def test_what_the_package_imports_is_declared() -> None:
    known = declared().union(*(declared(extra) for extra in extras() if extra not in ("dev", "docs", "fuzz")))
    missing = {name: path for name, path in of_package().items() if name not in known}
    assert not missing, f"declare in pyproject.toml: {missing}"


def test_what_an_extra_adds_is_imported_only_when_it_is_used() -> None:
    at_once = imported(PACKAGE, on_import=True)
    optional = {name: path for name, path in at_once.items() if name not in declared()}
    assert not optional, f"import within the function that needs it: {optional}"


def test_what_is_declared_is_imported() -> None:
    unused = sorted(name for name in declared() if name not in of_package())
    assert not unused, f"pyproject.toml declares what halikit does not import: {unused}"


@pytest.mark.parametrize("extra", extras())
def test_an_extra_is_used(extra: str) -> None:
    imports = of_package() | (of_development() if extra in ("dev", "docs", "fuzz") else {})
    unused = sorted(name for name in declared(extra) if not is_used(name, imports))
    assert not unused, f"the extra {extra} declares what nothing uses: {unused}"


def test_what_tests_and_examples_import_is_declared() -> None:
    known = declared() | declared("dev") | declared("fuzz")
    missing = {name: path for name, path in of_development().items() if name not in known}
    assert not missing, f"declare in the extra dev: {missing}"


def test_dev_installs_every_extra_that_the_package_imports() -> None:
    for extra in extras():
        if extra not in ("dev", "docs", "fuzz", *REPLACED):
            assert declared(extra) <= declared("dev"), f"dev leaves out the extra {extra}"


def test_what_is_declared_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    tested = {canonical(line.split("==")[0]) for line in lines if "==" in line}
    untested = declared().union(*map(declared, extras())) - tested
    assert not untested, f"constraints.txt has no version of {sorted(untested)}"
