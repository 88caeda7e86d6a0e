"""Shares runs on the Hugging Face hub, through huggingface_hub (``pip install 'halikit[hub]'``).

:func:`push` uploads the files of :func:`bundle`: model, config, metrics, pictures, and a model card made from them.
:func:`pull` downloads only files with these names. None of them is executable or pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save

from halikit import plotting
from halikit.config import Config, ModelSettings, override, to_toml
from halikit.errors import HalikitError, InputError
from halikit.model import FILE_NAME, Model, file_of, load
from halikit.runs.report import write_report
from halikit.runs.run import Finding, Run
from halikit.utils.files import TEMPORARY, write_atomically, writing
from halikit.utils.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["PATTERNS", "bundle", "from_pretrained", "model_card", "pull", "push"]

CARD = "README.md"
# The files of a pushed run; no others are downloaded.
_LAYOUT = Run("")
PATTERNS = (
    *(str(file) for file in (_LAYOUT.model_file, _LAYOUT.config_file, _LAYOUT.metrics_file, CARD)),
    *(str(_LAYOUT.figures_folder / kind) for kind in ("*.png", "*.json")),
    str(_LAYOUT.samples_folder / "*.png"),
)
_GRIDS = {"reconstructions": "Held-out data, above their reconstructions from each level", "samples": "Samples"}


def bundle(run: str | Path, folder: str | Path, *, repo: str = "USER/NAME", licence: str | None = None) -> Path:
    """Write the files that :func:`push` uploads into a folder, without the paths of the author's machine.

    Args:
        run: The run directory.
        folder: Folder to create; it must be missing or empty.
        repo: Name of the model in the card.
        licence: Identifier of the licence for the card, such as ``apache-2.0``; by default the author fills it in.

    Returns:
        The folder.

    Raises:
        InputError: If there is no run, or the folder is not empty or cannot be created.
    """
    source, folder = Run(run), Path(folder)
    config, _ = source.settings, source.levels
    _make_empty(folder)
    copy = Run(folder)
    public = override(config, {"data.spec": _without_directories(config.data.spec)})
    write_atomically(copy.config_file, to_toml(public))
    write_atomically(copy.model_file, _public_model(file_of(run)))
    if source.metrics_file.is_file():
        shutil.copyfile(source.metrics_file, copy.metrics_file)
        copy.make(copy.figures_folder)
        for name, figure in plotting.training_curves(source.metrics()).items():
            plotting.save_png(copy.figures_folder / f"training-{name}.png", plotting.as_picture(figure))
    for grid in source.grids().values():
        copy.make(copy.samples_folder)
        shutil.copyfile(grid, copy.samples_folder / grid.name)
    for finding in source.findings():
        copy.make(copy.figures_folder)
        picture = copy.picture_of(finding)
        if source.picture_of(finding).is_file():
            shutil.copyfile(source.picture_of(finding), picture)
        public_finding = {name: _public(value) for name, value in vars(finding).items()}
        write_atomically(picture.with_suffix(".json"), json.dumps(public_finding, indent=1, ensure_ascii=False))
    write_atomically(folder / CARD, model_card(folder, repo=repo, licence=licence))
    return folder


def model_card(folder: str | Path, *, repo: str = "USER/NAME", licence: str | None = None) -> str:
    """The model card in Markdown: data, settings, figures, limits, use.

    Args:
        folder: A run directory, or a folder of :func:`bundle`.
        repo: Name of the model on the hub.
        licence: As for :func:`bundle`; without one the card has a line that asks for it.
    """
    run = Run(folder)
    parts = [
        _front_matter(licence),
        f"# {_plain(repo.rpartition('/')[2])}",
        _introduction(run),
        *_pictures(run),
        _use(repo, run),
        _data_and_settings(run.settings),
        _measured(run),
        *_findings(run),
        _limits(run.settings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def push(
    run: str | Path,
    repo: str,
    *,
    private: bool = False,
    licence: str | None = None,
    replace_card: bool = False,
    message: str = "Push a run of halikit",
) -> str:
    """Upload a run. By default a card on the hub is not replaced, because its author may have edited it.

    Args:
        run: The run directory.
        repo: Repository ``user/name``; created if it does not exist.
        private: Whether a new repository is private.
        licence: As for :func:`bundle`.
        replace_card: Whether to replace a card on the hub.
        message: Message of the commit.

    Returns:
        The address of the model.

    Raises:
        InputError: If huggingface_hub is not installed, or the hub cannot be reached or refuses the upload.
    """
    with tempfile.TemporaryDirectory(prefix="halikit-") as directory:
        folder = bundle(run, Path(directory) / "run", repo=repo, licence=licence)
        with _hub(f"{run} cannot be pushed to {repo}") as api:
            url = api.create_repo(repo, private=private, exist_ok=True)
            keeps_card = not replace_card and api.file_exists(repo, CARD)
            api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=message, ignore_patterns=[CARD] if keeps_card else None
            )
    return str(url)


def pull(repo: str, out: str | Path, *, revision: str | None = None) -> Path:
    """Download a run into a new run directory.

    Args:
        repo: Repository ``user/name``, or a folder of :func:`bundle`.
        out: The run directory; it must not exist.
        revision: Branch, tag or commit; the newest commit by default.

    Returns:
        The run directory.

    Raises:
        InputError: If ``out`` exists, huggingface_hub is not installed, the hub cannot be reached or has no such
            model, or the files are not a run of halikit.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} is there already; choose another directory with --out, or remove it")
    if Path(repo).is_dir():
        return _install(Path(repo), out)
    if "/" not in repo:
        raise InputError(f"{repo} is no folder here, and models of the hub are called USER/NAME")
    with _hub(f"{repo} cannot be pulled") as api:
        folder = api.snapshot_download(repo, revision=revision, allow_patterns=list(PATTERNS))
    return _install(Path(str(folder)), out)


