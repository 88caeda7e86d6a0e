"""Every block of the documentation runs, every name and command that it gives exists, every figure is there.

Blocks of a page run in order in a directory of their own, Python in one namespace. What stands in for a reader's
files and patience: ``prepared`` has trained a run and lays out tiny data sets under the names that the pages use, and
all trainings end after six steps (:func:`short`). A block behind ``<!-- not run: why -->`` does not run. Examples,
included from ``examples/``, run in their own tests.
"""

from __future__ import annotations

import functools
import importlib
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from browser import chromium
from makers import picture, plant, write_celeba, write_mnist
from typer.main import get_command

import halikit as hk
from halikit.cli import app
from halikit.config import override
from halikit.presets.families import conv

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
STEPS = 6

FENCE = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>\S+)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    kind: str
    text: str
    why_not: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(found["kind"], found["text"], found["why"], text.count("\n", 0, found.start("text")) + 1)
        for found in FENCE.finditer(text)
    ]


def commands(text: str) -> list[list[str]]:
    lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in lines]


def with_blocks() -> list[Path]:
    # The commands under results/ take hours, and the figures there are what they printed.
    pages = [page for page in PAGES if page.parent.name != "results"]
    return [page for page in pages if any(block.why_not is None and block.kind != "toml" for block in blocks(page))]


def short(command: list[str]) -> list[str]:
    """The same command for few steps, and without ``--all``: every figure has a command of its own elsewhere."""
    command = [argument for argument in command if argument != "--all"]
    if command[:1] != ["train"] or "--dry-run" in command:
        return command
    return [*command, "--steps", str(STEPS), "--batch-size", "8", "--set", "evaluate_every=100"]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what a reader would have: a run, photographs, official data."""
    here = tmp_path_factory.mktemp("reader")
    config = override(hk.presets.digits(), {"steps": STEPS, "batch_size": 8})
    hk.Trainer(hk.build(config), "digits", out=here / "runs/digits-l3").fit()
    plant(here / "photos", [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(40)], size=(64, 64))
    write_mnist(here / "DIR", train=60, test=20, shape=(28, 28))
    write_celeba(here / "downloads/celeba", 40, partition="0" * 24 + "1" * 8 + "2" * 8)
    attributes = here / "downloads/celeba/list_attr_celeba.txt"
    attributes.write_text(attributes.read_text().replace("Bald", "Smiling"))
    hk.data.pack(f"celeba:{here / 'downloads/celeba'}", here / "faces.pack", size=64)
    picture(size=(8, 8), mode="L").point(lambda value: 255 * (value > 127)).save(here / "mask.png")
    faces = hk.data.load(str(here / "faces.pack"))
    changes = {"data_shape": faces.shape, "spec": str(here / "faces.pack"), "hidden": 4, "discriminator.width": 16}
    model = hk.build(override(conv(2), changes | {"steps": 2, "batch_size": 8}))
    hk.Trainer(model, faces, out=here / "runs/celeba64-l2").fit()
    return here


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the blocks of a page run; trainings in Python end after a few steps as well."""
    here = tmp_path / "reader"
    shutil.copytree(prepared, here)
    monkeypatch.chdir(here)
    fit = hk.Trainer.fit
    monkeypatch.setattr(hk.Trainer, "fit", functools.wraps(fit)(lambda self, steps=None: fit(self, STEPS)))
    return here


@pytest.mark.timeout(900)  # of a machine that is busy; the commands take seconds
@pytest.mark.filterwarnings("ignore:samples have collapsed")
@pytest.mark.filterwarnings("ignore:the discriminator has known")
@pytest.mark.parametrize("page", with_blocks(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_run(page: Path, reader: Path, halikit: Callable[..., str]) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        if block.why_not or block.kind not in ("python", "console"):
            continue
        if block.kind == "python":
            exec(compile("\n" * (block.line - 1) + block.text, page.name, "exec"), names)
            continue
        for name, *arguments in commands(block.text):
            # `runs/digits-l3` is there already, for the pages that only use it.
            if name == "halikit" and "runs/digits-l3" in arguments and arguments[0] == "train":
                shutil.rmtree(reader / "runs/digits-l3")
            assert name == "halikit", f"{page.name}:{block.line}: {name} needs a mark that says why it does not run"
            halikit(*short(arguments))


def test_blocks_have_a_kind_that_is_known() -> None:
    kinds = {(block.kind, page.name) for page in PAGES for block in blocks(page)}
    assert {kind for kind, _ in kinds} <= {"python", "console", "toml", "text", "{.python"}, kinds
    assert all(page.read_text("utf-8").count("```") == 2 * len(blocks(page)) for page in PAGES)


def test_links_outside_the_site_lead_somewhere() -> None:
    """Those of the pages that mkdocs does not read; it looks after its own."""
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "halikit/pretrained/README.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8"))
        assert [link for link in links if not ((ROOT / page).parent / link).exists()] == [], page


