"""Models: built from a config, saved to one file and loaded from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from halikit.config import Config, override
from halikit.data import DataSet
from halikit.discriminator import Discriminator, JointDiscriminator, PlainDiscriminator
from halikit.earlier import (
    OTHER_NETWORKS,
    adapter_in,
    first_levels,
    has_other_networks,
    levels_in,
    upgraded_config,
    upgraded_tensors,
)
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.networks import paper
from halikit.networks.blocks import initialise
from halikit.networks.discriminator import DENSE_WIDTH, discriminator_for
from halikit.networks.ladder import ladder, ladder_choices
from halikit.networks.paper import paper_hierarchy
from halikit.networks.shapes import describe as ladder_in_words
from halikit.networks.sizes import SIZES, SizeName
from halikit.priors import make_prior
from halikit.settings import ContextKind
from halikit.supervision import with_classes
from halikit.utils.files import write_atomically

__all__ = ["Model", "ModelError", "build", "describe", "load", "resolved", "save_model", "size_of"]

FILE_NAME = "model.safetensors"
SCHEMA = 4
# What the names of the chosen weights begin with, and those of the others.
_WEIGHTS = {"averaged": ("averaged.", "hierarchy."), "raw": ("hierarchy.", "averaged.")}
# What the names of a model's tensors begin with; checkpoints have others as well.
_PARTS = ("hierarchy.", "averaged.", "discriminator.")
# Models that are part of the package, by name: averaged weights in half precision.
PRETRAINED = Path(__file__).parent / "pretrained"


class ModelError(InputError):
    """A saved model is missing or damaged, or does not fit the code that loads it."""


@dataclass(frozen=True)
class Model:
    """A hierarchy and the discriminator that plays against it.

    Attributes:
        hierarchy: Encoder, decoder and prior.
        discriminator: A discriminator over the hierarchy's spaces, or any module from states ``(n, *shape)`` by name to
            logits ``(n,)``; ``None`` if there is no game, as for an autoencoder.
        config: Config that the model was built from; ``None`` for kernels of the user's own.
    """

    hierarchy: Hierarchy
    discriminator: Discriminator | None = None
    config: Config | None = None

    def __post_init__(self) -> None:
        if isinstance(self.discriminator, nn.Module) and not isinstance(self.discriminator, Discriminator):
            plain = PlainDiscriminator(self.discriminator, self.hierarchy.spaces)
            object.__setattr__(self, "discriminator", plain)

    @property
    def takes_context(self) -> bool:
        """Whether a kernel or the discriminator depends on a context."""
        return self.hierarchy.takes_context or (self.discriminator is not None and self.discriminator.takes_context)

    def context_kind(self, data: DataSet) -> ContextKind | None:
        """What the model reads of each datum beside it: what its config says, or else labels, or else attributes.

        Raises:
            InputError: If it takes a context, and the data have none, or another number of classes or attributes.
        """
        if not self.takes_context:
            return None
        settings = self.config.model if self.config else None
        kind = (settings and settings.conditional) or data.context_kind
        if kind is None:
            raise InputError(f"the model takes a context, and {data.spec} has neither labels nor attributes to give it")
        found, size = data.context_size(kind), settings and settings.context_size
        if size not in (None, found):
            raise InputError(f"the model takes {size} {kind}, and {data.spec} has {found}")
        return kind

    def example_context(self, n: int) -> Tensor | None:
        """A context to try the model with: the first class ``(n,)``, or attributes of 0 ``(n, A)``.

        It is ``None`` for a model that takes no context, and for kernels of the user's own, whose context is not known.
        """
        settings = self.config.model if self.config else None
        if settings is None or settings.conditional is None or settings.context_size is None:
            return None
        device = self.hierarchy.prior.device
        if settings.conditional == "labels":
            return torch.zeros(n, dtype=torch.int64, device=device)
        return torch.zeros(n, settings.context_size, device=device)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The hierarchy and, if there is one, the discriminator, by name."""
        parts: dict[str, nn.Module | None] = {"hierarchy": self.hierarchy, "discriminator": self.discriminator}
        return {name: part for name, part in parts.items() if part is not None}