def from_pretrained(
    repo: str | Path,
    *,
    revision: str | None = None,
    weights: Literal["averaged", "raw"] = "averaged",
    device: str | torch.device = "cpu",
    build: Callable[[], Model] | None = None,
) -> Model:
    """Load a model from the hub, in evaluation mode. The file is stored in the cache of huggingface_hub.

    Args:
        repo: Repository ``user/name``, or anything that :func:`halikit.load` accepts as ``run``.
        revision: Branch, tag or commit; the newest commit by default.
        weights: As for :func:`halikit.load`.
        device: As for :func:`halikit.load`.
        build: As for :func:`halikit.load`.

    Raises:
        InputError: If huggingface_hub is not installed, or the hub cannot be reached or has no such model.
        ModelError: If the file is damaged, or does not fit the model that was built.
    """
    path = Path(repo)
    if not path.exists() and "/" in str(repo):
        with _hub(f"{repo} cannot be loaded") as api:
            path = Path(str(api.hf_hub_download(str(repo), FILE_NAME, revision=revision)))
    return load(path, weights=weights, device=device, build=build)


# ---- the hub and the files


@contextmanager
def _hub(failure: str) -> Iterator[HfApi]:
    """A client of the hub. Its errors within the context become short messages that begin with ``failure``."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    except ModuleNotFoundError:
        raise InputError(f"{failure}: huggingface_hub is not installed; pip install 'halikit[hub]'") from None
    api = HfApi(library_name="halikit", library_version=__version__)
    try:
        yield api
    except HalikitError:
        raise
    except RepositoryNotFoundError:
        raise InputError(
            f"{failure}: {api.endpoint} has no such model, or shows it to others only; to log in: hf auth login"
        ) from None
    except Exception as error:
        # Errors of the library's HTTP client (there are several), and errors about invalid names.
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError | ValueError) and package not in ("httpx", "httpx2", "requests"):
            raise
        # If the hub has answered, or a name is invalid, the network is not the cause.
        hint = "" if isinstance(error, HfHubHTTPError | ValueError) else f"\nasked {api.endpoint}; is there a network?"
        raise InputError(f"{failure}: {_first_line(error)}{hint}") from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _install(folder: Path, out: Path) -> Path:
    """Copy the files of a run, and no others, atomically into a run directory."""
    run = Run(folder)
    _ = run.levels, run.findings()
    if run.is_complete:
        _ = run.metrics(), run.settings
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()})
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(TEMPORARY, f".{out.name}.", out.parent) as directory:
            complete = Path(directory) / "run"
            for file in files:
                target = complete / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            os.rename(complete, out)
    if run.is_complete:
        write_report(Run(out))
    return out


def _make_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already; choose another folder, or remove it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _public_model(path: Path) -> bytes:
    """The model file with the directories removed from its data spec."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["halikit"])
    if about["config"]:
        about["config"]["data"]["spec"] = _without_directories(about["config"]["data"]["spec"])
    content: bytes = save(tensors, {"halikit": json.dumps(about)})
    return content


def _without_directories(text: str) -> str:
    """The text with each absolute path replaced by its last part: directories of the author's machine are private."""
    return re.sub(r"(?<![\w.~/-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+(?=[^\s'\"])", "", text)


def _public(value: Any) -> Any:
    if isinstance(value, str):
        return _without_directories(value)
    if isinstance(value, Mapping):
        return {name: _public(each) for name, each in value.items()}
    return [_public(each) for each in value] if isinstance(value, list | tuple) else value


# ---- the card


def _front_matter(licence: str | None) -> str:
    chosen = f"license: {json.dumps(licence)}" if licence else "# license: which may others use it under?"
    tags = "\n".join(f"- {tag}" for tag in ("halikit", "adversarially-learned-inference", "hierarchical-latents"))
    return f"---\nlibrary_name: halikit\n{chosen}\ntags:\n{tags}\n---"


