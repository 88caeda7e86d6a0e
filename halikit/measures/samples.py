"""``halikit evaluate samples``: how far samples are from data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halikit.measures.shared import OnTest, measured_part

if TYPE_CHECKING:
    import torch

    from halikit.runs.run import Result, Run

__all__ = ["samples"]

# Samples drawn at a time, and images that a feature network takes at a time.
_DRAWN, _FEATURES = 500, 100


def samples(
    run: Run,
    *,
    number: Annotated[int, typer.Option("-n", "--number", min=10, help="Number of samples, and of data.")] = 2000,
    test: OnTest = False,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Feature network, for FID and KID too: an ONNX file, or the classifier of `evaluate attributes`.",
            show_default=False,
        ),
    ] = None,
    noiseless: Annotated[
        bool, typer.Option("--noiseless", help="Take the mean of p(x|z1) instead of a draw, as for an autoencoder.")
    ] = False,
    seed: int = 0,
) -> Result:
    """Compare samples with held-out data: precision, recall, density and coverage, in pixels or in features.

    Example: halikit evaluate samples runs/digits

    Example: halikit evaluate samples runs/digits --features network.onnx
    """
    import torch

    from halikit.analysis import sample_quality
    from halikit.analysis.batched import in_batches, sampled_parts
    from halikit.analysis.sampling import sample
    from halikit.runs.run import Result

    if features is not None:
        sample_quality.check_torchmetrics()
    x = run.batch(measured_part(run, test, number))
    hierarchy = run.conditioned_at_random(len(x), seed)
    network = _feature_network(run, features)
    generator = torch.Generator(hierarchy.prior.device).manual_seed(seed)
    parts = sampled_parts(hierarchy, len(x), _DRAWN)
    drawn = torch.cat([sample(part, n, noiseless=noiseless, generator=generator) for n, part in parts])
    sets = [images.flatten(1) if network is None else in_batches(network, images, _FEATURES) for images in (x, drawn)]
    manifolds = sample_quality.manifolds(*sets)
    found = {name: getattr(manifolds, name) for name in ("precision", "recall", "density", "coverage")}
    if network is not None:
        found["fid"] = sample_quality.frechet_distance(*sets)
        found["kid"] = sample_quality.kernel_distance(*sets, seed=seed)
    where = f"features of {features}" if features else "pixels" if hierarchy.spaces[0].is_image else "values of x"
    lines = [f"{len(x):,} samples against as many held-out data, in {where}"]
    lines += [f"  {name:10} {quantity}" for name, quantity in found.items()]
    if network is None:
        lines.append("  no FID or KID: they need features, --features FILE.onnx or CLASSIFIER.safetensors")
    about = {"number": len(x), "noiseless": noiseless, "features": str(features or "pixels")}
    values = about | {name: quantity.as_dict() for name, quantity in found.items()}
    return Result("evaluate-samples", "Samples and data", values, lines)


def _feature_network(run: Run, path: Path | None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The feature network in a file; a ``.safetensors`` file holds a classifier of attributes."""
    from halikit.analysis.attributes import classifier_features, load_classifier
    from halikit.analysis.sample_quality import onnx_features
    from halikit.errors import InputError

    if path is None:
        return None
    if path.suffix != ".safetensors":
        return onnx_features(path)
    classifier = load_classifier(path, device=run.hierarchy.prior.device)
    if classifier.shape != run.data.shape:
        raise InputError(f"{path} takes images of {classifier.shape}, and {run.data.spec} has {run.data.shape}")
    return classifier_features(classifier)
