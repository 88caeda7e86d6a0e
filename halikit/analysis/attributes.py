"""Whether reconstructions keep the attributes of images, by a VGG-16 trained on these (section 5.2, Tables 1 and 5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from halikit.analysis.comparison import Comparison
from halikit.analysis.svm import Questions, balanced_accuracy
from halikit.data import Split, order
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.utils.files import write_atomically
from halikit.utils.random import seeded

__all__ = [
    "Classifier",
    "Vgg16",
    "classifier_features",
    "fit_classifier",
    "load_classifier",
    "original_scores",
    "preservation",
    "reconstruction_scores",
    "save_classifier",
]

SCHEMA = 1

# Images pass through the networks this many at a time.
_CHUNK = 250
_BATCH = 64
# Convolutions of VGG-16 (configuration D of Simonyan and Zisserman 2015): maps, in units of the width, group by group.
_GROUPS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class Vgg16(nn.Module):
    """Thirteen 3×3 convolutions in five groups with pooling after each, and three dense layers; batch-normalised.

    Args:
        shape: ``(C, H, W)`` of an image; groups are pooled as long as there is something to halve.
        questions: Logits to give.
        width: Maps of the first group; 64 in VGG-16, fewer where time is short.
    """

    def __init__(self, shape: tuple[int, ...], questions: int, width: int = 64) -> None:
        super().__init__()
        channels, *size = shape
        layers: list[nn.Module] = []
        for group in _GROUPS:
            for factor in group:
                maps = factor * width
                layers += [nn.Conv2d(channels, maps, 3, padding=1, bias=False), nn.BatchNorm2d(maps), nn.ReLU()]
                channels = maps
            if min(size) > 1:
                layers.append(nn.MaxPool2d(2))
                size = [side // 2 for side in size]
        hidden = 8 * width
        layers.append(nn.Flatten())
        for inputs in (channels * size[0] * size[1], hidden):
            layers += [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.5)]
        layers.append(nn.Linear(hidden, questions))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, questions)`` of images ``(n, C, H, W)`` in [−1, 1]."""
        logits: Tensor = self.layers(x)
        return logits


@dataclass(frozen=True)
class Classifier:
    """A network trained to answer questions, with what it was trained on and how well it does.

    Attributes:
        network: In evaluation mode.
        shape: Of an image.
        names: Of the questions.
        width: Of the network.
        trained_on: Data spec without its directories, and how many images and epochs.
        scores: Balanced accuracy per question on the originals of the part that models are judged on.
    """

    network: Vgg16
    shape: tuple[int, ...]
    names: tuple[str, ...]
    width: int
    trained_on: str
    scores: tuple[float, ...]


