"""How much a linear classifier finds in the latents: one SVM per attribute or class (section 7.1, Tables 2 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from halikit.analysis.comparison import Comparison
from halikit.config import Config
from halikit.data import DataSet, Split
from halikit.errors import InputError
from halikit.hierarchy import Hierarchy
from halikit.model import build
from halikit.random import seeded

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
# Where the regularisation is looked for, in LinearSVC's C, for standardised features.
_GRID = tuple(10.0**exponent for exponent in range(-5, 2))
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
    regularisation; then all of it is fitted. Positives and negatives weigh alike. The test part chooses nothing.

    Args:
        fit: ``(n, D)``.
        test: ``(m, D)``.
        asked: Of the same images.
        seed: Of the split.
        on_progress: Called with (questions done, questions in all).
    """
    fit, test = _compressed(*_standardised(fit, test))
    scores, chosen = [], []
    for i in range(len(asked.names)):
        answers = asked.fit[:, i]
        train, choice = _split(answers, seed)
        by_c = {
            c: balanced_accuracy(_svm(fit[train], answers[train], c).predict(fit[choice]), answers[choice])
            for c in _GRID
        }
        # Of equals, the strongest regularisation.
        best = max(_GRID, key=lambda c: (by_c[c], -c))
        chosen.append(best)
        scores.append(balanced_accuracy(_svm(fit, answers, best).predict(test), asked.test[:, i]))
        if on_progress:
            on_progress(i + 1, len(asked.names))
    return SvmScores(tuple(scores), tuple(chosen))


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


def _svm(x: Array, answers: Array, c: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=c, dual=False, class_weight="balanced", max_iter=5000).fit(x, answers)


def _split(answers: Array, seed: int) -> tuple[Array, Array]:
    """Indices to fit and to choose by, with positives and negatives in the same shares."""
    generator = np.random.default_rng(seed)
    choice = []
    for value in (False, True):
        index = generator.permutation(np.flatnonzero(answers == value))
        choice.append(index[: max(1, round(_CHOICE * len(index)))])
    chosen = np.sort(np.concatenate(choice))
    return np.setdiff1d(np.arange(len(answers)), chosen), chosen


def _standardised(fit: Array, test: Array) -> tuple[Array, Array]:
    mean, std = fit.mean(0, dtype=np.float64), fit.std(0, dtype=np.float64)
    std[std < 1e-6] = 1.0
    return (fit - mean) / std, (test - mean) / std


def _compressed(fit: Array, test: Array) -> tuple[Array, Array]:
    """The same features in the coordinates that the fitting part spans, where it has fewer images than features.

    A linear SVM's weights lie in that span, and rotations change neither its margins nor its penalty: the classifiers
    are the same, and a maps' worth of features costs no more than there are images.
    """
    if fit.shape[0] >= fit.shape[1]:
        return fit, test
    # fit = coordinates · basis, by the QR decomposition of the transpose.
    basis, upper = np.linalg.qr(fit.T)
    return np.ascontiguousarray(upper.T), test @ basis
