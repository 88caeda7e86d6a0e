"""What ``halikit evaluate`` measures: one function a metric."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from halikit.data import DataSet, Split
    from halikit.model import Model


class Asked(NamedTuple):
    """What is to be measured on, and how."""

    model: Model
    data: DataSet
    part: Split
    number: int
    classifier: str
    scale: str | None
    features: Path | None
    noiseless: bool
    generator: torch.Generator
    seed: int


class Found(NamedTuple):
    """What came out, for people and for programs."""

    title: str
    lines: list[str]
    values: dict[str, Any]
    picture: NDArray[np.uint8] | None = None


def labels(asked: Asked) -> Found:
    """Labels kept, classes covered."""
    from dataclasses import asdict
    from typing import cast, get_args

    from halikit.analysis.labels import LabelClassifier, label_scores
    from halikit.errors import InputError

    if asked.classifier not in get_args(LabelClassifier):
        raise InputError(f"--classifier is {' or '.join(get_args(LabelClassifier))}, got {asked.classifier!r}")
    scores = label_scores(
        asked.model.hierarchy,
        asked.data,
        part=asked.part,
        num_samples=asked.number,
        classifier=cast(LabelClassifier, asked.classifier),
        seed=asked.seed,
    )
    shares = "  ".join(
        f"{name} {share:.1%}" for name, share in zip(asked.data.classes, scores.class_shares, strict=True)
    )
    lines = [
        f"labels kept, of {scores.num_held_out:,} held-out images (the images themselves: {scores.reference:.1%})",
        *(f"  level {level}  {kept:.1%}" for level, kept in enumerate(scores.kept, 1)),
        f"classes of {scores.num_samples:,} samples\n  {shares}",
        f"distance to the nearest training image\n  samples {scores.sample_distance:.2f}, "
        f"held-out images {scores.held_out_distance:.2f}",
    ]
    recovered = recovery(asked)
    return Found("Labels kept, classes covered", lines + recovered.lines, asdict(scores) | {**recovered.values})


def recovery(asked: Asked) -> Found:
    """How much of each latent the encoder recovers from the decoder's samples."""
    from halikit.analysis.recovery import recovery as measured
    from halikit.utils.random import seeded

    hierarchy = asked.model.hierarchy
    with seeded(asked.seed, hierarchy.prior.device):
        found = measured(hierarchy, asked.number)
    lines = [f"latents recovered from {found.num_samples:,} samples, of 1 (estimates): in one step, from x"]
    lines += [
        f"  {space.name}  {one_step:.3f}  {from_x:.3f}"
        for space, one_step, from_x in zip(hierarchy.spaces[1:], found.in_one_step, found.from_x, strict=True)
    ]
    values = {"recovery": without_nan(found.in_one_step), "recovery_from_x": without_nan(found.from_x)}
    return Found("Latents recovered", lines, {"num_samples": found.num_samples} | values)


def without_nan(values: Sequence[float]) -> list[float | None]:
    """Numbers as JSON takes them: none where nothing varies."""
    return [None if math.isnan(value) else value for value in values]


def reconstruction(asked: Asked) -> Found:
    """Errors of every level, and the discriminator's bound on how far the joints are apart."""
    from halikit.analysis.quantity import Quantity
    from halikit.analysis.reconstruction import distances, js_bound, reconstruction_error
    from halikit.errors import InputError
    from halikit.kernels import NoDensityError

    hierarchy, discriminator = asked.model.hierarchy, asked.model.discriminator
    scale, x, fitted = _observation_scale(asked, _measured_on(asked))
    levels = range(1, len(hierarchy) + 1)
    found = distances(hierarchy, discriminator, x)
    judged = [] if found.embedded is None else list(found.embedded)
    euclidean = [Quantity.mean(values, "estimate", "per element") for values in found.euclidean]
    embedded = [Quantity.mean(values, "estimate") for values in judged]
    nats: list[Quantity] | None = None
    refusal = None
    try:
        nats = [
            reconstruction_error(hierarchy, x, level, scale=scale, generator=asked.generator).mean for level in levels
        ]
    except NoDensityError as error:
        refusal = str(error)
    except ValueError as error:
        raise InputError(f"--scale: {error}") from None
    bounds = js_bound(hierarchy, discriminator, x, generator=asked.generator) if discriminator else ()
    lines = [f"on {len(x):,} held-out data", "root mean square of x − x̂"]
    lines += [f"  level {level}  {quantity}" for level, quantity in zip(levels, euclidean, strict=True)]
    lines += ["discriminator-embedded distance (Eq. 8)" + ("" if embedded else ": none, there is no discriminator")]
    lines += [f"  level {level}  {quantity}" for level, quantity in enumerate(embedded, 1)]
    lines += ["E[−log p(x|z_l)] (Eq. 5)" + (f", observation scale {scale:.4g}{fitted}" if scale else "")]
    if nats is None:
        lines += [f"  none: {refusal}", "  (here: --scale fit, or --scale NUMBER)"]
    else:
        lines += [f"  level {level}  {quantity}" for level, quantity in zip(levels, nats, strict=True)]
    names = ["joints"] if len(bounds) == 1 else [f"level {level}" for level in levels]
    if bounds:
        lines += ["D_JS of the two joints, from log 2 − L_d/2; at most 0.6931"]
    lines += [f"  {name}  {quantity}" for name, quantity in zip(names, bounds, strict=False)]
    values = {
        "number": len(x),
        "euclidean": [quantity.as_dict() for quantity in euclidean],
        "embedded": [quantity.as_dict() for quantity in embedded],
        "nats": None if nats is None else [quantity.as_dict() for quantity in nats],
        "nats_refused": refusal,
        "observation_scale": scale,
        "js_lower_bounds": [quantity.as_dict() for quantity in bounds],
    }
    return Found("Reconstruction errors", lines, values)