def build(config: Config) -> Model:
    """Build the model that a config describes; its weights are initialised by torch's global generator.

    Raises:
        InputError: If the shape of the data is missing or a setting does not fit it.
    """
    settings = config.model
    if settings.data_shape is None:
        raise InputError("model.data_shape is not set: the shape of x, such as [1, 28, 28]")
    if settings.conditional and settings.context_size is None:
        raise InputError("model.context_size is not set: the number of classes or attributes, such as 10")
    others = {"levels", "data_shape", "classes", "initial_scale", "prior", "prior_components", "prior_layers"}
    others |= {"conditional", "context_size"}
    options = settings.model_dump(include=set(settings.applicable), exclude=others)
    if settings.family == "paper":
        del options["family"]
    elif settings.conditional:
        options["context"] = settings.context_size
    try:
        make_hierarchy = paper_hierarchy if settings.family == "paper" else ladder
        hierarchy = make_hierarchy(settings.levels, settings.data_shape, **options)
        if settings.prior != "standard_normal":
            sizes = {"components": settings.prior_components, "layers": settings.prior_layers}
            hierarchy = Hierarchy(list(hierarchy), make_prior(settings.prior, hierarchy.spaces[-1], **sizes))
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    if settings.classes is not None:
        hierarchy = with_classes(hierarchy, settings.classes, gauge=settings.gauge, max_scale=settings.max_scale)
    try:
        size = settings.context_size
        # The size of a convolutional stack is that of its discriminator as well.
        played = resolved(config).discriminator
        discriminator = discriminator_for(hierarchy, played, context=size) if config.plays else None
    except ValueError as error:
        raise InputError(f"discriminator: {error}") from None
    model = Model(hierarchy, discriminator, config)
    for name, section in (("hierarchy", settings), ("discriminator", config.discriminator)):
        if name in model.parts and section.initial_scale is not None:
            initialise(model.parts[name], section.initial_scale)
    return model


def resolved(config: Config) -> Config:
    """The config with the ladder's default choices filled in.

    A saved config then gives the same model, even if a later version has other defaults.

    Raises:
        InputError: As in :func:`build`.
    """
    settings = config.model
    if settings.family == "paper" or settings.data_shape is None:
        return config
    arguments = settings.model_dump(include={"family", "maps", "widths", "size", "hidden", "depth", "units"})
    try:
        choices = ladder_choices(settings.levels, settings.data_shape, **arguments)
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    changes = {f"model.{name}": value for name, value in choices.items()}
    if config.plays and config.discriminator.family != "paper" and config.discriminator.width is None:
        changes["discriminator.width"] = SIZES[choices["size"]].discriminator if choices["size"] else DENSE_WIDTH
    return override(config, changes)


def describe(model: Model) -> str:
    """The networks of a model in one phrase."""
    if model.config is None:
        return "of your own"
    spaces = model.hierarchy.spaces[: model.config.model.levels + 1]
    family, size = model.config.model.family, size_of(model)
    words = paper.describe(spaces) if family == "paper" else ladder_in_words(spaces, family)
    return f"{words}; size {size}" if size else words


def size_of(model: Model) -> SizeName | None:
    """The size of a convolutional stack; ``None`` for other models."""
    size: SizeName | None = resolved(model.config).model.size if model.config else None
    return size


# ``load`` has an argument of the same name.
_build = build


def save_model(path: Path, model: Model, averaged: Hierarchy, *, config: Config | None, step: int) -> None:
    """Write raw and averaged weights and the config to one safetensors file, atomically.

    Args:
        path: The file.
        model: The model with its raw weights.
        averaged: The hierarchy with averaged weights.
        config: Config that the model was built from and trained with; ``None`` for kernels of the user's own.
        step: Number of training steps so far.

    Raises:
        ResourceError: If the disk is full.
    """
    parts = model.parts | {"averaged": averaged}
    about = {
        "schema": SCHEMA,
        "step": step,
        "levels": len(model.hierarchy),
        "config": config.model_dump(mode="json") if config else None,
    }
    write_atomically(path, save(unshared(named_tensors(parts)), {"halikit": json.dumps(about)}))