def _introduction(run: Run) -> str:
    levels = run.levels
    method = {
        "adversarial": "trained by hierarchical adversarially learned inference",
        "elbo": "trained by the evidence lower bound",
        "supervised": "whose encoder was trained on labels alone",
    }[run.settings.training.method]
    count = "one level" if levels == 1 else f"{levels} levels"
    return (
        f"A stack of {count} of latent variables, {method}, with halikit {__version__}. "
        "It draws samples, encodes data, reconstructs them from every level, fills in missing pixels, and edits."
    )


def _pictures(run: Run) -> Iterator[str]:
    for name, grid in run.grids().items():
        title = _GRIDS[name]
        yield f"![{title}](samples/{grid.name})\n\n{title}; averaged weights."


def _use(repo: str, run: Run) -> str:
    with safe_open(run.model_file, "pt") as file:
        is_built = json.loads(file.metadata()["halikit"])["config"] is not None
    build = "" if is_built else ", build=build"
    note = "" if is_built else "\n\nIts kernels are of the author's own: `build` is the function that makes the model."
    context, given = _example_context(run.settings.model)
    return (
        "## Use\n\nWith halikit and its extra `hub` installed, from a shell or from Python:\n\n"
        f"```console\n$ halikit pull {repo}\n```\n\n```python\n{'import torch' + chr(10) * 2 if given else ''}"
        "import halikit as hk\n\n"
        f'model = hk.from_pretrained("{repo}"{build})\n{context}'
        f"samples = model.hierarchy.sample(16{given})  # in [−1, 1] for images\n"
        f"states = model.hierarchy.encode(samples{given})\n```{note}"
    )


def _example_context(settings: ModelSettings) -> tuple[str, str]:
    """For a conditional model: a line of Python that makes a context for 16 samples, and the argument."""
    if settings.conditional is None:
        return "", ""
    made = (
        f"torch.arange(16) % {settings.context_size}  # the class of each sample"
        if settings.conditional == "labels"
        else f"torch.zeros(16, {settings.context_size})  # attributes, 0 or 1"
    )
    return f"c = {made}\n", ", context=c"


def _data_and_settings(config: Config) -> str:
    training = config.training
    shape = "×".join(map(str, config.model.data_shape or ()))
    facts = {
        "data": config.data.spec,
        "shape of x": shape,
        "preset": config.preset or "none",
        "levels": config.model.levels,
        "steps": f"{training.steps:,} of {training.batch_size}",
        "learning rate": config.optimiser.learning_rate,
        "seed": training.seed,
    }
    if config.plays:
        facts["objective"] = config.game.objective.replace("_", " ")
    if config.labels is not None:
        facts["labelled examples"] = config.labels.number
    if config.model.conditional:
        facts["context"] = f"{config.model.context_size} {config.model.conditional}, given to all networks"
    facts = {name: value for name, value in facts.items() if value != ""}
    return "## Data and settings\n\n" + _table(facts) + "\n\n`config.toml` has every setting."


def _measured(run: Run) -> str:
    last = {name: [value for value in column if value == value] for name, column in run.metrics().items()}
    errors = {name: f"{column[-1]:.4f}" for name, column in last.items() if name.startswith("error_") and column}
    if not errors:
        return ""
    rows = {name.removeprefix("error_"): value for name, value in errors.items()}
    curves = [
        f"![{path.stem.replace('-', ' ')}](figures/{path.name})"
        for path in sorted(run.figures_folder.glob("training-*.png"))
    ]
    note = "Root mean square error per element of reconstructions from each latent, over held-out data: estimates."
    return "\n\n".join(["## Measured", note, _table(rows), *curves])


def _findings(run: Run) -> Iterator[str]:
    for finding in run.findings():
        if run.picture_of(finding).is_file():
            yield _section(finding, f"![{_plain(finding.title)}](figures/{finding.name}.png)")
        elif finding.lines:
            yield _section(finding, "")


def _section(finding: Finding, picture: str) -> str:
    lines = [f"    {line}" for text in (*finding.lines, f"$ {finding.command}") for line in text.splitlines()]
    return "\n\n".join(filter(None, [f"### {_plain(finding.title)}", picture, "\n".join(lines)]))


def _limits(config: Config) -> str:
    limits = [
        f"It knows {config.data.spec} and nothing else: other data come back as the nearest of these.",
        "Reconstructions change what they show, the more so from higher levels, which keep what it is and "
        "lose which one; what is filled in is plausible, not what was there.",
        "Its samples are as one-sided as the data that it was trained on.",
    ]
    if config.plays:
        limits.append("It has no likelihood of data, and nothing here says how much of them its samples cover.")
    return "## Limits\n\n" + "\n".join(f"- {_plain(limit)}" for limit in limits)


def _table(facts: Mapping[str, object] | Mapping[str, str]) -> str:
    rows: Sequence[str] = [f"| {_plain(str(name))} | {_plain(str(value))} |" for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _plain(text: str) -> str:
    """The text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#!~])", r"\\\1", " ".join(text.split()))
