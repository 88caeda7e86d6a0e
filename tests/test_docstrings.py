"""Public functions say what they take, give and refuse. Read from the source, without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "halikit"
REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8")
DOCUMENTED = re.findall(r"^::: (\S+)$", REFERENCE.partition("\n## Modules\n")[2], re.M)
Function = ast.FunctionDef


# Modules of the theory and of what the paper does with it; the others there say of themselves that they are tools.
THEORY = [
    *("algorithm", "discriminator", "elbo", "hierarchy", "joints", "objectives", "supervision"),
    *("training/game", "training/sleep"),
]
TOOLS = {
    *("__init__", "batched", "inference", "interpolation", "labelled", "linear_gaussian", "neighbours", "quantity"),
    *("contract", "rebatched", "scales", "settings", "summary"),
}
SOURCE = re.compile(
    r"Eqs?\. |[Ss]ections? \d|Tables? \d|Algorithm 1|Figs?\. |Prop|[A-Z]\w+(?:'s)? (?:et al\. |& \w+ )?\(?\d{4}\)"
)
UNIT = re.compile(
    r"\[0, 1\]|nats|per element|a second|share|root mean square|standard deviation|scale|smallest K|at (?:least|most)",
    re.IGNORECASE,
)


def public_functions() -> Iterator[tuple[str, Function, str]]:
    """What documented modules list in ``__all__``: functions and methods, with their docstring and their class's."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(["halikit", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        if not any(f"{module}.".startswith(f"{name}.") for name in DOCUMENTED):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        listed = [node.value for node in assigned if getattr(node.targets[0], "id", "") == "__all__"]
        names = {e.value for e in getattr(listed[0], "elts", []) if isinstance(e, ast.Constant)} if listed else set()
        for node in tree.body:
            if getattr(node, "name", None) not in names:
                continue
            if isinstance(node, Function):
                yield f"{path.stem}.{node.name}", node, ast.get_docstring(node) or ""
            elif isinstance(node, ast.ClassDef):
                said = ast.get_docstring(node) or ""
                for method in node.body:
                    if isinstance(method, Function) and not method.name.startswith("_"):
                        own = ast.get_docstring(method) or ""
                        yield f"{path.stem}.{node.name}.{method.name}", method, f"{own}\n{said}"


def annotations(function: Function) -> list[str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [ast.unparse(a.annotation) for a in arguments if a.annotation]


def test_every_public_function_has_a_docstring() -> None:
    assert [name for name, function, _ in public_functions() if not ast.get_docstring(function)] == []


def test_tensors_have_shapes() -> None:
    without = [
        name
        for name, function, said in public_functions()
        if any("Tensor" in text for text in annotations(function)) and "(" not in said and "shape" not in said
    ]
    assert without == []


def test_errors_are_named() -> None:
    """What a function raises itself stands under ``Raises:``, of its class if it is a method."""
    silent = []
    for name, function, said in public_functions():
        raised = {
            getattr(node.exc.func, "id", "")
            for node in ast.walk(function)
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        }
        if raised - {"AttributeError", "NotImplementedError", "TypeError"} and not re.search("Raises:|Raise a ", said):
            silent.append((name, sorted(raised)))
    assert silent == []


def test_numbers_have_a_unit_or_a_range() -> None:
    numbers = [
        (name, ast.get_docstring(function) or "")
        for name, function, _ in public_functions()
        if function.returns is not None and re.fullmatch(r"float( \| None)?", ast.unparse(function.returns))
    ]
    assert numbers
    assert [name for name, said in numbers if not UNIT.search(said)] == []


def test_the_theory_names_its_source() -> None:
    """The equation, section, table or paper that a module is of stands in one of its docstrings."""
    paths = [PACKAGE / f"{name}.py" for name in THEORY]
    places = [path for folder in ("kernels", "analysis", "semi") for path in sorted(PACKAGE.glob(f"{folder}/*.py"))]
    paths += [path for path in places if path.stem not in TOOLS]
    without = []
    for path in paths:
        documented = (ast.Module, ast.ClassDef, Function)
        nodes = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, documented))
        if not any(SOURCE.search(ast.get_docstring(node) or "") for node in nodes):
            without.append(path.name)
    assert without == []