def named_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights and running statistics of several modules, as ``part.name``."""
    return {f"{part}.{name}": tensor for part, m in parts.items() for name, tensor in m.state_dict().items()}


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with copies of those that share memory: kernels may share weights, but safetensors refuses them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        result[name] = (tensor.detach().clone() if address in seen else tensor.detach()).contiguous()
        seen.add(address)
    return result


def load(
    run: str | Path,
    *,
    weights: Literal["averaged", "raw"] = "averaged",
    device: str | torch.device = "cpu",
    build: Callable[[], Model] | None = None,
) -> Model:
    """Load the model file of a run; ``hk.load`` reads checkpoints as well (:func:`halikit.runs.loading.load`).

    Args:
        run: A run directory, its ``model.safetensors``, or the name of a model that is part of halikit.
        weights: ``"averaged"`` or ``"raw"``.
        device: Device of the loaded model.
        build: Function that makes the model, for kernels of the user's own.

    Raises:
        ModelError: If the file is missing or damaged, or does not fit the model that was built.
    """
    _check_weights(weights)
    path = file_of(run)
    about, tensors = _read(path, weights)
    level = about["levels"]
    tensors = upgraded_tensors(tensors, level)
    model = _built(path, about, tensors, build)
    if level < len(model.hierarchy) and about["schema"] == 1:
        model = _grown_so_far(model, level, tensors)
    return _filled(path, model, tensors, device)


def assemble(
    path: Path,
    config: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
    *,
    weights: Literal["averaged", "raw"],
    device: str | torch.device,
    build: Callable[[], Model] | None,
) -> Model:
    """A model of the tensors of a checkpoint, in evaluation mode.

    Args:
        path: The checkpoint, for messages.
        config: Config that the model was built from; ``None`` for kernels of the user's own.
        tensors: All tensors of the checkpoint, named as by :func:`named_tensors`.
        weights: See :func:`load`.
        device: See :func:`load`.
        build: See :func:`load`.

    Raises:
        ModelError: If the tensors do not fit the model.
    """
    _check_weights(weights)
    chosen = _under_one_name({n: t for n, t in tensors.items() if n.startswith(_PARTS)}, weights)
    about = {"schema": SCHEMA, "levels": levels_in(chosen), "config": config}
    return _filled(path, _built(path, about, chosen, build), chosen, device)


def _check_weights(weights: str) -> None:
    if weights not in _WEIGHTS:
        raise ModelError(f"weights are 'averaged' or 'raw', got {weights!r}")


def _built(
    path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor], build: Callable[[], Model] | None
) -> Model:
    if build is not None:
        return build()
    if about["config"] is None:
        raise ModelError(f"{path} holds kernels of its author's own: pass build=, the function that makes the model")
    return _build_for(path, about, tensors)


def _filled(path: Path, model: Model, tensors: Mapping[str, Tensor], device: str | torch.device) -> Model:
    for name, part in model.parts.items():
        fill(path, part, tensors, name)
        part.to(device).eval()
    return model


def _grown_so_far(model: Model, level: int, tensors: dict[str, Tensor]) -> Model:
    """The trained levels of a model that halikit 0.1.0 had not fully grown. Removes the tensors of other levels."""
    hierarchy, discriminator = model.hierarchy[:level], model.discriminator
    if isinstance(discriminator, JointDiscriminator):
        discriminator = first_levels(discriminator, level, tensors)
    elif discriminator is not None:
        discriminator = discriminator[:level]
    grown = replace(model, hierarchy=hierarchy, discriminator=discriminator)
    names = named_tensors(grown.parts).keys()
    removed = [name for name in tensors if name not in names and name in named_tensors(model.parts)]
    for name in removed:
        del tensors[name]
    return grown


def levels_of(run: str | Path) -> int:
    """Number of levels of the model in a run.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    return int(_about(file_of(run))["levels"])


def steps_of(run: str | Path) -> int:
    """Number of training steps of the model in a run.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    return int(_about(file_of(run))["step"])


def has_raw_weights(run: str | Path) -> bool:
    """Whether the model file of a run holds the raw weights beside the averaged ones; shipped models do not.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    path = file_of(run)
    _about(path)
    with safe_open(path, "pt") as file:
        return any(name.startswith("hierarchy.") for name in file.keys())  # noqa: SIM118


