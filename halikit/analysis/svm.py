"""Linear classification from the latents: one SVM for each attribute or class (section 7.1, Tables 2 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halikit.analysis.batched import batches
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
    "questions_of",
    "random_encoder",
    "svm_scores",
]

# Images that pass through the networks at a time.
_CHUNK = 500
# Batches that give the normalisations of a random encoder their statistics.
_SETTLING = 50
# Regularisations to try, from strong to weak, for standardised features. The search ends after this many that are not
# better, one after another.
_GRID = tuple(10.0**exponent for exponent in range(-5, 2))
_PATIENCE = 2
# Share of the fitting part that chooses the regularisation.
_CHOICE = 0.25

Array = NDArray[Any]


class Questions(NamedTuple):
    """Questions about each image, to be answered by yes or no.

    Attributes:
        names: Names of the attributes, or of the classes; the question is whether the image has it.
        fit: Answers for the part that classifiers are fitted on, ``(n, A)`` bool.
        test: Answers for the part that is reported on, ``(m, A)`` bool.
    """

    names: tuple[str, ...]
    fit: Array
    test: Array

    def rare(self, fewest: int) -> frozenset[str]:
        """The names of questions with fewer positives or negatives than ``fewest`` in a part."""
        counts = [np.minimum(part.sum(0), (~part).sum(0)) for part in (self.fit, self.test)]
        return frozenset(name for name, count in zip(self.names, np.minimum(*counts), strict=True) if count < fewest)


@dataclass(frozen=True)
class SvmScores:
    """Balanced accuracies on the test part.

    Attributes:
        scores: Score for each question, in [0, 1]; 0.5 is chance.
        regularisation: C for each question, chosen on a split of the fitting part alone.
    """

    scores: tuple[float, ...]
    regularisation: tuple[float, ...]


def questions_of(data: DataSet, fit: Split, test: Split) -> Questions:
    """Questions about the attributes of a data set, or about its classes if it has no attributes.

    Questions without two positives and two negatives in the fitting part, or one of each in the other, are left out.

    Args:
        data: The data set of both parts.
        fit: The part to fit on.
        test: The part to report on.

    Raises:
        InputError: If there are neither attributes nor classes, or no question is left.
    """
    if data.attributes and fit.attributes is not None and test.attributes is not None:
        names, answers = data.attributes, [part.attributes.cpu().numpy() for part in (fit, test)]  # type: ignore[union-attr]
    elif data.classes and fit.labels is not None and test.labels is not None:
        classes = np.arange(len(data.classes))
        names, answers = data.classes, [part.labels.cpu().numpy()[:, None] == classes for part in (fit, test)]  # type: ignore[union-attr]
    else:
        raise InputError(f"{data.spec} has neither attributes nor classes, so there is nothing to classify")
    # Two of each: one to choose the regularisation, and one to fit.
    usable = [i for i in range(len(names)) if min(answers[0][:, i].sum(), (~answers[0][:, i]).sum()) > 1]
    usable = [i for i in usable if answers[1][:, i].any() and not answers[1][:, i].all()]
    if not usable:
        raise InputError(f"no attribute or class of {data.spec} has positives and negatives in both parts")
    return Questions(tuple(names[i] for i in usable), answers[0][:, usable], answers[1][:, usable])


@torch.no_grad()
def encoder_features(hierarchy: Hierarchy, part: Split, levels: Sequence[int]) -> Array:
    """The encoder's means at a set of levels, flattened and concatenated, ``(n, D)`` float32.

    Args:
        hierarchy: A hierarchy in evaluation mode; given the contexts of the images, if it takes one.
        part: Images.
        levels: Levels, from 1 up; 0 gives the pixels themselves.

    Raises:
        InputError: If there is no such level.
    """
    if not levels or not all(0 <= level <= len(hierarchy) for level in levels):
        raise InputError(f"levels go from 0 (pixels) to {len(hierarchy)}, got {list(levels)}")
    names = [hierarchy.spaces[level].name for level in levels]
    view = hierarchy[: max(1, max(levels))]

    found = []
    for rows, x in batches(part, _CHUNK, device=hierarchy.prior.device):
        states = view.rows(rows).encode(x)
        found.append(torch.cat([states[name].flatten(1) for name in names], 1).cpu())
    return torch.cat(found).numpy()


def random_encoder(config: Config, images: Split, *, seed: int = 0) -> Hierarchy:
    """A hierarchy with random weights, in evaluation mode: trained features should be better than its features.

    Its normalisations have statistics of the data, like those of a trained encoder.

    Args:
        config: Settings of a trained model.
        images: Images for the statistics.
        seed: Seed of the weights.
    """
    with seeded(seed), torch.no_grad():
        model = build(config)
        hierarchy, context = model.hierarchy.train(), model.example_context(1)
        for start in range(_SETTLING):
            index = torch.arange(start * config.training.batch_size, (start + 1) * config.training.batch_size)
            hierarchy.encode(images.batch(index % len(images)).cpu(), context=context)
    return hierarchy.eval()


def svm_scores(
    fit: Array,
    test: Array,
    questions: Questions,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SvmScores:
    """Fit a linear SVM for each question, and score its answers on the test part.

    Features are standardised by the fitting part. A quarter of that part, the same for every model, chooses the
    regularisation, from the strongest on, until two weaker ones in a row are not better. Then the SVM is fitted to the
    whole part. Positives and negatives have equal weight. No choice depends on the test part.

    Args:
        fit: Features to fit on, ``(n, D)``.
        test: Features to test on, ``(m, D)``.
        questions: Questions about the same images.
        seed: Seed of the split.
        on_progress: Called with (questions done, all questions).
    """
    x, unseen = principal_coordinates(*(torch.from_numpy(part) for part in _standardised(fit, test)))
    answers = torch.from_numpy(questions.fit)
    number = len(questions.names)
    chosen = _regularisation(x, answers, seed, on_progress)
    predicted = (unseen @ fit_svms(x, answers, torch.ones_like(answers), chosen) > 0).numpy()
    if on_progress:
        on_progress(number, number)
    scores = [balanced_accuracy(predicted[:, i], questions.test[:, i]) for i in range(number)]
    return SvmScores(tuple(scores), tuple(chosen.tolist()))


def feature_scores(
    hierarchy: Hierarchy,
    levels: Sequence[int],
    fit: Split,
    test: Split,
    questions: Questions,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SvmScores:
    """:func:`svm_scores` of :func:`encoder_features`; see there for the arguments."""
    features = encoder_features(hierarchy, fit, levels), encoder_features(hierarchy, test, levels)
    return svm_scores(*features, questions, seed=seed, on_progress=on_progress)


def compare(models: Mapping[str, SvmScores], questions: Questions, title: str, *, fewest: int) -> Comparison:
    """A table of the scores of several models.

    Args:
        models: Scores by the name of the model.
        questions: The questions.
        title: Title of the table.
        fewest: A question with fewer positives or negatives in a part counts as rare.
    """
    columns = [scores.scores for scores in models.values()]
    return Comparison(title, tuple(models), questions.names, tuple(zip(*columns, strict=True)), questions.rare(fewest))


def balanced_accuracy(predicted: Array, answers: Array) -> float:
    """The mean of the share of positives and the share of negatives with a right answer, in [0, 1].

    Args:
        predicted: ``(n,)`` bool.
        answers: ``(n,)`` bool, with both values.
    """
    return float((predicted[answers].mean() + (~predicted[~answers]).mean()) / 2)


def _regularisation(x: Tensor, answers: Tensor, seed: int, on_progress: Callable[[int, int], None] | None) -> Tensor:
    """The C of each question with the best score on the choosing part, ``(A,)`` float64; the strongest of equals."""
    choosing = torch.stack([_choosing(column, seed) for column in answers.T], 1)
    number = answers.shape[1]
    chosen, best = torch.zeros(number, dtype=torch.float64), [-1.0] * number
    weights = x.new_zeros(x.shape[1], number)
    # For each question still open: number of values of C, one after another, that were not better.
    idle = dict.fromkeys(range(number), 0)
    for c in _GRID:
        left = list(idle)
        weights[:, left] = fit_svms(
            x, answers[:, left], ~choosing[:, left], chosen.new_full((len(left),), c), weights[:, left]
        )
        for i in left:
            rows = choosing[:, i]
            predicted = (x[rows] @ weights[:, i] > 0).numpy()
            score = balanced_accuracy(predicted, answers[rows, i].numpy())
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
    """The images that choose, ``(n,)`` bool: the same share of positives and of negatives."""
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
