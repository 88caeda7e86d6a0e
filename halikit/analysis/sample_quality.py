"""Distances between samples and data: precision, recall, density and coverage; FID and KID in chosen features."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from halikit.analysis.batched import batches, in_batches
from halikit.analysis.quantity import Quantity
from halikit.errors import InputError
from halikit.utils.random import seeded

__all__ = ["Manifolds", "check_torchmetrics", "frechet_distance", "kernel_distance", "manifolds", "onnx_features"]

# Rows whose distances are taken at a time.
_CHUNK = 1000


@dataclass(frozen=True)
class Manifolds:
    """Comparison of data and samples by balls around each point that reach to its k-th neighbour: estimates.

    Attributes:
        precision: Share of samples in the ball of some datum (Kynkäänniemi et al. 2019), in [0, 1].
        recall: Share of data in the ball of some sample, in [0, 1].
        density: Mean number of data whose ball contains a sample, over k (Naeem et al. 2020); 1 for samples distributed
            like the data.
        coverage: Share of data whose ball contains a sample, in [0, 1].
    """

    precision: Quantity
    recall: Quantity
    density: Quantity
    coverage: Quantity


@torch.no_grad()
def manifolds(data: Tensor, samples: Tensor, *, k: int = 5) -> Manifolds:
    """Compare two sets by the neighbourhoods of their points.

    Args:
        data: Features of data, ``(n, …)`` with n > k.
        samples: Features of samples, ``(m, …)`` with m > k; m should be n.
        k: A ball reaches to the k-th neighbour.

    Raises:
        ValueError: If there are too few.
    """
    data, samples = data.flatten(1).float(), samples.flatten(1).float()
    if min(len(data), len(samples)) <= k:
        raise ValueError(f"balls to the {k}-th neighbour need more than {k} points, got {len(data)} and {len(samples)}")
    data_radii, sample_radii = _radii(data, k), _radii(samples, k)
    recalled, covered, balls = [], [], []
    for rows, chunk in batches(data, _CHUNK):
        distance = torch.cdist(chunk, samples)
        recalled.append((distance < sample_radii).any(1))
        inside = distance < data_radii[rows].unsqueeze(1)
        covered.append(inside.any(1))
        balls.append(inside.sum(0))
    counts = torch.stack(balls).sum(0)

    def estimate(values: Tensor) -> Quantity:
        return Quantity.mean(values, "estimate")

    return Manifolds(
        estimate(counts > 0), estimate(torch.cat(recalled)), estimate(counts / k), estimate(torch.cat(covered))
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance from each point to its k-th neighbour, ``(n,)``."""
    # A point is its own nearest neighbour.
    return in_batches(lambda chunk: torch.cdist(chunk, x).kthvalue(k + 1, 1).values, x, _CHUNK)


@torch.no_grad()
def frechet_distance(data: Tensor, samples: Tensor) -> Quantity:
    """``‖μ − ν‖² + tr(S + T − 2 (ST)^½)`` of Gaussians fitted to features: FID in the given features.

    It is an estimate with an upward bias on small sets; compare only values from equal numbers of data.

    Args:
        data: Features of data, ``(n, d)`` with n ≥ 2.
        samples: Features of samples, ``(m, d)`` with m ≥ 2.

    Raises:
        InputError: If torchmetrics is not installed.
    """
    check_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    data, samples = (x.detach().flatten(1).double().cpu() for x in (data, samples))
    metric = FrechetInceptionDistance(feature=_Features(data.shape[1]))
    metric.update(data, real=True)
    metric.update(samples, real=False)
    return Quantity(max(float(metric.compute()), 0.0), "estimate", count=min(len(data), len(samples)))


@torch.no_grad()
def kernel_distance(data: Tensor, samples: Tensor, *, subsets: int = 50, size: int = 500, seed: int = 0) -> Quantity:
    """The squared maximum mean discrepancy under ``(uᵀv/d + 1)³``: KID in the given features; an unbiased estimate.

    Args:
        data: Features of data, ``(n, d)``.
        samples: Features of samples, ``(m, d)``.
        subsets: Number of random subsets to average over. They overlap, so the standard error is approximate.
        size: Size of a subset, at most.
        seed: Seed of the subsets.

    Raises:
        InputError: If torchmetrics is not installed.
    """
    check_torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    data, samples = (x.detach().flatten(1).double().cpu() for x in (data, samples))
    with warnings.catch_warnings(), seeded(seed):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")  # they are in memory anyway
        size = min(size, len(data), len(samples))
        metric = KernelInceptionDistance(feature=_Features(data.shape[1]), subsets=subsets, subset_size=size)
        metric.update(data, real=True)
        metric.update(samples, real=False)
        mean, std = map(float, metric.compute())
    error = std / (subsets - 1) ** 0.5 if subsets > 1 else None  # torchmetrics divides by the number of subsets
    return Quantity(mean, "estimate", standard_error=error, count=subsets)


def check_torchmetrics() -> None:
    """Refuse FID and KID where the extra that computes them is not installed.

    Raises:
        InputError: If torchmetrics is not installed.
    """
    if find_spec("torchmetrics") is None:
        raise InputError("FID and KID need torchmetrics: pip install 'halikit[torchmetrics]'")


class _Features(nn.Identity):
    """The feature network that torchmetrics calls: its inputs are features already.

    Args:
        num_features: Number of features.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def onnx_features(path: Path | str) -> Callable[[Tensor], Tensor]:
    """A feature network from an ONNX file, as a function of images.

    Args:
        path: File of a network from ``(n, C, H, W)`` float32 in [−1, 1] to features ``(n, …)``, its first output. The
            network itself resizes and normalises.

    Returns:
        A function from images on any device to features ``(n, d)`` on the CPU.

    Raises:
        InputError: If the file cannot be read, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError("feature networks in ONNX need onnxruntime: pip install 'halikit[onnx]'") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has another class for each cause
        raise InputError(f"cannot read the feature network {path}: {str(error).splitlines()[0]}") from None
    name = session.get_inputs()[0].name

    def features(images: Tensor) -> Tensor:
        """Features ``(n, k)`` of images, on the CPU."""
        try:
            (found, *_) = session.run(None, {name: images.detach().float().cpu().numpy()})
        except Exception as error:
            raise InputError(
                f"the feature network {path} does not take images of {tuple(images.shape[1:])}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        return torch.from_numpy(found).flatten(1)

    return features