def file_of(run: str | Path) -> Path:
    """The model file of a run: in its directory, or the given file, or, if neither exists, the shipped model.

    Args:
        run: A run directory, a model file, or the name of a model that is part of halikit. The file may be missing.
    """
    run = Path(run)
    path = run / FILE_NAME if run.is_dir() else run
    shipped = PRETRAINED / f"{run}.safetensors"
    return shipped if not path.is_file() and shipped.parent == PRETRAINED and shipped.is_file() else path


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        shipped = " or ".join(sorted(file.stem for file in PRETRAINED.glob("*.safetensors")))
        raise ModelError(f"there is no model at {path}: expected a run directory with {FILE_NAME} in it, or {shipped}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["halikit"])
            schema = int(about["schema"])
            # Under schema 1 stacks grew; "level" is the number of levels trained so far.
            about["levels"] = levels = int(about["levels" if schema > 1 else "level"])
            _ = (about["config"], int(about["step"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path} is no halikit model, or damaged: {error}") from None
    if schema > SCHEMA:
        raise ModelError(f"{path} was written by a newer halikit (schema {schema}, this one reads up to {SCHEMA})")
    if levels < 1:
        raise ModelError(f"{path} is damaged: it has {levels} levels")
    return about


def _build_for(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    """Build the model that a file describes, after a check that the file has the tensors of this model.

    The file may come from an untrusted source, so no memory is allocated before the check.

    Raises:
        ModelError: If the config is damaged, describes other tensors, or is of networks that are not built any more.
    """
    if not isinstance(about["config"], Mapping):
        raise ModelError(f"{path} is damaged: its config is no table")
    config = Config.parse(upgraded_config(about["config"]), str(path))
    if has_other_networks(config, about["schema"]):
        raise ModelError(f"{path} {OTHER_NETWORKS}")
    # Every level and every layer has tensors of its own, so a small file cannot describe a huge model.
    layers = config.model.prior_layers if config.model.prior == "flow" else 1
    layers = max(layers, config.model.depth or 1, config.discriminator.depth)
    if max(config.model.levels, layers, about["levels"]) > len(tensors):
        raise ModelError(f"{path} is damaged: its config is of a larger model than the {len(tensors)} tensors in it")
    try:
        # Tensors on the meta device have shapes, but take no memory.
        with torch.device("meta"):
            planned = _build(config)
            grows = about["schema"] == 1 and about["levels"] < len(planned.hierarchy)
            if grows and config.discriminator.family == "paper":
                raise InputError("the discriminator of the paper did not grow")
            if grows and isinstance(planned.discriminator, JointDiscriminator):
                planned.discriminator.head[1] = adapter_in(tensors, planned.discriminator)
    except (InputError, RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise ModelError(f"{path} holds a config that no model can be built from: {error}") from None
    if about["schema"] > 1 and about["levels"] != len(planned.hierarchy):
        raise ModelError(
            f"{path} is damaged: it says {about['levels']} levels, and its config {len(planned.hierarchy)}"
        )
    for name, part in planned.parts.items():
        _check_fit(path, part.state_dict(), tensors, name)
    return _build(config)


def _read(path: Path, weights: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the tensors of a file, with the chosen weights under the names of the hierarchy's weights."""
    about = _about(path)
    chosen, others = _WEIGHTS[weights]
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if not name.startswith(others)]  # noqa: SIM118
        if not any(name.startswith(chosen) for name in names):
            raise ModelError(f"{path} holds no {weights} weights")
        tensors = {name: file.get_tensor(name) for name in names}
    return about, _under_one_name(tensors, weights)


def _under_one_name(tensors: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """The tensors with the chosen weights under the names of the hierarchy's, and without the other weights."""
    chosen, others = _WEIGHTS[weights]
    return {
        f"hierarchy.{name.removeprefix(chosen)}" if name.startswith(chosen) else name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(others)
    }


def fill(path: Path, module: nn.Module, tensors: Mapping[str, Tensor], part: str) -> None:
    """Load the tensors of one part into a module.

    Args:
        path: File that the tensors come from, for the message.
        module: The module.
        tensors: Tensors of several parts, named as by :func:`named_tensors`.
        part: Name of the part.

    Raises:
        ModelError: If the part has tensors of other names or shapes than the module.
    """
    module.load_state_dict(_check_fit(path, module.state_dict(), tensors, part))


def _check_fit(
    path: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], part: str
) -> dict[str, Tensor]:
    stored = {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} is unknown" for name in stored if name not in expected]
    problems += [
        f"{name} is {tuple(stored[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in stored and stored[name].shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{path} does not fit the model built ({part}): {'; '.join(problems[:3])}{more}")
    return stored
