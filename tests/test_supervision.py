"""Few labels: the class kernel on top, Eqs. 9 and 10, and the labels that are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import configured, gradients, moved
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import halikit as hk
from halikit.analysis.classification import class_errors
from halikit.config import ConfigError
from halikit.data import Augmentation, DataSet, Split, load
from halikit.errors import InputError
from halikit.runs.record import Record
from halikit.semi.consistency import DistributionAlignment, pseudo_labels
from halikit.semi.labelled import choose_labelled
from halikit.semi.propagation import PropagatedLabels, propagate
from halikit.semi.settings import LabelSettings
from halikit.supervision import classify, supervised_cost, with_classes
from halikit.training.extra_losses import StepContext
from halikit.training.labels import Labelled, Supervision

DIGITS = (1, 8, 8)


def small(levels: int = 2, classes: int | None = 10, **changes: object) -> hk.Model:
    torch.manual_seed(0)
    settings = {"levels": levels, "data_shape": DIGITS, "widths": (8, 6)[:levels], "hidden": 32, "classes": classes}
    settings |= {"discriminator.width": 16, "steps": 20, "batch_size": 16, "log_every": 5, "evaluate_every": 10}
    return hk.build(configured(**settings | {"labels.number": 30} | changes))


def alone(**changes: object) -> hk.Model:
    torch.manual_seed(0)
    settings = {"levels": 1, "data_shape": DIGITS, "widths": (10,), "hidden": 64, "classes": 10, "steps": 60}
    settings |= {"batch_size": 32, "labels.number": 100, "learning_rate": 3e-3, "ema_decay": 0.9}
    return hk.build(configured(method="supervised", **settings | changes))


def test_the_class_kernel_is_one_more_level() -> None:
    h = small().hierarchy
    assert [space.name for space in h.spaces] == ["x", "z1", "z2", "y"]
    assert str(h.encoder) == "T_{y|z2} ∘ T_{z2|z1} ∘ T_{z1|x}"
    assert isinstance(h.links[-1].up, hk.CategoricalKernel)
    assert small().discriminator.spaces == h.spaces
    states = h.sample_states(50)
    assert set(states["y"].unique().tolist()) == {0.0, 1.0}
    assert (states["y"].sum(1) == 1).all()
    drawn = h.encode(torch.randn(50, *DIGITS), sample=True)["y"]
    torch.testing.assert_close(drawn.sum(1), torch.ones(50))
    assert drawn.requires_grad


@pytest.mark.parametrize("levels", [1, 2])
def test_both_kernels_of_the_classes_start_with_the_same_place_for_each_class(levels: int) -> None:
    # Kernels that start apart agree on all ten classes with a probability of about 1e-6.
    h = with_classes(hk.ladder(levels, DIGITS, widths=[24, 12][:levels], hidden=16), 10, gauge="standardised").eval()
    link = h.links[-1]
    logits = link.up.logits(link.down.mean(torch.eye(10)))
    assert logits.argmax(1).tolist() == [*range(10)]
    torch.testing.assert_close(logits, torch.eye(10), atol=1e-4, rtol=0)


def test_classes_go_on_maps_too() -> None:
    h = with_classes(hk.ladder(1, (1, 16, 16), family="conv", maps=0, widths=[5], hidden=4), 3)
    assert h.spaces[-1].shape == (3,)
    maps = hk.Space("z1", (2, 4, 4))
    up = hk.GaussianKernel(hk.Space("x", (1, 8, 8)), maps, torch.nn.Conv2d(1, 4, 3, stride=2, padding=1))
    down = hk.DeterministicKernel(maps, up.source, torch.nn.Upsample(scale_factor=2))
    down = hk.DeterministicKernel(maps, up.source, torch.nn.Sequential(torch.nn.Conv2d(2, 1, 1), down.network))
    h = with_classes(hk.Hierarchy([hk.Link(up, down)]), 3)
    assert h.sample(2).shape == (2, 1, 8, 8)
    assert classify(h, torch.randn(2, 1, 8, 8)).shape == (2, 3)


@given(st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_labels_are_drawn_evenly_by_seed(each: int, seed: int) -> None:
    labels = load("digits").train.labels
    chosen = choose_labelled(labels, 10 * each, 10, seed)
    assert torch.equal(chosen, choose_labelled(labels, 10 * each, 10, seed))
    assert torch.equal(labels[chosen].bincount(minlength=10), torch.full((10,), each))
    assert len(chosen.unique()) == len(chosen)


def test_other_seeds_draw_other_labels() -> None:
    labels = load("digits").train.labels
    assert not torch.equal(choose_labelled(labels, 100, 10, 0), choose_labelled(labels, 100, 10, 1))


@pytest.mark.parametrize(("number", "message"), [(15, "multiple of 10"), (5, "multiple of 10"), (2000, "need 200 of")])
def test_labels_that_cannot_be_even(number: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_labelled(load("digits").train.labels, number, 10, 0)


def test_the_supervised_cost_is_the_cross_entropy_and_reaches_the_encoder_alone() -> None:
    h = moved(small().hierarchy).eval()
    # Without noise in the latents, so that the loss has one value.
    for link in h.links[:-1]:
        link.up.max_scale = 0.0011
    x, y = torch.randn(40, *DIGITS), torch.arange(40) % 10
    cost = supervised_cost(h, x, y)
    assert cost.shape == (40,)
    cost.mean().backward()
    with torch.no_grad():
        probabilities = classify(h, x).softmax(1)
    expected = -probabilities[torch.arange(40), y].log().mean()
    torch.testing.assert_close(cost.mean().detach(), expected, rtol=1e-2, atol=1e-3)
    for link in h:
        assert all(g is not None and g.any() for g in gradients(link.up))
        assert all(g is None for g in gradients(link.down))


def test_its_weight_scales_its_gradient() -> None:
    """The weight is a factor on the gradient, and not on the loss in the record."""
    found, losses = [], []
    for weight in (0.0, 1.0, 3.0):
        trainer = hk.Trainer(small(**{"labels.weight": weight}), "digits")
        losses.append(trainer.step(torch.ones(16, *DIGITS))["supervised_loss"])
        found.append(trainer.model.hierarchy.links[-1].up.network[-1].weight.grad)
    assert losses[0] == losses[1] == losses[2]
    torch.testing.assert_close(3 * (found[1] - found[0]), found[2] - found[0])


@pytest.mark.filterwarnings("ignore:.*no units for bfloat16")
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_game_with_labels_trains_and_records(precision: str, tmp_path: Path) -> None:
    records: list[Record] = []
    trainer = hk.Trainer(small(precision=precision), "digits", out=tmp_path / "run", on_record=records.append)
    assert trainer.method.single_pass
    assert "supervised_loss" in trainer.method.columns
    trainer.fit()
    last = records[-1].losses
    game = {"d_loss", "g_loss", "rho_q", "rho_p", "sleep_loss"}
    assert set(last) == game | {"supervised_loss", "held_out_label_error"}
    model = hk.load(tmp_path / "run")
    assert [space.name for space in model.hierarchy.spaces] == ["x", "z1", "z2", "y"]
    counted = class_errors(model.hierarchy, load("digits").test)
    assert counted.errors == sum(counted.by_class)
    assert counted.errors / counted.number == pytest.approx(last["held_out_label_error"])


def test_training_with_labels_is_a_function_of_the_seed() -> None:
    first, second, other = (
        hk.Trainer(small(seed=seed), "digits").fit(6).hierarchy.state_dict()["links.2.up.network.1.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_test_labels_choose_nothing() -> None:
    data = load("digits")
    swapped = hk.data.DataSet(
        spec=data.spec,
        shape=data.shape,
        classes=data.classes,
        train=data.train,
        validation=None,
        test=Split(data.test.images, data.test.labels.flip(0)),
    )
    weights = [hk.Trainer(small(), d).fit().hierarchy.state_dict() for d in (data, swapped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_labels_alone_train_the_classifier_and_leave_the_decoder() -> None:
    model = alone()
    assert model.discriminator is None
    before = [p.detach().clone() for p in model.hierarchy.links[0].down.parameters()]
    records: list[Record] = []
    trainer = hk.Trainer(model, "digits", on_record=records.append)
    trainer.fit()
    assert records[-1].evaluated
    assert not records[-1].errors
    assert all(torch.equal(p, old) for p, old in zip(model.hierarchy.links[0].down.parameters(), before, strict=True))
    counted = class_errors(trainer.averaged, load("digits").test)
    assert counted.errors < 0.35 * counted.number


def test_views_have_the_same_say_as_the_image_itself() -> None:
    trainer = hk.Trainer(alone(steps=20), "digits")
    trainer.fit()
    part, moving = load("digits").test, Augmentation(shift=1)
    x, index = part.batch(torch.arange(len(part))), torch.arange(len(part))
    seen = [x, *(moving(x, index, seed=3, epoch=view) for view in range(4))]
    said = torch.stack([classify(trainer.averaged, each).softmax(1) for each in seen]).mean(0)
    counted = class_errors(trainer.averaged, part, augmentation=moving, views=4, seed=3)
    assert counted.errors == int((said.argmax(1) != part.labels).sum())
    assert class_errors(trainer.averaged, part, augmentation=moving) == class_errors(trainer.averaged, part)
    with pytest.raises(InputError, match="views are augmented images, and this run augments none"):
        class_errors(trainer.averaged, part, augmentation=Augmentation(), views=1)


def test_what_labels_need_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="needs labels"):
        configured(method="supervised")
    with pytest.raises(ConfigError, match=r"\[labels\] has no effect here: training.method = 'elbo' uses no labels"):
        configured(method="elbo", labels__number=30)
    with pytest.raises(InputError, match=r"labels\.number = 30, but the data have no labels"):
        hk.Trainer(small(), torch.zeros(40, *DIGITS))
    with pytest.raises(InputError, match=r"the top of this hierarchy is z2 \(6\), not classes"):
        hk.Trainer(small(classes=None), "digits")
    with pytest.raises(InputError, match=r"model\.classes is 7, but digits has 10"):
        hk.Trainer(small(classes=7), "digits")


def test_a_teacher_labels_what_it_is_sure_of() -> None:
    h, teacher = small().hierarchy, small().hierarchy.eval()
    y = torch.arange(40) % 10
    x = torch.randn(10, *DIGITS)[y] + 0.1 * torch.randn(40, *DIGITS)
    moved = x.flip(3)
    assert not pseudo_labels(teacher, x, DistributionAlignment(10)).is_sure.any()  # fresh weights are sure of nothing

    optimiser = torch.optim.Adam(teacher.train().parameters(), 3e-2)
    for _ in range(100):
        optimiser.zero_grad()
        supervised_cost(teacher, x, y).mean().backward()
        optimiser.step()
    teacher.eval().zero_grad()
    guessed, is_sure = pseudo_labels(teacher, x, DistributionAlignment(10))
    assert (guessed == y).double().mean() > 0.9
    assert is_sure.dtype == torch.bool
    assert is_sure.double().mean() > 2 / 3
    assert all(p.grad is None for p in teacher.parameters())

    optimiser = torch.optim.Adam(h.parameters(), 3e-2)
    for _ in range(80):
        optimiser.zero_grad()
        cost = supervised_cost(h, torch.cat([x[:10], moved]), torch.cat([y[:10], guessed]), noise=0.1)
        (cost[:10].mean() + (3 * is_sure * cost[10:]).mean()).backward()
        optimiser.step()
    assert (classify(h.eval(), moved).argmax(1) == y).double().mean() > 0.9


def test_classes_that_a_teacher_predicts_too_often_count_less() -> None:
    alignment = DistributionAlignment(3)
    predicted = torch.tensor([[0.6, 0.3, 0.1]]).expand(5, 3)
    torch.testing.assert_close(alignment(predicted), predicted)
    for _ in range(2000):
        alignment.update(predicted)
    torch.testing.assert_close(alignment.mean, predicted[0])
    torch.testing.assert_close(alignment(predicted), torch.full((5, 3), 1 / 3))
    # What is above the mean of a class is what counts.
    assert alignment(torch.tensor([[0.5, 0.3, 0.2]])).argmax() == 2


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_pseudo_labels_add_to_the_cost_with_their_weight(threshold: float) -> None:
    """The loss is Eq. 10 plus the weighted mean cost of the unlabelled images whose pseudo-label is sure."""
    h, teacher = small().hierarchy.eval(), moved(small().hierarchy).eval()
    teacher.links[-1].up.network[-1].weight.data *= 10
    for hierarchy in (h, teacher):
        for link in hierarchy.links[:-1]:
            link.up.max_scale = 0.0011
    part = load("digits").train
    labelled = Labelled(part, torch.arange(20), 20, Augmentation(), seed=0)
    settings = LabelSettings(number=20, consistency_weight=2.0, pseudo_label_threshold=threshold)
    supervision = Supervision(labelled, settings, teacher, 10, noise=0.0, unlabelled=30, broadcast=lambda _: None)
    context = StepContext({}, {}, h, small().discriminator, None, 0)
    torch.manual_seed(3)
    loss = supervision(context)
    loss.backward()
    both = gradients(h.links[-1].up)
    h.zero_grad()

    torch.manual_seed(3)
    _, images = labelled.unlabelled(30)
    y, is_sure = pseudo_labels(teacher, images, DistributionAlignment(10), threshold=threshold)
    assert is_sure.all() == (threshold == 0)
    assert is_sure.any()
    known = supervised_cost(h, part.batch(torch.arange(20)), part.labels[:20]).mean()
    asked = supervised_cost(h, images[is_sure], y[is_sure]).sum() / 30
    torch.testing.assert_close(loss, known + 2 * asked, rtol=1e-2, atol=1e-3)
    (known + 2 * asked).backward()
    for a, b in zip(both, gradients(h.links[-1].up), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-3)


def test_consistency_changes_training_and_is_refused_without_labels() -> None:
    settings = [{}, {"consistency_weight": 1.0}, {"consistency_weight": 1.0, "consistency_batch_size": 24}]
    trained = [hk.Trainer(small(**s), "digits").fit().hierarchy.state_dict() for s in settings]
    for one, other in ((0, 1), (1, 2)):
        assert any(not torch.equal(trained[one][name], trained[other][name]) for name in trained[0])
    with pytest.raises(ConfigError, match="consistency_batch_size = 24 has no effect here: consistency_weight is 0"):
        configured(labels__number=10, consistency_batch_size=24)
    with pytest.raises(ConfigError, match=r"pseudo_label_threshold = 0\.5 has no effect here: consistency_weight is 0"):
        configured(labels__number=10, pseudo_label_threshold=0.5)
    with pytest.raises(ConfigError, match=r"labels\.number is missing"):
        configured(consistency_weight=1.0)


def test_the_distribution_alignment_is_part_of_a_run(tmp_path: Path) -> None:
    model = small(consistency_weight=1.0, checkpoint_every=10)
    trainer = hk.Trainer(model, "digits", out=tmp_path / "run")
    trainer.fit()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*20")
    mean = load_file(checkpoint / "tensors.safetensors")["extra.supervised_loss.alignment.mean"]
    assert mean.sum() == pytest.approx(1)
    assert not torch.equal(mean, DistributionAlignment(10).mean)
    # A run without them can go on with consistency.
    hk.Trainer(small(), "digits", out=tmp_path / "other").fit()
    later = hk.Trainer(
        small(consistency_weight=1.0), "digits", out=tmp_path / "other", resume=True, on_notice=lambda _: None
    )
    later.fit(2)
    assert later.steps == 22


@given(st.integers(1, 8), st.integers(0, 2**31 - 1))
def test_labels_spread_within_clusters_whatever_their_sizes(neighbours: int, seed: int) -> None:
    torch.manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 40, 90]))[torch.randperm(140)]
    x = 100 * torch.eye(3)[y] + torch.randn(140, 3)
    index = torch.stack([(y == label).nonzero()[0, 0] for label in range(3)])
    found = propagate(x, index, y[index], 3, neighbours)
    assert torch.equal(found[index], y[index])
    if neighbours == 8:  # enough for a cluster to be one piece
        assert torch.equal(found, y)
        assert torch.equal(found, propagate(x.view(140, 1, 3, 1), index, y[index], 3, neighbours))


def test_labels_spread_over_real_digits() -> None:
    part = load("digits").train
    index = choose_labelled(part.labels, 30, 10, 0)
    found = propagate(part.batch(torch.arange(len(part))), index, part.labels[index], 10, 5)
    assert (found != part.labels).double().mean() < 0.1


def test_spread_labels_train_better_than_the_few_they_come_from() -> None:
    errors = []
    for changes in ({}, {"propagation_neighbours": 5}):
        trainer = hk.Trainer(alone(**{"labels.number": 20}, **changes), "digits")
        trainer.fit()
        errors.append(class_errors(trainer.averaged, load("digits").test).errors)
    assert errors[1] < errors[0] / 1.5


def test_a_graph_of_latents_spreads_the_labels_further_than_their_network_does() -> None:
    trainer = hk.Trainer(alone(widths=(16,), **{"labels.number": 20}), "digits")
    trainer.fit()
    part = load("digits").train
    index = choose_labelled(part.labels, 20, 10, 0)
    said = classify(trainer.averaged, part.batch(torch.arange(len(part)))).argmax(1)
    graph = PropagatedLabels(len(part))
    assert graph(torch.arange(50), said[:50]).all()  # it knows nothing yet
    with torch.no_grad():
        z = trainer.averaged[:-1].encode(part.batch(torch.arange(len(part))))["z1"]
    graph.update(z, index, part.labels[index], 10)
    assert torch.equal(graph.labels[index], part.labels[index])
    everything = torch.arange(len(part))
    agreed = graph(everything, said)
    assert torch.equal(agreed, graph.labels == said)
    assert 0.3 < agreed.double().mean() < 1
    wrong, wrong_where_agreed = (said != part.labels).double(), (said != part.labels)[agreed].double()
    assert (graph.labels != part.labels).double().mean() < 0.8 * wrong.mean()
    assert wrong_where_agreed.mean() < 0.75 * wrong.mean()


def test_the_graph_is_part_of_a_run_and_changes_it_once_it_has_spread(tmp_path: Path) -> None:
    def trained(name: str, **changes: object) -> dict[str, torch.Tensor]:
        options = {
            "consistency_weight": 1.0,
            "pseudo_label_threshold": 0.0,
            "checkpoint_every": 10,
            "sleep_weights": 0.0,
        }
        model = small(levels=1, **options, **changes)
        hk.Trainer(model, "digits", out=tmp_path / name).fit()
        paths = {"first": "step-0000010", "last": "step-0000020"}
        weights = {n: load_file(tmp_path / name / "checkpoints" / p / "tensors.safetensors") for n, p in paths.items()}
        return {f"{n}.{key}": tensor for n, tensors in weights.items() for key, tensor in tensors.items()}

    without, later = trained("without"), trained("later", propagate_every=12)
    for name, tensor in without.items():
        if name.startswith("first.hierarchy"):
            torch.testing.assert_close(later[name], tensor, rtol=0, atol=0)
    assert any(not torch.equal(later[name], tensor) for name, tensor in without.items() if name.startswith("last.hier"))
    assert (later["first.extra.supervised_loss.graph.labels"] == -1).all()
    labels = load("digits").train.labels
    index = choose_labelled(labels, 30, 10, 0)
    assert torch.equal(later["last.extra.supervised_loss.graph.labels"][index], labels[index])
    assert (later["last.extra.supervised_loss.graph.labels"] == labels).double().mean() > 0.5


def test_what_propagation_needs_is_refused_in_words() -> None:
    needed = {"labels.number": 10, "consistency_weight": 1.0}
    with pytest.raises(ConfigError, match="propagate_every has nothing to propagate to"):
        configured(**needed, propagation_neighbours=5, propagate_every=50)
    with pytest.raises(ConfigError, match="propagate_every = 50 has no effect here: consistency_weight is 0"):
        configured(labels__number=10, propagate_every=50)
    with pytest.raises(ConfigError, match=r"labels\.number is missing"):
        configured(propagation_neighbours=5)
    with pytest.raises(InputError, match="each of 1500 samples has 1 to 1499 neighbours, not 1500"):
        hk.Trainer(alone(propagation_neighbours=1500), "digits")


def test_the_presets_with_few_labels() -> None:
    semi, alone = hk.presets.mnist_semi(), hk.presets.mnist_supervised()
    assert semi.labels.number == alone.labels.number == 100
    assert alone.training.method == "supervised"
    assert semi.model == alone.model
    assert semi.training.encoder_noise == alone.training.encoder_noise > 0
    best = hk.presets.mnist_semi_best()
    assert best.labels.consistency_weight > 0
    assert best.data.augmentation()
    assert best.labels.number == 100
    models = [hk.build(config) for config in (semi, alone, best)]
    assert [space.name for space in models[0].discriminator.spaces] == ["x", "z1", "y"]
    assert models[1].discriminator is None
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 28, 28), generator=generator, dtype=torch.uint8)
    part = Split(images, torch.arange(300) % 10)
    data = DataSet("made", (1, 28, 28), tuple("0123456789"), part, None, part)
    for model in models:
        hk.Trainer(model, data).step(data.train.batch(torch.arange(20)))
