"""How much a linear classifier finds in the latents: one SVM per attribute or class (section 7.1, Tables 2 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.analysis.comparison import Comparison
from halikit.analysis.linear_svm import fit_svms, principal_coordinates
from halikit.config import Config
from halikit.data import DataSet, Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.model import build
from halikit.utils.random import seeded

__all__ = [
    "Questions",
    "SvmScores",
    "balanced_accuracy",
    "compare",
    "encoder_features",
    "feature_scores",
    "questions",
    "random_encoder",
    "svm_scores",
]

# Images pass through the networks this many at a time.
_CHUNK = 500
# Batches that give a random encoder's normalisations their statistics.
_SETTLING = 50
# Where the regularisation is looked for, from strong to weak, for standardised features; and how many weaker ones in a
# row may be no better before the search ends.
_GRID = tuple(10.0**exponent for exponent in range(-5, 2))
_PATIENCE = 2
# Share of the fitting part on which it is chosen.
_CHOICE = 0.25

Array = NDArray[Any]


class Questions(NamedTuple):
    """What is asked of each image, yes or no.

    Attributes:
        names: Of the attributes, or of the classes, each against the rest.
        fit: Answers of the part that classifiers are fitted on, ``(n, A)`` bool.
        test: Answers of the part that is reported on, ``(m, A)`` bool.
    """

    names: tuple[str, ...]
    fit: Array
    test: Array

    def rare(self, fewest: int) -> frozenset[str]:
        """The names of those that have fewer than so many yes or no answers in a part."""
        counts = [np.minimum(part.sum(0), (~part).sum(0)) for part in (self.fit, self.test)]
        return frozenset(name for name, count in zip(self.names, np.minimum(*counts), strict=True) if count < fewest)


@dataclass(frozen=True)
class SvmScores:
    """Balanced accuracies on the test part.

    Attributes:
        scores: One per question, in [0, 1]; one half is chance.
        regularisation: The C that was chosen for each, on a split of the fitting part alone.
    """

    scores: tuple[float, ...]
    regularisation: tuple[float, ...]


def questions(data: DataSet, fit: Split, test: Split) -> Questions:
    """The attributes of a data set, or else its classes.

    Args:
        data: That both parts are of.
        fit: The part to fit on.
        test: The part to report on.

    Raises:
        InputError: If it has neither attributes nor classes, or one of them is not found both ways in the fitting part.
    """
    if data.attributes and fit.attributes is not None and test.attributes is not None:
        names, answers = data.attributes, [part.attributes.cpu().numpy() for part in (fit, test)]  # type: ignore[union-attr]
    elif data.classes and fit.labels is not None and test.labels is not None:
        classes = np.arange(len(data.classes))
        names, answers = data.classes, [part.labels.cpu().numpy()[:, None] == classes for part in (fit, test)]  # type: ignore[union-attr]
    else:
        raise InputError(f"{data.spec} has neither attributes nor classes, so there is nothing to classify")
    # Two of each, for one to choose the regularisation by and one to fit.
    asked = [i for i in range(len(names)) if min(answers[0][:, i].sum(), (~answers[0][:, i]).sum()) > 1]
    asked = [i for i in asked if answers[1][:, i].any() and not answers[1][:, i].all()]
    if not asked:
        raise InputError(f"no attribute or class of {data.spec} is found both ways in both parts")
    return Questions(tuple(names[i] for i in asked), answers[0][:, asked], answers[1][:, asked])


@torch.no_grad()
def encoder_features(hierarchy: Hierarchy, part: Split, levels: Sequence[int]) -> Array:
    """The encoder's means at a set of levels, flattened and side by side, ``(n, D)`` float32.

    Args:
        hierarchy: In evaluation mode.
        part: Images.
        levels: Which, from 1 up; 0 gives the pixels themselves.

    Raises:
        InputError: If there is no such level.
    """
    if not levels or not all(0 <= level <= len(hierarchy) for level in levels):
        raise InputError(f"levels go from 0 (pixels) to {len(hierarchy)}, got {list(levels)}")
    names = [hierarchy.spaces[level].name for level in levels]
    view = hierarchy[: max(1, *levels)] if len(levels) > 1 else hierarchy[: max(1, levels[0])]
    chunks = []
    for index in torch.arange(len(part)).split(_CHUNK):
        states = view.encode(part.batch(index).to(hierarchy.prior.device))
        chunks.append(torch.cat([states[name].flatten(1) for name in names], 1).cpu())
    return torch.cat(chunks).numpy()


def random_encoder(config: Config, images: Split, *, seed: int = 0) -> Hierarchy:
    """The hierarchy of a config with fresh weights: a feature that does not beat its own is none.

    Its normalisations have the statistics of the data, as a trained encoder's have. In evaluation mode.

    Args:
        config: Of a trained model.
        images: To take statistics of.
        seed: Of the weights.
    """
    with seeded(seed), torch.no_grad():
        hierarchy = build(config).hierarchy.train()
        for start in range(_SETTLING):
            index = torch.arange(start * config.training.batch_size, (start + 1) * config.training.batch_size)
            hierarchy.encode(images.batch(index % len(images)).cpu())
    return hierarchy.eval()


def svm_scores(
    fit: Array, test: Array, asked: Questions, *, seed: int = 0, on_progress: Callable[[int, int], None] | None = None
) -> SvmScores:
    """Fit a linear SVM per question and count its answers on the test part.

    Features are standardised by the fitting part, of which a quarter, the same for every model, chooses the
    regularisation: from the strongest on, until two weaker ones in a row are no better. Then all of it is fitted.
    Positives and negatives weigh alike. The test part chooses nothing.

    Args:
        fit: ``(n, D)``.
        test: ``(m, D)``.
        asked: Of the same images.
        seed: Of the split.
        on_progress: Called with (questions done, questions in all).
    """
    x, unseen = principal_coordinates(*(torch.from_numpy(part) for part in _standardised(fit, test)))
    answers = torch.from_numpy(asked.fit)
    number = len(asked.names)
    chosen = _regularisation(x, answers, seed, on_progress)
    predicted = (unseen @ fit_svms(x, answers, torch.ones_like(answers), chosen) > 0).numpy()
    if on_progress:
        on_progress(number, number)
    scores = [balanced_accuracy(predicted[:, i], asked.test[:, i]) for i in range(number)]
    return SvmScores(tuple(scores), tuple(chosen.tolist()))


def feature_scores(
    hierarchy: Hierarchy,
    levels: Sequence[int],
    fit: Split,
    test: Split,
    asked: Questions,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SvmScores:
    """:func:`svm_scores` of :func:`encoder_features`; see there for the arguments."""
    features = encoder_features(hierarchy, fit, levels), encoder_features(hierarchy, test, levels)
    return svm_scores(*features, asked, seed=seed, on_progress=on_progress)


def compare(models: Mapping[str, SvmScores], asked: Questions, title: str, *, fewest: int) -> Comparison:
    """One table of several models' scores.

    Args:
        models: By name.
        asked: What was asked of all.
        title: Of the table.
        fewest: Questions with fewer positives or negatives in a part stand apart.
    """
    columns = [scores.scores for scores in models.values()]
    return Comparison(title, tuple(models), asked.names, tuple(zip(*columns, strict=True)), asked.rare(fewest))


def balanced_accuracy(predicted: Array, answers: Array) -> float:
    """The mean of the shares of positives and of negatives that are told right, in [0, 1].

    Args:
        predicted: ``(n,)`` bool.
        answers: ``(n,)`` bool, with some of each.
    """
    return float((predicted[answers].mean() + (~predicted[~answers]).mean()) / 2)


def _regularisation(x: Tensor, answers: Tensor, seed: int, on_progress: Callable[[int, int], None] | None) -> Tensor:
    """The C of each question, ``(A,)`` float64, by the part that chooses; of equals the strongest."""
    choosing = torch.stack([_choosing(column, seed) for column in answers.T], 1)
    number = answers.shape[1]
    chosen, best = torch.zeros(number, dtype=torch.float64), [-1.0] * number
    weights = x.new_zeros(x.shape[1], number)
    # How many values of C in a row were no better, for each question that is still open.
    idle = dict.fromkeys(range(number), 0)
    for c in _GRID:
        left = list(idle)
        weights[:, left] = fit_svms(
            x, answers[:, left], ~choosing[:, left], chosen.new_full((len(left),), c), weights[:, left]
        )
        for i in left:
            rows = choosing[:, i]
            told = (x[rows] @ weights[:, i] > 0).numpy()
            score = balanced_accuracy(told, answers[rows, i].numpy())
            if score > best[i]:
                best[i], chosen[i], idle[i] = score, c, 0
            else:
                idle[i] += 1
            if idle[i] == _PATIENCE:
                del idle[i]
        if not idle:
            break
        if on_progress and len(idle) < len(left):
            on_progress(number - len(idle), number)
    return chosen


def _choosing(answers: Tensor, seed: int) -> Tensor:
    """Which images choose, ``(n,)`` bool, with positives and negatives in the same shares."""
    generator = np.random.default_rng(seed)
    chosen = torch.zeros_like(answers)
    for value in (False, True):
        index = generator.permutation(np.flatnonzero((answers == value).numpy()))
        chosen[index[: max(1, round(_CHOICE * len(index)))]] = True
    return chosen


def _standardised(fit: Array, test: Array) -> tuple[Array, Array]:
    mean, std = fit.mean(0, dtype=np.float64), fit.std(0, dtype=np.float64)
    std[std < 1e-6] = 1.0
    return (fit - mean) / std, (test - mean) / std
