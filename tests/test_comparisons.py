"""Tables of several models: linear SVMs on features, attributes kept by reconstructions, and their sums."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_ladder

import halikit as hk
from halikit.analysis.attributes import (
    classifier_features,
    fit_classifier,
    load_classifier,
    preservation,
    reconstruction_scores,
    save_classifier,
)
from halikit.analysis.comparison import Comparison
from halikit.analysis.linear_svm import fit_svms, principal_coordinates
from halikit.analysis.svm import (
    Questions,
    balanced_accuracy,
    encoder_features,
    feature_scores,
    questions_of,
    random_encoder,
    svm_scores,
)
from halikit.data import DataSet, Split, load
from halikit.errors import InputError

TABLE = Comparison(
    "a title",
    ("data", "one", "two_b"),
    ("Bald", "Smiling", "Young", "Rare"),
    ((0.9, 0.5, 0.5), (0.8, 0.75, 0.5), (0.7, 0.5, 0.5 + 1e-12), (1.0, 0.0, 1.0)),
    frozenset({"Rare"}),
    unranked=1,
)


def faces(n: int = 240) -> DataSet:
    """Images with two attributes to be seen (left half bright, top bright), and one that is rare."""
    generator = torch.Generator().manual_seed(0)
    flags = torch.rand(n, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.02])
    flags[:, 2] = torch.arange(n) % 16 == 0
    images = torch.rand(n, 1, 8, 8, generator=generator) - 0.8
    images[flags[:, 0], :, :, :4] += 0.8
    images[flags[:, 1], :, :4] += 0.8
    parts = [Split(images[i::3], None, flags[i::3]) for i in range(3)]
    return DataSet("faces", (1, 8, 8), (), *parts, attributes=("left", "top", "rare"))


def test_what_a_table_sums_up() -> None:
    assert TABLE.mean == pytest.approx((0.8, 1.75 / 3, 0.5))
    assert TABLE.std == pytest.approx((0.1, np.std([0.5, 0.75, 0.5], ddof=1), 0.0), abs=1e-9)
    # Two ties and one row won; the rare one does not count, nor does what is no model.
    assert TABLE.best == (3, 2)
    alone = Comparison("t", ("a",), ("r",), ((0.5,),), frozenset({"r"}))
    assert math.isnan(alone.mean[0])
    assert alone.best == (0,)


def test_tables_are_printed_in_three_ways() -> None:
    text = TABLE.to_text().splitlines()
    assert text[0] == "a title"
    assert text[1].split() == ["data", "one", "two_b"]
    assert text[5].split() == ["mean", "80.00", "±", "10.00", "58.33", "±", "14.43", "50.00", "±", "0.00"]
    assert text[6].split() == ["best", "of", "3", "3", "2"]
    assert text[-1].split()[0] == "Rare"
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert [row["attribute"] for row in rows] == ["Bald", "Smiling", "Young", "Rare", "mean", "std", "best"]
    assert [row["counts"] for row in rows[:4]] == ["1", "1", "1", "0"]
    assert float(rows[1]["one"]) == 0.75
    latex = TABLE.to_latex()
    assert r"two\_b" in latex
    assert r"Smiling & 80.00 & 75.00 & 50.00 \\" in latex
    assert latex.count("{") == latex.count("}")


def test_balanced_accuracy_by_hand() -> None:
    answers = np.array([True, False, False, False])
    assert balanced_accuracy(np.array([True, True, False, False]), answers) == pytest.approx((1 + 2 / 3) / 2)
    assert balanced_accuracy(np.zeros(4, bool), answers) == 0.5


def test_svms_find_what_is_linear_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 6)), rng.normal(size=(400, 6))
    questions = Questions(
        ("linear", "noise"), *(np.stack([z[:, 0] + z[:, 1] > 1, rng.random(400) > 0.5], 1) for z in (x, y))
    )
    linear, noise = svm_scores(x, y, questions).scores
    assert linear > 0.95
    assert 0.4 < noise < 0.6


@pytest.mark.parametrize(("n", "features"), [(200, 20), (60, 150)])
def test_machines_in_one_go_are_those_of_scikit_learn(n: int, features: int) -> None:
    """Each with its own images and its own regularisation, on rotated features."""
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    x, unseen = rng.normal(size=(n, features)), rng.normal(size=(100, features))
    answers = np.stack([x[:, 0] > 0.5, x[:, 1] + rng.normal(size=n) > 0, rng.random(n) > 0.8], 1)
    used = rng.random((n, 3)) > 0.2
    c = torch.tensor([1e-4, 1e-2, 1.0])
    rotated, rotated_unseen = principal_coordinates(torch.from_numpy(x), torch.from_numpy(unseen))
    assert rotated.shape == (n, min(n, features) + 1)
    weights = fit_svms(rotated, torch.from_numpy(answers), torch.from_numpy(used), c)
    for i in range(3):
        rows = used[:, i]
        single = LinearSVC(C=float(c[i]), dual=False, class_weight="balanced", tol=1e-8, max_iter=5000)
        single.fit(x[rows], answers[rows, i])
        expected = single.decision_function(unseen)
        np.testing.assert_allclose(rotated_unseen @ weights[:, i], expected, atol=5e-3 * np.abs(expected).max())


def test_machines_begin_where_they_are_told_and_end_at_the_same_place() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(80, 6, generator=rng), torch.ones(80, 1)], 1)
    answers = x[:, :2] > 0.3
    used, c = torch.ones_like(answers), torch.tensor([0.01, 1.0])
    fresh = fit_svms(x, answers, used, c)
    torch.testing.assert_close(
        fit_svms(x, answers, used, c, torch.randn(7, 2, generator=rng)), fresh, atol=1e-3, rtol=0
    )


def test_a_machine_whose_equations_are_solved_exactly_waits_for_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.block_diag(torch.eye(2), torch.randn(60, 30, generator=generator))
    answers = torch.stack([torch.arange(62) == 0, x[:, 2] > 0.1], 1)
    used = torch.stack([torch.arange(62) < 2, torch.arange(62) >= 2], 1)
    weights = fit_svms(x, answers, used, torch.tensor([0.5, 100.0]))
    # Each image of the first machine has a weight of its own: w = y 2c / (1 + 2c).
    torch.testing.assert_close(weights[:, 0], torch.tensor([0.5, -0.5, *[0.0] * 30]))
    assert ((x[2:] @ weights[:, 1] > 0) == answers[2:, 1]).double().mean() > 0.9


def test_compression_changes_no_answer() -> None:
    """More features than images: the classifiers are those of scikit-learn on the features as they are."""
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 300)), rng.normal(size=(500, 300))
    answers = [z[:, :40].sum(1) > 0 for z in (x, y)]
    questions = Questions(("a",), *(a[:, None] for a in answers))
    told: list[tuple[int, int]] = []
    found = svm_scores(x, y, questions, on_progress=lambda *progress: told.append(progress))
    assert told == [(1, 1)]
    mean, std = x.mean(0), x.std(0)
    plain = LinearSVC(C=found.regularisation[0], dual=False, class_weight="balanced").fit((x - mean) / std, answers[0])
    expected = balanced_accuracy(plain.predict((y - mean) / std), answers[1])
    assert found.scores[0] == pytest.approx(expected, abs=0.01)


def test_the_test_part_chooses_no_regularisation() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)), rng.normal(size=(80, 5))
    questions = [Questions(("a",), (x[:, :1] > 0), answers[:, None]) for answers in (y[:, 0] > 0, y[:, 0] < 0)]
    first, second = (svm_scores(x, y, a) for a in questions)
    assert first.regularisation == second.regularisation
    assert first.scores[0] == pytest.approx(1 - second.scores[0])


def test_questions_are_attributes_or_classes_with_rare_ones_apart() -> None:
    data = faces()
    questions = questions_of(data, data.validation, data.test)
    assert questions.names == ("left", "top", "rare")
    assert questions.rare(10) == {"rare"}
    digits = load("digits")
    questions = questions_of(digits, digits.train, digits.test)
    assert questions.names == tuple("0123456789")
    assert (questions.fit.sum(1) == 1).all()
    with pytest.raises(InputError, match="neither attributes nor classes"):
        questions_of(hk.data.from_tensor(torch.zeros(9, 2)), digits.train, Split(torch.zeros(3, 2)))


def test_features_of_sets_of_levels() -> None:
    h = tiny_ladder(2, (1, 8, 8)).eval()
    part = faces().test
    both, first, second, pixels = (encoder_features(h, part, levels) for levels in ([1, 2], [1], [2], [0]))
    np.testing.assert_allclose(both, np.concatenate([first, second], 1))
    assert pixels.shape == (80, 64)
    np.testing.assert_allclose(pixels, part.images.flatten(1).numpy())
    with pytest.raises(InputError, match=r"levels go from 0 \(pixels\) to 2, got \[3\]"):
        encoder_features(h, part, [3])


def test_a_random_encoder_is_that_of_the_config_with_statistics_of_the_data() -> None:
    config = hk.presets.digits()
    before = torch.get_rng_state()
    data = load("digits")
    h, again = (random_encoder(config, data.train, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(h.state_dict().values(), again.state_dict().values(), strict=True))
    assert not h.training
    z = encoder_features(h, data.train, [1])
    assert np.abs(z.mean(0)).max() < 0.5
    questions = questions_of(data, data.train, data.test)
    assert np.mean(feature_scores(h, [1], data.train, data.test, questions).scores) > 0.6


def test_attributes_kept_by_reconstructions(tmp_path: Path) -> None:
    data = faces(2400)
    questions = questions_of(data, data.train, data.validation)
    told: list[tuple[int, int]] = []
    parts = (data.train, data.validation, questions)
    judge = fit_classifier(
        *parts, spec="faces:somewhere", width=6, epochs=8, on_progress=lambda *progress: told.append(progress)
    )
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
    assert min(judge.scores[:2]) > 0.8
    assert "somewhere" not in judge.trained_on
    save_classifier(tmp_path / "c.safetensors", judge)
    loaded = load_classifier(tmp_path / "c.safetensors")
    assert (loaded.names, loaded.scores, loaded.trained_on) == (judge.names, judge.scores, judge.trained_on)
    x = data.validation.batch(torch.arange(5))
    features = classifier_features(loaded)(x)
    assert features.shape == (5, 48)
    torch.testing.assert_close(loaded.network.layers[-1](features), judge.network(x))
    h = tiny_ladder(1, (1, 8, 8)).eval()
    scores = reconstruction_scores(loaded, h, data.validation, questions, 1)
    assert scores == reconstruction_scores(judge, h, data.validation, questions, 1)
    table = preservation(loaded, {"model z1": scores, "perfect": judge.scores}, questions, "t", fewest=60)
    assert table.models == ("data", "model z1", "perfect")
    assert [row[2] for row in table.scores] == [1.0] * 3
    assert table.rare == {"rare"}
    assert table.best == (0, 2)


def test_files_that_are_no_classifier(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(InputError, match="not a classifier of attributes"):
        load_classifier(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="not a classifier of attributes"):
        load_classifier(path)