def test_examples_are_all_in_the_docs() -> None:
    included = {name for page in PAGES for name in re.findall(r'--8<-- "examples/(\w+\.py)"', page.read_text("utf-8"))}
    assert included | {"figures.py"} == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_figures_are_those_that_the_script_makes() -> None:
    shown = {name for page in PAGES for name in re.findall(r"\(figures/([\w.]+)\)", page.read_text("utf-8"))}
    assert shown == {path.name for path in (DOCS / "figures").iterdir()}
    script = "".join((ROOT / "examples" / name).read_text("utf-8") for name in ("figures.py", "editing.py"))
    assert [name for name in shown if f'"{Path(name).stem}' not in script and f"/{name}" not in script] == []


def resolved(name: str) -> object:
    """What a dotted name stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:], found)
    raise AssertionError(f"nothing is called {name}")


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in Markdown text, without rules and the header of the paper's table."""
    lines = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0] and set(row[0]) != {"-"} and row[0] != "in the paper"]


def paper_to_code() -> list[list[str]]:
    """The rows of the first table of the page, which names Python and commands for each place in the paper."""
    return rows((DOCS / "paper.md").read_text("utf-8").partition("\n## Readings of the paper\n")[0])


def test_paper_to_code_resolves() -> None:
    known: Any = get_command(app)
    for _, symbols, line in paper_to_code():
        for name in re.findall(r"`([^`]+)`", symbols):
            assert resolved(name) is not None, name
        for command, *options in (shlex.split(found) for found in re.findall(r"`halikit ([^`]+)`", line)):
            offered = {option for parameter in known.commands[command].params for option in parameter.opts}
            assert {option for option in options if option.startswith("--")} <= offered, (command, options)


def test_paper_to_code_is_complete() -> None:
    places = " ".join(row[0] for row in paper_to_code())
    numbers = {kind: set() for kind in ("Eq", "Table", "Fig", "Algorithm", "Proposition", "Lemma")}
    for kind, listed in re.findall(r"(Eq|Table|Fig|Algorithm|Proposition|Lemma)s?\.? ((?:\d+(?:, | and )?)+)", places):
        numbers[kind] |= {int(number) for number in re.findall(r"\d+", listed)}
    assert numbers == {
        "Eq": set(range(1, 14)),
        "Table": set(range(1, 7)),
        "Fig": set(range(1, 8)),
        "Algorithm": {1},
        "Proposition": {1, 2},
        "Lemma": {1, 2},
    }


def test_troubleshooting_quotes_messages_that_exist() -> None:
    """Every piece of a quoted message between its ``…`` stands in the source, line breaks and f-strings aside."""
    source = "".join(path.read_text("utf-8") for path in sorted((ROOT / "halikit").rglob("*.py")))
    source = re.sub(r'"\s*\n?\s*(?:\+ )?f?"', "", source)
    for message, _ in rows((DOCS / "troubleshooting.md").read_text("utf-8")):
        for piece in message.strip("`").split("…"):
            words = piece.strip(" ,;:`.'()")
            assert words in source or words == "SIGTERM at step", words


def test_reference_names_everything_public() -> None:
    text = (DOCS / "reference.md").read_text("utf-8")
    named = set(re.findall(r"^::: halikit\.(\w+)$", text.partition("\n## Modules\n")[0], re.M))
    assert named == {name for name in hk.__all__ if name not in ("__version__", "data", "presets", "priors", "testing")}


def test_reference_names_modules_that_exist() -> None:
    modules = (DOCS / "reference.md").read_text("utf-8").partition("\n## Modules\n")[2]
    names = re.findall(r"^::: (\S+)$", modules, re.M)
    assert len(names) > 10
    for name in names:
        importlib.import_module(name)


def test_commands_in_help_are_shown_with_examples() -> None:
    known: Any = get_command(app)
    without = [
        name
        for name, command in known.commands.items()
        if not isinstance(command, typer.core.TyperGroup) and "Example: halikit" not in (command.help or "")
    ]
    assert without == []


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:samples have collapsed")
@pytest.mark.filterwarnings("ignore:the discriminator has known")
def test_figures_script(tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "figures.py"))["main"]
    wanted = {path.name for path in (DOCS / "figures").iterdir()} - ({"explore.png"} if chromium() is None else set())
    assert {path.name for path in main(steps=STEPS, out=tmp_path)} == wanted
