"""Imports run downwards through the layers of the package, and form no circle."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import halikit

ROOT = Path(halikit.__file__).parent

# From the ground up: a file imports from its own folder and from what is listed above it here.
LAYERS = [
    *("errors", "utils", "spaces", "settings", "objectives", "renamed"),
    *("kernels", "priors", "joints", "hierarchy", "discriminator", "algorithm", "elbo", "supervision", "testing"),
    *("networks", "data", "semi", "hardware", "optimisation"),
    *("config", "presets", "earlier", "model"),
    *("analysis", "plotting", "runs", "training"),
    *("benchmark", "explore", "measures", "cli", "__main__"),
]


@cache
def files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> set[str]:
    return {module_of(path) for path in files()}


def imports(path: Path) -> Iterator[str]:
    """The modules of halikit that a file imports anywhere, also within functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            if name.startswith("halikit."):
                inner = name.removeprefix("halikit.")
                found = inner if inner in modules() else inner.rpartition(".")[0]
                if found in modules():
                    yield found


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    own = module_of(path).split(".")[0]
    assert own in LAYERS, f"give {own} a place among the layers"
    for imported in imports(path):
        room = imported.split(".")[0]
        assert room == own or LAYERS.index(room) < LAYERS.index(own), f"{path.name} imports halikit.{imported}"


def test_files_form_no_circle() -> None:
    graph = {module_of(path): set(imports(path)) - {module_of(path)} for path in files()}
    while graph:
        free = [name for name, needed in graph.items() if not needed & graph.keys()]
        assert free, f"a circle among {', '.join(sorted(graph))}"
        for name in free:
            del graph[name]
