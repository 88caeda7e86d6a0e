"""Attributes of images that reconstructions keep, measured by a VGG-16 classifier (section 5.2, Tables 1 and 5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from halikit.analysis.batched import batches, in_batches
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

# Images that pass through the networks at a time, and batch size of the training.
_CHUNK = 250
_BATCH = 64
# Convolutions of VGG-16 (configuration D of Simonyan and Zisserman 2015), group by group: feature maps, in units of the
# width.
_GROUPS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class Vgg16(nn.Module):
    """VGG-16 with batch normalisation: thirteen 3×3 convolutions in five groups, pooling between, three dense layers.

    Args:
        shape: Shape of an image, ``(C, H, W)``; a group is followed by pooling if a side is longer than one pixel.
        questions: Number of logits.
        width: Feature maps of the first group: 64 in VGG-16, fewer to save time.
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
    """A trained network that answers questions about images.

    Attributes:
        network: The network, in evaluation mode.
        shape: Shape of an image, ``(C, H, W)``.
        names: Names of the questions.
        width: Width of the network.
        trained_on: Data spec without its directories, number of images and of epochs, and seed.
        scores: Balanced accuracy for each question on the original images of the held-out part.
    """

    network: Vgg16
    shape: tuple[int, ...]
    names: tuple[str, ...]
    width: int
    trained_on: str
    scores: tuple[float, ...]


def fit_classifier(
    train: Split,
    held_out: Split,
    questions: Questions,
    *,
    spec: str,
    width: int = 64,
    epochs: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> Classifier:
    """Train a classifier on the training part, and score it on the original images of the held-out part.

    Adam with batches of 64; the learning rate falls from 1e-3 to 0 along a cosine. Positives and negatives have equal
    weight.

    Args:
        train: Images to train on; ``questions.fit`` has their answers.
        held_out: Held-out images to score on; ``questions.test`` has their answers. No choice depends on them.
        questions: The questions.
        spec: Data spec, for ``trained_on``.
        width: Width of the network.
        epochs: Number of epochs.
        seed: Seed for weights, data order and dropout.
        device: Device to train on.
        on_progress: Called with (steps done, all steps).

    Raises:
        InputError: If the data are not images, or fewer than a batch.
    """
    shape = tuple(train.images.shape[1:])
    if len(shape) != 3 or len(train) < _BATCH:
        raise InputError(
            f"a classifier is trained on {_BATCH} images (C, H, W) or more, got {len(train)} data of shape {shape}"
        )
    answers = torch.from_numpy(questions.fit)
    positives = answers.double().mean(0)
    weight = ((1 - positives) / positives).float().to(device)
    with seeded(seed, device):
        network = Vgg16(shape, len(questions.names), width).to(device).train()
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
    trained_on = f"{len(train):,} images of {spec.partition(':')[0]}, {epochs} epochs, seed {seed}"
    classifier = Classifier(network, shape, questions.names, width, trained_on, ())
    return replace(classifier, scores=original_scores(classifier, held_out, questions))


def original_scores(classifier: Classifier, part: Split, questions: Questions) -> tuple[float, ...]:
    """Balanced accuracy on the original images of a part, in [0, 1], for each question of ``questions.test``."""
    return _scores(classifier, part, questions, lambda x, rows: x)


def reconstruction_scores(
    classifier: Classifier, hierarchy: Hierarchy, part: Split, questions: Questions, level: int
) -> tuple[float, ...]:
    """Balanced accuracy on reconstructions from one level along the means, in [0, 1], for each question.

    Args:
        classifier: A classifier for the same questions.
        hierarchy: A hierarchy in evaluation mode; given the contexts of the images, if it takes one.
        part: The original images.
        questions: The questions; ``questions.test`` has the answers of the part.
        level: Level, between 1 and L.
    """
    return _scores(classifier, part, questions, lambda x, rows: hierarchy.rows(rows).reconstruct(x, level))


def preservation(
    classifier: Classifier, models: dict[str, tuple[float, ...]], questions: Questions, title: str, *, fewest: int
) -> Comparison:
    """A table of scores on reconstructions, each divided by the score on the original images.

    Args:
        classifier: The classifier with its scores on the original images.
        models: Scores of reconstructions for each question, by the name of a model and level.
        questions: The questions.
        title: Title of the table.
        fewest: A question with fewer positives or negatives in a part counts as rare.
    """
    normalised = [tuple(s / own for s, own in zip(v, classifier.scores, strict=True)) for v in models.values()]
    rows = tuple(zip(classifier.scores, *normalised, strict=True))
    return Comparison(title, ("data", *models), questions.names, rows, questions.rare(fewest), unranked=1)


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier with its scores to one safetensors file, atomically.

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
        InputError: If the file is missing, damaged, or not a classifier.
    """
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["halikit_classifier"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["schema"] != SCHEMA:
            raise InputError(
                f"{path} is of another version of halikit (schema {about['schema']}, this one reads {SCHEMA})"
            )
        shape, names = tuple(about["shape"]), tuple(about["names"])
        network = Vgg16(shape, len(names), about["width"])
        network.load_state_dict(tensors)
        scores = tuple(about["scores"])
        return Classifier(network.to(device).eval(), shape, names, about["width"], about["trained_on"], scores)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a classifier of attributes, or it is damaged: {error}") from None


def classifier_features(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """The classifier without its last layer: a feature network for :mod:`halikit.analysis.sample_quality`.

    Returns:
        A function from images ``(n, C, H, W)`` in [−1, 1] on the classifier's device to features ``(n, 8 width)`` on
        the CPU.
    """
    layers = classifier.network.layers[:-1]

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return in_batches(lambda x: layers(x).cpu(), images, _CHUNK)

    return features


@torch.no_grad()
def _scores(
    classifier: Classifier, part: Split, questions: Questions, change: Callable[[Tensor, slice], Tensor]
) -> tuple[float, ...]:
    """Balanced accuracy on images of a part, changed with their rows, for each question of ``questions.test``."""
    device = next(classifier.network.parameters()).device
    found = [classifier.network(change(x, rows)).cpu() > 0 for rows, x in batches(part, _CHUNK, device=device)]
    predicted = torch.cat(found).numpy()
    return tuple(balanced_accuracy(predicted[:, i], questions.test[:, i]) for i in range(len(questions.names)))