def fit_classifier(
    train: Split,
    judged: Split,
    asked: Questions,
    *,
    spec: str,
    width: int = 64,
    epochs: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train a classifier on the answers of a training part, and score it on the originals to be reconstructed.

    Adam at 1e-3, falling to nothing along a cosine, batches of 64; positives and negatives weigh alike.

    Args:
        train: Images to train on; ``asked.fit`` are their answers.
        judged: Images to score; ``asked.test`` are their answers. They choose nothing.
        asked: The questions.
        spec: Where the images are from, for the record.
        width: Of the network.
        epochs: Passes over the training part.
        seed: Of weights, order and dropout.
        device: Where to train.
        on_progress: Called with (steps done, steps in all).

    Raises:
        InputError: If the data are no images, or fewer than a batch.
    """
    shape = tuple(train.images.shape[1:])
    if len(shape) != 3 or len(train) < _BATCH:
        raise InputError(f"a classifier takes {_BATCH} images (C, H, W) or more, got {len(train)} of {shape}")
    answers = torch.from_numpy(asked.fit)
    positives = answers.double().mean(0)
    weight = ((1 - positives) / positives).float().to(device)
    with seeded(seed, device):
        network = Vgg16(shape, len(asked.names), width).to(device).train()
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        per_epoch = len(train) // _BATCH
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * per_epoch)
        for epoch in range(epochs):
            batches = order(len(train), seed, epoch)[: per_epoch * _BATCH].split(_BATCH)
            for done, index in enumerate(batches, epoch * per_epoch + 1):
                logits = network(train.batch(index).to(device))
                loss = binary_cross_entropy_with_logits(logits, answers[index].float().to(device), pos_weight=weight)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                if on_progress:
                    on_progress(done, epochs * per_epoch)
    network.eval()
    about = f"{len(train):,} images of {spec.partition(':')[0]}, {epochs} epochs, seed {seed}"
    judge = Classifier(network, shape, asked.names, width, about, ())
    return Classifier(network, shape, asked.names, width, about, original_scores(judge, judged, asked))


def original_scores(classifier: Classifier, part: Split, asked: Questions) -> tuple[float, ...]:
    """Balanced accuracy on images as they are, per question; ``asked.test`` has the answers of the part."""
    return _scored(_answered(classifier, part, None, 0), asked.test)


def reconstruction_scores(
    classifier: Classifier, hierarchy: Hierarchy, part: Split, asked: Questions, level: int
) -> tuple[float, ...]:
    """Balanced accuracy on reconstructions from one level, along the means, per question.

    Args:
        classifier: Of the same questions.
        hierarchy: In evaluation mode.
        part: The originals.
        asked: With their answers as ``asked.test``.
        level: From 1 up.
    """
    return _scored(_answered(classifier, part, hierarchy, level), asked.test)


def preservation(
    classifier: Classifier, models: dict[str, tuple[float, ...]], asked: Questions, title: str, *, fewest: int
) -> Comparison:
    """The table: each score divided by the classifier's own on the originals.

    Args:
        classifier: With its scores.
        models: Scores of reconstructions per question, by the name of a model and level.
        asked: The questions.
        title: Of the table.
        fewest: Questions with fewer positives or negatives in a part stand apart.
    """
    normalised = [tuple(s / own for s, own in zip(v, classifier.scores, strict=True)) for v in models.values()]
    rows = tuple(zip(classifier.scores, *normalised, strict=True))
    return Comparison(title, ("data", *models), asked.names, rows, asked.rare(fewest), unranked=1)


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier and its score to one safetensors file, whole or not at all.

    Raises:
        InputError: If it cannot be written.
        ResourceError: If the disk is full.
    """
    about = {
        "schema": SCHEMA,
        "shape": list(classifier.shape),
        "names": list(classifier.names),
        "width": classifier.width,
        "trained_on": classifier.trained_on,
        "scores": list(classifier.scores),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in classifier.network.state_dict().items()}
    write_atomically(path, save(tensors, {"halikit_classifier": json.dumps(about)}))


def load_classifier(path: Path, *, device: torch.device | str = "cpu") -> Classifier:
    """Read a classifier.

    Raises:
        InputError: If the file is none, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["halikit_classifier"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["schema"] != SCHEMA:
            raise InputError(f"{path} is of another halikit (schema {about['schema']}, this one reads {SCHEMA})")
        shape, names = tuple(about["shape"]), tuple(about["names"])
        network = Vgg16(shape, len(names), about["width"])
        network.load_state_dict(tensors)
        scores = tuple(about["scores"])
        return Classifier(network.to(device).eval(), shape, names, about["width"], about["trained_on"], scores)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no classifier of attributes, or damaged: {error}") from None


def classifier_features(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """What a classifier makes of images before its last layer: features for :mod:`halikit.analysis.sample_quality`.

    Returns:
        From images ``(n, C, H, W)`` in [−1, 1] on its device to features ``(n, 8 width)`` on the CPU.
    """
    layers = classifier.network.layers[:-1]

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return torch.cat([layers(chunk).cpu() for chunk in images.split(_CHUNK)])

    return features


@torch.no_grad()
def _answered(classifier: Classifier, part: Split, hierarchy: Hierarchy | None, level: int) -> NDArray[np.bool_]:
    device = next(classifier.network.parameters()).device
    answers = []
    for index in torch.arange(len(part)).split(_CHUNK):
        x = part.batch(index).to(device)
        if hierarchy is not None:
            x = hierarchy.reconstruct(x, level)
        answers.append(classifier.network(x).cpu() > 0)
    found: NDArray[np.bool_] = torch.cat(answers).numpy()
    return found


def _scored(predicted: NDArray[np.bool_], answers: NDArray[np.bool_]) -> tuple[float, ...]:
    return tuple(balanced_accuracy(predicted[:, i], answers[:, i]) for i in range(answers.shape[1]))