def _observation_scale(asked: Asked, x: torch.Tensor) -> tuple[float | None, torch.Tensor, str]:
    """The scale asked for, the data left to measure on, and where the scale is from."""
    from halikit.analysis.reconstruction import fit_observation_scale
    from halikit.errors import InputError

    if asked.scale is None:
        return None, x, ""
    if asked.scale == "fit":
        half = len(x) // 2
        scale = fit_observation_scale(asked.model.hierarchy, x[:half], generator=asked.generator)
        return scale, x[half:], f", fitted on {half:,} others"
    try:
        scale = float(asked.scale)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise InputError(f"--scale takes a positive number or fit, got {asked.scale!r}")
    return scale, x, ""


def health(asked: Asked) -> Found:
    """Use of the latents, mismatch of the joints, alarms."""
    from dataclasses import asdict

    from halikit import plotting
    from halikit.analysis.health import examine

    hierarchy = asked.model.hierarchy
    x = _measured_on(asked)
    found = examine(hierarchy, x, seed=asked.seed)
    lines = [f"on {len(x):,} held-out data"]
    for level in found.levels:
        name = level.name
        lines += [
            f"{name}  information on x         {level.information or 'none: it takes 256 data'}",
            f"    error from {name}            {level.error}",
            f"    from another datum's       {level.error_shuffled}",
            f"    entries that hardly vary   {level.dead:.1%} (estimate)",
            f"    recovered from samples     {level.recovery:.3f} in one step, {level.recovery_from_x:.3f} from x; "
            f"worth {level.decoder_use:.3g} times to the decoder (estimates)",
            f"    D_JS of q({name}), p({name})     {level.aggregate.js_bound}, p-value {level.aggregate.p_value:.2g}",
            f"    D_JS of the pair below     {level.pair.js_bound}, p-value {level.pair.p_value:.2g}",
        ]
    lines += [
        f"x   D_JS of data and samples   {found.data.js_bound}, p-value {found.data.p_value:.2g}",
        f"    spread of samples          {found.spread:.3f} of that of the data (estimate)",
    ]
    lines += [f"ALARM  {alarm}" for alarm in found.alarms] or ["no alarm"]
    picture = plotting.as_picture(plotting.health(found))
    return Found("Health", lines, {"number": len(x)} | asdict(found), picture)


def samples(asked: Asked) -> Found:
    """Distances between samples and data."""
    import torch

    from halikit.analysis import sample_quality
    from halikit.analysis.sampling import sample

    hierarchy = asked.model.hierarchy
    x = _measured_on(asked)
    sizes = [min(500, len(x) - i) for i in range(0, len(x), 500)]
    drawn = torch.cat([sample(hierarchy, n, noiseless=asked.noiseless, generator=asked.generator) for n in sizes])
    network = _feature_network(asked)
    kinds = [x.flatten(1), drawn.flatten(1)]
    if network is not None:
        kinds = [torch.cat([network(chunk) for chunk in images.split(100)]) for images in (x, drawn)]
    found = sample_quality.manifolds(*kinds)
    described = {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}
    if network is not None:
        described["fid"] = sample_quality.frechet_distance(*kinds)
        described["kid"] = sample_quality.kernel_distance(*kinds, seed=asked.seed)
    where = f"features of {asked.features}" if asked.features else "pixels"
    lines = [f"{len(x):,} samples against as many held-out data, in {where}"]
    lines += [f"  {name:10} {quantity}" for name, quantity in described.items()]
    if network is None:
        lines.append("  no FID or KID: they need features, --features FILE.onnx or CLASSIFIER.safetensors")
    values = {name: quantity.as_dict() for name, quantity in described.items()}
    about = {"number": len(x), "noiseless": asked.noiseless, "features": str(asked.features or "pixels")}
    return Found("Samples and data", lines, about | values)


def _feature_network(asked: Asked) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The network asked for: a classifier that --metric attributes has kept, or one in ONNX."""
    from halikit.analysis.attributes import classifier_features, load_classifier
    from halikit.analysis.sample_quality import onnx_features
    from halikit.errors import InputError

    if asked.features is None:
        return None
    if asked.features.suffix != ".safetensors":
        return onnx_features(asked.features)
    classifier = load_classifier(asked.features, device=asked.model.hierarchy.prior.device)
    if classifier.shape != asked.data.shape:
        raise InputError(
            f"{asked.features} takes images of {classifier.shape}, and {asked.data.spec} has {asked.data.shape}"
        )
    return classifier_features(classifier)


def _measured_on(asked: Asked) -> torch.Tensor:
    """The first held-out data, as many as were asked for."""
    import torch

    index = torch.arange(min(asked.number, len(asked.part)))
    return asked.part.batch(index).to(asked.model.hierarchy.prior.device)
