"""``halikit train``: from a data set to a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halikit.cli import common

if TYPE_CHECKING:
    from halikit.config import Config
    from halikit.data import DataSet
    from halikit.model import Model
    from halikit.runs.checkpoints import Checkpoint
    from halikit.runs.record import Record
    from halikit.training.plan import Plan
    from halikit.training.trainer import Trainer


Labels = Annotated[int | None, typer.Option(min=1, help="Number of labelled examples to use, balanced over classes.")]
ModelSize = Annotated[
    str | None,
    typer.Option(
        help="Size of convolutional networks: tiny, small, base, large, or auto, which chooses by the device, its "
        "memory and the number of images.",
        show_default="auto",
    ),
]
Conditional = Annotated[
    bool, typer.Option("--conditional", help="Give all networks the class of each datum, or else its attributes.")
]
Baseline = Annotated[
    str | None, typer.Option(help="Train a baseline with the same networks and budget: ali, vae or hvae.")
]
Logger = Annotated[
    str | None,
    typer.Option(
        help="Where metrics and pictures go: csv, tensorboard, wandb, trackio, separated by commas. metrics.csv is "
        "always written.",
        show_default="csv,tensorboard",
    ),
]
ResumeFrom = Annotated[
    str | None, typer.Option(metavar="STEP|PATH", help="Continue from this checkpoint.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Load the data and print the settings; do not train.")]


def train(
    preset: Annotated[str | None, typer.Option(help="Name of a preset; see halikit presets.")] = None,
    levels: Annotated[int | None, typer.Option(min=1, help="Number of latent levels, 1 or more.")] = None,
    data: Annotated[str | None, typer.Option(help="digits, mnist:DIR, folder:DIR, or the path of a data set.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of steps.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.001, help="Passes over the data; instead of --steps.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Time to train for; the steps are measured first, then fixed. Instead of --steps."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images in each step.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/NAME by default.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed for weights, data order and noise.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32, 64 or bf16.")] = None,
    model_size: ModelSize = None,
    labels: Labels = None,
    conditional: Conditional = False,
    baseline: Baseline = None,
    logger: Logger = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.", show_default=False)] = None,
    assignments: common.Assignments = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's newest valid checkpoint.")] = False,
    resume_from: ResumeFrom = None,
    dry_run: DryRun = False,
    as_json: common.Json = False,
) -> None:
    """Train a model. Without options: three levels on scikit-learn's handwritten digits, without a download.

    Example: halikit train --levels 3

    Example: halikit train --data folder:photos --levels 4 --set data.size=64

    Example: halikit train --preset digits_conditional
    """
    import torch

    from halikit.config import override, parse_assignments, to_toml
    from halikit.errors import InputError
    from halikit.model import build
    from halikit.networks.sizes import SIZES
    from halikit.presets import BASELINES

    if baseline not in (None, *BASELINES):
        raise InputError(f"--baseline is one of {', '.join(BASELINES)}, got {baseline!r}")
    if model_size not in (None, "auto", *SIZES):
        raise InputError(f"--model-size is one of {', '.join(SIZES)}, auto; got {model_size!r}")
    flags = {
        "data.spec": data,
        "training.steps": steps,
        "training.batch_size": batch_size,
        "training.seed": seed,
        "hardware.device": device,
        "hardware.precision": precision,
        "labels.number": labels,
        "record.loggers": None if logger is None else tuple(logger.split(",")),
    }
    chosen = chosen_config(preset=preset, levels=levels, file=config, data=data)
    checkpoint = None
    if resume or resume_from:
        out = out or _run_of(resume_from) or _default_path(chosen, data or chosen.data.spec, baseline)
        checkpoint = _checkpoint(out, resume_from)
        # A baseline has another preset and other levels than the settings that it was derived from.
        names = {"preset": None, "levels": None} if baseline else {"preset": preset, "levels": levels}
        chosen = _resumed(checkpoint, chosen, file=config, **names)
    flags = {name: value for name, value in flags.items() if value is not None}
    size = _size_changes(chosen, model_size, resumes=checkpoint is not None)
    changes = [size, flags, parse_assignments(assignments or [])]
    chosen = reduce(override, changes, chosen)
    check_together(chosen)
    _check_length(steps, epochs, minutes, dry_run)
    fits_family = not (checkpoint or config)
    has_levels = levels is not None or any(not {"levels", "model.levels"}.isdisjoint(change) for change in changes)
    chosen, loaded = _with_data(chosen, changes, epochs, conditional, fits_family=fits_family, has_levels=has_levels)
    path = out or common.fresh(_default_path(chosen, loaded.spec, baseline))
    if baseline and not checkpoint:
        chosen = BASELINES[baseline](chosen)

    torch.manual_seed(chosen.training.seed)
    model = build(chosen)
    if dry_run:
        common.print_json(chosen.model_dump(mode="json")) if as_json else print(to_toml(chosen), end="")
        return
    _run(model, loaded, path, checkpoint, minutes, as_json)


def chosen_config(
    *, preset: str | None = None, levels: int | None = None, file: Path | None = None, data: str | None = None
) -> Config:
    """The settings of a file, a preset or the defaults, before the options that change single settings.

    Raises:
        InputError: If both a file and a preset are given.
    """
    from halikit.config import Config, override, read_toml
    from halikit.errors import InputError
    from halikit.presets import preset as preset_named

    if preset and file:
        raise InputError("--preset and --config both name all settings; give one of them, and --set for changes")
    if file:
        config = override(read_toml(file), {"levels": levels} if levels else {})
    elif preset:
        config = preset_named(preset)
    elif levels is None and data in (None, "digits"):
        return preset_named("digits")
    else:
        config = Config()
    return override(config, {"levels": levels} if levels else {})


def _run_of(resume_from: str | None) -> Path | None:
    """The run of a checkpoint that is given by its path."""
    return Path(resume_from).resolve().parent.parent if resume_from and not resume_from.isdecimal() else None


def _checkpoint(run: Path, resume_from: str | None) -> Checkpoint:
    from halikit.hardware.processes import is_first
    from halikit.runs.checkpoints import Checkpoints, find_checkpoint
    from halikit.runs.lock import locked

    # Locked, because a training in this directory would remove old checkpoints. Nothing is written here.
    with locked(run) if is_first() else nullcontext():
        return find_checkpoint(Checkpoints(run, keep=1), resume_from or True, common.warn)


def _resumed(
    checkpoint: Checkpoint, chosen: Config, *, preset: str | None, levels: int | None, file: Path | None
) -> Config:
    """The settings of the checkpoint, or of a file, before the options that change single settings."""
    from halikit.config import Config, override
    from halikit.errors import InputError

    if file:
        return chosen
    config = Config.parse(checkpoint.facts["config"], str(checkpoint.path))
    if preset and preset != config.preset:
        raise InputError(f"{checkpoint.path} is of {config.preset or 'no preset'}, not of the preset {preset!r}")
    # Widths depend on the levels. The trainer then raises an error that lists all differences.
    other = levels and levels != config.model.levels
    return override(config, {"levels": levels, "widths": None, "maps": None, "sleep_weights": "auto"} if other else {})


def _size_changes(config: Config, size: str | None, *, resumes: bool) -> dict[str, Any]:
    """What ``--model-size`` changes: the size, and settings in a file that are those of another size."""
    changes = dict.fromkeys(("model.size", "model.hidden", "model.depth", "model.units", "discriminator.width"))
    if size in (None, "auto"):
        # A run goes on with the size that was chosen at its start.
        return changes if size and config.model.size and not resumes else {}
    return changes | {"model.size": size}


def _check_length(steps: int | None, epochs: float | None, minutes: float | None, dry_run: bool) -> None:
    from halikit.errors import InputError

    if sum(value is not None for value in (steps, epochs, minutes)) > 1:
        raise InputError("--steps, --epochs and --minutes all say how long to train; give one of them")
    if minutes is not None and dry_run:
        raise InputError("--minutes measures how long steps take, and --dry-run plays none; leave one of them out")


def check_together(config: Config) -> None:
    """Check that the settings do not contradict each other.

    Raises:
        InputError: If the levels are not those of the preset.
    """
    from halikit.errors import InputError
    from halikit.presets import PRESETS

    levels = config.model.levels
    published = PRESETS[config.preset]().model.levels if config.preset in PRESETS else levels
    if levels != published:
        raise InputError(
            f"the preset {config.preset!r} has {published} levels and its networks are made for them; "
            f"for {levels} levels leave it out: halikit train --levels {levels} --data {config.data.spec}"
        )


def with_data_shape(config: Config) -> Config:
    """The config with ``model.data_shape``, read from the data if it is not set."""
    return config if config.model.data_shape else _fitted(config, _load(config), None)


def _load(config: Config) -> DataSet:
    from halikit import data

    with common.progress("reading the data") as advance:
        settings = config.data
        loaded = data.load(
            settings.spec,
            size=settings.size,
            strict=settings.strict,
            kind=settings.kind,
            channels=settings.channels,
            on_progress=advance,
            on_notice=common.warn,
        )
    settings.augmentation().check(loaded.shape)
    return loaded


def _with_data(
    config: Config,
    changes: Sequence[Mapping[str, Any]],
    epochs: float | None,
    conditional: bool,
    *,
    fits_family: bool,
    has_levels: bool,
) -> tuple[Config, DataSet]:
    """The data, and the settings that depend on them.

    Args:
        config: The settings, with the changes.
        changes: The changes that the options name, one after the other.
        epochs: Passes over the data, instead of the steps of the settings.
        conditional: Whether the model is to be given the labels or attributes of the data.
        fits_family: Whether settings that are neither of a preset nor of the paper are those of the family that fits
            the shape of the data.
        has_levels: Whether the number of levels was asked for; otherwise it is the recommended one too.

    Raises:
        InputError: If the labels are to be both given and found, or there is nothing to give.
    """
    from halikit.config import override
    from halikit.errors import InputError
    from halikit.presets import families

    if conditional and config.labels is not None:
        raise InputError("--conditional gives the model the labels that --labels is to find: give one of them")
    data = _load(config)
    if conditional:
        changes = [*changes, {"model.conditional": _context_kind(data)}]
        config = override(config, changes[-1])
    if fits_family and config.preset is None and config.model.family != "paper":
        levels = config.model.levels if has_levels else None
        config = reduce(override, changes, families.fitting(levels, data.shape, config.model.family))
    return _fitted(config, data, epochs), data


def _fitted(config: Config, data: DataSet, epochs: float | None) -> Config:
    from halikit.config import override
    from halikit.errors import InputError
    from halikit.hardware.memory import device_memory
    from halikit.hardware.processes import resolve_device
    from halikit.model import resolved
    from halikit.networks.shapes import fitting_family
    from halikit.networks.sizes import fitting_size

    # Checked before a model is built, which may take long.
    data.check_batch(config.training.batch_size)
    if config.model.data_shape not in (None, data.shape):
        raise InputError(
            f"{data.spec} has data of shape {list(data.shape)}, but model.data_shape is "
            f"{list(config.model.data_shape or ())}; set data.size, or --set data_shape=none to take the data's"
        )
    # The run must find its data from any working directory.
    prefix, colon, path = data.spec.partition(":")
    spec = f"{prefix}:{Path(path).resolve()}" if colon else prefix
    changes: dict[str, Any] = {"model.data_shape": data.shape, "data.spec": spec}
    if config.model.conditional:
        changes["model.context_size"] = data.context_size(config.model.conditional)
        if config.model.context_size not in (None, changes["model.context_size"]):
            raise InputError(
                f"{data.spec} has {changes['model.context_size']} {config.model.conditional}, but model.context_size "
                f"is {config.model.context_size}; --set context_size=none takes the data's"
            )
    if config.labels is not None:
        changes["model.classes"] = config.model.classes or len(data.classes) or None
    if epochs is not None:
        changes["training.steps"] = max(1, round(epochs * (len(data.train) // config.training.batch_size)))
    if config.model.size is None and (config.model.family or fitting_family(data.shape)) == "conv":
        device = resolve_device(config.hardware.device)
        changes["model.size"] = fitting_size(device.type, device_memory(device), len(data.train))
    return resolved(override(config, changes))


def _context_kind(data: DataSet) -> str:
    """What ``--conditional`` gives to the networks.

    Raises:
        InputError: If the data have neither labels nor attributes.
    """
    from halikit.errors import InputError

    if data.context_kind is None:
        raise InputError(f"{data.spec} has neither labels nor attributes, so --conditional has nothing to give")
    return data.context_kind


def _default_path(config: Config, spec: str, baseline: str | None) -> Path:
    # The last part of a path only, so that no config can write outside of runs/.
    name = f"{config.preset or Path(spec.split(':')[0]).name}-l{config.model.levels}"
    return Path("runs") / (f"{baseline}_{name}" if baseline else name)


def _run(
    model: Model, data: DataSet, path: Path, checkpoint: Checkpoint | None, minutes: float | None, as_json: bool
) -> None:
    from halikit.cli.progress import Progress
    from halikit.hardware.processes import is_first
    from halikit.runs.events import are_written
    from halikit.runs.run import Result, Run
    from halikit.training.trainer import Trainer

    assert model.config is not None
    console, narrator = common.console(stderr=as_json), common.narrator(stderr=as_json)
    if not is_first():
        console.quiet = narrator.quiet = True
    with Progress(narrator, model.config.training.steps) as progress:
        resume = checkpoint.path if checkpoint else False
        trainer = Trainer(model, data, out=path, resume=resume, on_record=progress, on_notice=common.warn)
        _introduce(narrator.print, model, data, trainer)
        with narrator.status("preparing the first steps; to compile them may take a minute"):
            steps = trainer.steps_within(minutes) if minutes else None
            cost = trainer.plan(steps)
        progress.expect(trainer.config.training.steps)
        _announce(narrator.print, model, trainer, cost)
        if steps:
            again = f"halikit train --config {path / 'config.toml'}"
            narrator.print(f"minutes  {minutes:g}: {steps:,} steps, fixed from here on; again: {again}", markup=False)
        trainer.fit(steps)
        last = progress.last
    if not is_first():
        return
    if last is None:
        if as_json:
            common.print_json({"run": str(path), "steps": trainer.steps})
        else:
            console.print(f"all {trainer.steps:,} steps are played; to train longer, give --steps", markup=False)
        return
    lines = [
        f"level {level}: root mean square error {error:.4f} per element on held-out data; "
        f"recovery of z{level} from samples {recovered:.2f}"
        for level, (error, recovered) in enumerate(zip(last.errors, last.recovery, strict=True), 1)
    ]
    result = _result(last, trainer)
    common.keep(Run(path), Result("train", "How it was trained", result, lines), common.command_line())
    if as_json:
        common.print_json(result)
        return
    if trainer.stopped:
        console.print(f"stopped at step {trainer.steps:,}: {trainer.stopped}", markup=False)
    for line in lines:
        console.print(line)
    if are_written() and "tensorboard" in trainer.config.record.loggers:
        narrator.print(f"curves   tensorboard --logdir {path}", style="dim", markup=False)
    narrator.print(f"open {path / 'report.html'}; then: halikit reconstruct {path}", style="dim", markup=False)
    common.report_path(path)


def _introduce(say: Callable[..., None], model: Model, data: DataSet, trainer: Trainer) -> None:
    """Say what is trained, on what."""
    from halikit.model import describe
    from halikit.training.sleep import RULE

    config, spaces = trainer.config, model.hierarchy.spaces
    weights = config.game.sleep_weights
    sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters()):,}" for name, part in model.parts.items())
    say(f"data     {data.spec}: {len(data.train):,} to train on, {len(data.held_out):,} held out", markup=False)
    say("spaces   " + " ⇄ ".join(map(str, spaces)), markup=False)
    say(f"networks {describe(model)}", markup=False)
    say(f"encoder  {model.hierarchy.encoder}\ndecoder  {model.hierarchy.decoder}", markup=False)
    if config.model.conditional:
        say(f"context  the {config.model.context_size} {config.model.conditional} of each datum", markup=False)
    say(f"weights  {sizes}", markup=False)
    if trainer.steps:
        say(f"resumes  at step {trainer.steps:,}", markup=False)
    if config.plays and isinstance(weights, tuple):
        listed = " · ".join(f"{space.name} {w:g}" for space, w in zip(spaces[1:], weights, strict=True))
        by_rule = model.config is not None and model.config.game.sleep_weights == "auto"
        say(f"sleep    weights {listed}" + (f": {RULE}" if by_rule else ""), markup=False)


def _announce(say: Callable[..., None], model: Model, trainer: Trainer, cost: Plan | None) -> None:
    """Say how it is trained, and what that will cost."""
    from halikit.model import size_of

    training, size = trainer.config.training, f" at size {size_of(model)}" if size_of(model) else ""
    plan = f"{training.steps:,} steps of {training.batch_size}{size}; {trainer.method.description}"
    say(f"plan     {plan}", markup=False)
    say(f"hardware {_hardware(trainer)}", markup=False)
    if cost:
        say(f"costs    {_costs(cost)}", markup=False)


def _hardware(trainer: Trainer) -> str:
    """Where and how the steps run, with the reasons for what ``auto`` chose."""
    hardware = trainer.config.hardware
    precision = {"32": "float32", "64": "float64", "bf16": "bfloat16"}[hardware.precision]
    steps = "compiled steps" if trainer.method.compile_mode else "eager steps"
    chosen = ((precision, trainer.precision_reason), (steps, trainer.compile_reason))
    listed = "; ".join(f"{what} ({why})" if why else what for what, why in chosen)
    threads = f", threads {hardware.threads}" if hardware.threads and trainer.hardware.device.type == "cpu" else ""
    return f"{trainer.hardware.device}{threads}; {listed}"


def _costs(plan: Plan) -> str:
    """An estimate of time and memory in words."""
    minutes, seconds = divmod(round(plan.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    whole = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    compiled = f", after {plan.preparation:.0f} s of preparation" if plan.preparation > 1 else ""
    return f"{1000 * plan.seconds_per_step:.3g} ms a step: about {whole} and {plan.memory / 2**30:.2g} GiB{compiled}"


def _result(last: Record, trainer: Trainer) -> dict[str, Any]:
    from halikit.analysis.quantity import without_nan

    assert trainer.run is not None
    return {
        "run": str(trainer.run.path),
        "steps": last.step,
        "levels": len(trainer.model.hierarchy),
        "seconds": last.seconds,
        "skipped": last.skipped,
        "rms_error": list(last.errors),
        "embedded_error": list(last.embedded),
        "recovery": without_nan(last.recovery),
        "recovery_from_x": without_nan(last.recovery_from_x),
        **last.losses,
    }
