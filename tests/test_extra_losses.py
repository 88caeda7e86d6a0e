"""Losses beside those of Algorithm 1: whom they train, what they see, and their place in a run."""

from __future__ import annotations

import copy
import csv
import itertools
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from conftest import configured, gradients, relative_error, without_machine_code
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import halikit as hk
from halikit.elbo import negative_elbo
from halikit.errors import InputError
from halikit.training.cycle import cycle_loss, evidence_bound
from halikit.training.extra_losses import Player, StepContext
from halikit.training.game import GameMethod
from halikit.training.sleep import sleep_loss

# Torch's own compiler is full of them.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

SEED = 11
DIGITS = (1, 8, 8)
SMALL = {
    "levels": 2,
    "data_shape": DIGITS,
    "widths": (5, 4),
    "hidden": 8,
    "discriminator.width": 8,
    "steps": 12,
    "batch_size": 16,
    "log_every": 2,
    "evaluate_every": 6,
    "checkpoint_every": 4,
    "sleep_weights": 0.0,
}

players = pytest.mark.parametrize("player", ["encoder", "decoder", "generators", "discriminator"])


def small(**changes: object) -> hk.Model:
    torch.manual_seed(0)
    return hk.build(configured(**SMALL | changes))


def batch(n: int = 16) -> Tensor:
    return torch.randn(n, *DIGITS, generator=torch.Generator().manual_seed(1)).tanh()


def trained_by(player: Player, model: hk.Model) -> set[str]:
    """The names of the parameters of a player, each behind that of its part."""
    sides = {"encoder": ("up",), "decoder": ("down",), "generators": ("up", "down"), "discriminator": ()}[player]
    names = {f"hierarchy.{name}" for name, _ in model.hierarchy.named_parameters() if name.split(".")[2] in sides}
    if player == "discriminator":
        names = {f"discriminator.{name}" for name, _ in model.discriminator.named_parameters()}
    assert names
    return names


def added_by(loss: hk.ExtraLoss, number: int = 0, **changes: object) -> tuple[dict[str, Tensor], hk.Model]:
    """What a loss adds to the gradient of a step, by parameter, as far as it is not zero; and the model."""
    found = []
    for losses in ([], [loss]):
        model = small(**{"dropout": 0.0, "input_noise": 0.0} | changes)
        method = GameMethod(model, model.config, losses)
        torch.manual_seed(SEED)
        outcome = method.add_gradients(batch(), torch.arange(16) % 10, number, 12)
        assert (loss.name in outcome) == bool(losses)
        parameters = [(f"{part}.{n}", p) for part, m in model.parts.items() for n, p in m.named_parameters()]
        found.append({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters})
    return {name: g - found[0][name] for name, g in found[1].items() if not torch.equal(g, found[0][name])}, model


def everything(step: StepContext) -> Tensor:
    """Depends on all sampled states, and calls modules of both players directly."""
    states = [*step.encoder_states.values(), *step.decoder_states.values()]
    x = step.encoder_states["x"]
    total = sum(state.square().mean() for state in states)
    total = total + (step.hierarchy.reconstruct(x) - x).square().mean()
    for joint in (step.encoder_states, step.decoder_states):
        total = total + step.discriminator(joint).square().mean() + step.discriminator.features(joint).square().mean()
    return total + sum(
        (p - 0.5).square().mean() for part in (step.hierarchy, step.discriminator) for p in part.parameters()
    )


def on_both_joints(step: StepContext) -> Tensor:
    """Depends on samples of both joints and on the discriminator, with few operations."""
    return step.discriminator(step.encoder_states).square().mean() + step.decoder_states["x"].square().mean()


# --- whom a loss trains -----------------------------------------------------------------------------------------------


@players
@pytest.mark.parametrize("objective", ["jensen_shannon", "least_squares"], ids=["one pass", "two passes"])
@pytest.mark.parametrize("samples", ["differentiated", "constant"])
def test_a_loss_trains_its_player_and_nobody_else(player, objective, samples):
    loss = hk.ExtraLoss(everything, player, samples=samples)
    added, model = added_by(loss, objective=objective)
    assert set(added) == trained_by(player, model)


@players
@pytest.mark.parametrize("objective", ["jensen_shannon", "least_squares"], ids=["one pass", "two passes"])
def test_its_gradient_is_that_of_the_function_times_the_weight(player, objective):
    added, _ = added_by(hk.ExtraLoss(everything, player, weight=0.3), objective=objective)
    reference = small(dropout=0.0, input_noise=0.0)
    torch.manual_seed(SEED)
    q = reference.hierarchy.encode(batch(), sample=True)
    p = reference.hierarchy.sample_states(16)
    (0.3 * everything(StepContext(q, p, reference.hierarchy, reference.discriminator, None, 0))).backward()
    names = sorted(added)
    expected = {f"{part}.{n}": p.grad for part, m in reference.parts.items() for n, p in m.named_parameters()}
    assert relative_error([added[n] for n in names], [expected[n] for n in names]) < 1e-5


@players
@pytest.mark.parametrize("number", [0, 1], ids=["discriminator moves", "generators move"])
def test_a_loss_is_taken_in_the_steps_of_its_player(player, number):
    model = small(discriminator_steps=1, generator_steps=2)
    method = GameMethod(model, model.config, [hk.ExtraLoss(everything, player)])
    outcome = method.add_gradients(batch(), None, number, 12)
    assert ("everything" in outcome) == ((player == "discriminator") == (number == 0))


def test_constant_samples_pass_no_gradient():
    """Also where the function itself does not detach them."""

    def pull(step: StepContext) -> Tensor:
        assert not any(state.requires_grad for state in step.encoder_states.values())
        return (
            step.encoder_states["z2"].square().mean()
            + step.hierarchy.links[0].up.network(step.encoder_states["x"]).mean()
        )

    for objective in ("jensen_shannon", "least_squares"):
        added, _ = added_by(hk.ExtraLoss(pull, "encoder", samples="constant"), objective=objective)
        assert all(name.startswith("hierarchy.links.0.up.") for name in added)
        assert added


def test_a_loss_that_does_not_use_the_samples_is_not_given_any():
    seen: list[StepContext] = []

    def norm(step: StepContext) -> Tensor:
        seen.append(step)
        return sum((p - 0.5).square().sum() for p in step.hierarchy.parameters())

    added, model = added_by(hk.ExtraLoss(norm, "decoder", samples="unused"))
    assert set(added) == trained_by("decoder", model)
    assert [(step.encoder_states, step.decoder_states) for step in seen] == [({}, {})]


def test_a_frozen_player_stays_as_it_is():
    model = small()
    model.discriminator.requires_grad_(False)
    trainer = hk.Trainer(model, extra_losses=[hk.ExtraLoss(everything, "discriminator")])
    assert trainer.step(batch())["everything"].isfinite()
    assert all(g is None for g in gradients(model.discriminator))


def test_a_loss_without_a_gradient_is_recorded():
    def spread(step: StepContext) -> Tensor:
        return step.decoder_states["x"].detach().std()

    added, _ = added_by(hk.ExtraLoss(spread, "generators"))
    assert not added


def test_the_sleep_phase_could_be_one_of_the_users():
    """A loss of one's own with the function of the built-in one gives the same training."""

    def mine(step: StepContext) -> Tensor:
        return sleep_loss(step.hierarchy, step.decoder_states, (1.0, 0.5))

    built_in = hk.Trainer(small(sleep_weights=(1.0, 0.5)))
    own = hk.Trainer(small(), extra_losses=[hk.ExtraLoss(mine, "encoder", samples="constant")])
    for _ in range(3):
        first, second = built_in.step(batch()), own.step(batch())
        assert first["sleep_loss"] == second["mine"]
    for name, tensor in built_in.model.hierarchy.state_dict().items():
        assert torch.equal(own.model.hierarchy.state_dict()[name], tensor), name


# --- micro-batches ----------------------------------------------------------------------------------------------------


@players
def test_micro_batches_give_the_gradient_of_the_whole_batch(player, monkeypatch):
    """In evaluation mode, where nothing couples the samples, under noise that belongs to the place in the batch."""

    def noise(n: int, shape: tuple[int, ...], rows: slice) -> Tensor:
        return torch.randn(16, *shape, generator=torch.Generator().manual_seed(sum(shape)))[rows]

    def mean_of_squares(step: StepContext) -> Tensor:
        states = [*step.encoder_states.values(), *step.decoder_states.values()]
        logits = step.discriminator(step.encoder_states) + step.discriminator(step.decoder_states)
        return sum(state.square().mean() for state in states) + logits.square().mean()

    found = []
    for parts in (1, 2):
        place = {"start": 0}

        def rows(n: int, place=place) -> slice:
            return slice(place["start"], place["start"] + n)

        def sample(self: hk.GaussianKernel, given: Tensor, *, generator: object = None) -> Tensor:
            mean, scale = self.moments(given)
            return mean + scale * noise(len(given), self.target.shape, rows(len(given)))

        monkeypatch.setattr(hk.GaussianKernel, "sample", sample)
        model = small(accumulate=parts)
        model.hierarchy.prior.sample = lambda n, generator=None, rows=rows: noise(n, (4,), rows(n))
        trainer = hk.Trainer(model, extra_losses=[hk.ExtraLoss(mean_of_squares, player, weight=2.0)])
        for part in model.parts.values():
            part.eval()
        # The second micro-batch has the noise of the second half.
        original = trainer.method.add_gradients

        def moved(x: Tensor, *rest: object, original=original, place=place, **options: object) -> dict[str, Tensor]:
            outcome = original(x, *rest, **options)
            place["start"] += len(x)
            return outcome

        trainer.method.add_gradients = moved
        outcome = trainer.step(batch())
        found.append(([g for part in model.parts.values() for g in gradients(part)], outcome))
    (whole, of_whole), (halves, of_halves) = found
    assert relative_error(halves, whole) < 1e-5
    assert set(of_whole) == set(of_halves)
    for name, value in of_whole.items():
        torch.testing.assert_close(of_halves[name], value, rtol=1e-4, atol=1e-6)


# --- modules ----------------------------------------------------------------------------------------------------------


class Probe(nn.Module):
    """A loss with parameters and a running mean: predicts the classes from the highest latent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 10)
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, step: StepContext) -> Tensor:
        z = step.encoder_states["z2"]
        self.centre.lerp_(z.detach().mean(0), 0.1)
        return cross_entropy(self.layer(z - self.centre), step.labels)


def probe(seed: int = 5) -> hk.ExtraLoss:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return hk.ExtraLoss(Probe(), "encoder", name="label_loss")


@pytest.mark.parametrize("mode", [None, "default"], ids=["eager", "compiled"])
def test_a_loss_that_is_a_module_is_trained_with_its_player(mode, monkeypatch):
    without_machine_code(monkeypatch)
    loss = probe()
    before = copy.deepcopy(loss.module.state_dict())
    trainer = hk.Trainer(small(compile=mode, learning_rate=1e-2), "digits", extra_losses=[loss])
    digits = hk.data.load("digits").train
    x, y = digits.batch(torch.arange(64)), digits.labels[:64]
    losses = [float(trainer.step(x, y)["label_loss"]) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(not torch.equal(before[name], value) for name, value in loss.module.state_dict().items())


def test_the_rate_of_a_module_is_that_of_its_player():
    """Adam moves every weight by the learning rate in the first step."""
    for player, rate in (("encoder", 1e-3), ("discriminator", 5e-4)):
        loss = hk.ExtraLoss(Probe(), player, name="label_loss")
        before = loss.module.layer.bias.detach().clone()
        settings = configured(**SMALL, learning_rate=1e-3, discriminator_learning_rate=5e-4)
        trainer = hk.Trainer(small(), settings=settings, extra_losses=[loss])
        trainer.step(batch(), torch.arange(16) % 10)
        moved = (loss.module.layer.bias - before).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"discriminator_steps": 2}], ids=["plain", "in parts", "rounds"]
)
def test_a_resumed_run_has_identical_weights(changes, tmp_path):
    def trainer(name: str, **options: object) -> tuple[hk.Trainer, hk.ExtraLoss]:
        loss = probe()
        return hk.Trainer(small(**changes), "digits", extra_losses=[loss], out=tmp_path / name, **options), loss

    whole, expected = trainer("whole")
    whole.fit()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    again, found = trainer("cut", resume=4)
    assert again.steps == 4
    again.fit()
    for name, tensor in expected.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor), name
    ours, theirs = (
        load_file(tmp_path / name / "checkpoints" / "step-0000012" / "tensors.safetensors") for name in ("cut", "whole")
    )
    assert set(ours) == set(theirs)
    assert {"extra.label_loss.layer.weight", "extra.label_loss.centre"} < set(ours)
    assert "optimiser.extra.label_loss.exp_avg.layer.weight" in ours
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_run_can_go_on_with_a_loss_that_it_did_not_have(tmp_path):
    hk.Trainer(small(), "digits", out=tmp_path / "run").fit(4)
    loss = probe()
    before = copy.deepcopy(loss.module.state_dict())
    trainer = hk.Trainer(
        small(), "digits", extra_losses=[loss], out=tmp_path / "run", resume=True, on_notice=lambda _: None
    )
    assert all(torch.equal(before[name], value) for name, value in loss.module.state_dict().items())
    trainer.fit(2)
    assert trainer.steps == 6
    assert not torch.equal(before["layer.weight"], loss.module.layer.weight)


def test_a_skipped_step_leaves_the_module_as_it_was():
    loss = probe()
    trainer = hk.Trainer(small(), extra_losses=[loss])
    trainer.step(batch(), torch.arange(16) % 10)
    before = copy.deepcopy(loss.module.state_dict())
    trainer.step(batch() * torch.nan, torch.arange(16) % 10)
    assert all(torch.equal(before[name], value) for name, value in loss.module.state_dict().items())


def test_two_processes_have_the_same_module(tmp_path):
    """Each process initialises its own; the weights of rank 0 are taken, and gradients are averaged."""
    from test_processes import launch, succeed

    def train(rank: int) -> None:
        loss = probe(seed=rank)
        trainer = hk.Trainer(small(), "digits", extra_losses=[loss])
        torch.save(copy.deepcopy(loss.module.state_dict()), tmp_path / f"first-{rank}.pt")
        trainer.fit(3)
        torch.save(loss.module.layer.state_dict(), tmp_path / f"last-{rank}.pt")

    succeed(launch(train, tmp_path))
    found = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt")}
    for name, tensor in probe(seed=0).module.state_dict().items():
        assert torch.equal(found["first-0"][name], tensor)
        assert torch.equal(found["first-1"][name], tensor)
    for name, tensor in found["last-0"].items():
        assert torch.equal(found["last-1"][name], tensor)
        assert not torch.equal(found["first-0"][f"layer.{name}"], tensor)


# --- reconstruction beside the game -----------------------------------------------------------------------------------

DENSE = {"gauge": None, "max_scale": None, "observation_scale": 0.5}


class Shift(hk.Kernel):
    """A user's kernel that adds a constant, and can only be sampled."""

    def __init__(self, source: hk.Space, target: hk.Space, by: float) -> None:
        super().__init__(source, target)
        self.by = nn.Parameter(torch.tensor(by))

    def sample(self, given: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return given + self.by


def shifts() -> hk.Hierarchy:
    """Three levels that move up by 0.1, 0.2, 0.3, and down by 1, 2, 3."""
    spaces = [hk.Space(name, (2,)) for name in ("x", "z1", "z2", "z3")]
    return hk.Hierarchy(
        hk.Link(Shift(below, above, 0.1 * level), Shift(above, below, -float(level)))
        for level, (below, above) in enumerate(itertools.pairwise(spaces), 1)
    )


def test_the_cycle_of_each_level_leads_to_x_and_back():
    """Squared errors of draws, as the kernels know neither a density nor a mean: (0.1 l (l + 1)/2 − l (l + 1)/2)²."""
    h, x = shifts(), torch.randn(5, 2)
    states = h.encode(x, sample=True)
    expected = [(0.9 * level * (level + 1) / 2) ** 2 for level in (1, 2, 3)]
    for level in range(3):
        weights = [float(i == level) for i in range(3)]
        assert cycle_loss(h, states, weights).item() == pytest.approx(expected[level], rel=1e-4)
    whole = cycle_loss(h, states, (1.0, 0.5, 2.0))
    assert whole.item() == pytest.approx(expected[0] + 0.5 * expected[1] + 2 * expected[2], rel=1e-4)
    whole.backward()
    assert all(p.grad is not None for p in h.parameters())


def test_the_cycle_of_a_density_is_its_log_density():
    """Per element, and at one level: ``−log p(x|z_1)`` at the encoder's draw."""
    h = small(**DENSE).hierarchy.eval()
    states = h.encode(batch(), sample=True)
    expected = -h.links[0].down.log_prob(batch(), states["z1"]).mean() / 64
    torch.testing.assert_close(cycle_loss(h, states, (1.0, 0.0)), expected)


def test_the_cycle_changes_no_running_statistics():
    model = small()
    states = model.hierarchy.encode(batch(), sample=True)
    before = copy.deepcopy(model.hierarchy.state_dict())
    cycle_loss(model.hierarchy, states, (1.0, 1.0)).backward()
    assert all(torch.equal(before[name], value) for name, value in model.hierarchy.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"cycle_weight": 0.5}, "cycle_loss"),
        ({"cycle_weight": (0.0, 2.0)}, "cycle_loss"),
        ({"elbo_weight": 0.1}, "negative_elbo"),
    ],
    ids=["cycle", "cycle of one level", "evidence bound"],
)
@pytest.mark.parametrize("others", [{}, {"objective": "hinge"}, {"discriminator_steps": 2}, {"accumulate": 2}], ids=str)
def test_they_are_settings_that_move_the_generators_alone(changes, name, others):
    found = []
    for options in ({}, changes):
        trainer = hk.Trainer(small(**DENSE, dropout=0.0, **options, **others))
        outcomes = [trainer.step(batch()) for _ in range(3 if "discriminator_steps" in others else 1)]
        assert (name in trainer.method.columns) == (name in outcomes[-1]) == bool(options)
        found.append([gradients(part) for part in trainer.model.parts.values()])
    (h_without, d_without), (h_with, d_with) = found
    assert relative_error(h_with, h_without) > 1e-3
    if not {"discriminator_steps", "accumulate"} & set(others):  # there the discriminator waits, or draws differ
        assert relative_error(d_with, d_without) < 1e-6


def test_the_evidence_bound_is_that_of_pyro():
    h = small(**DENSE).hierarchy
    loss, step = evidence_bound(h).function, StepContext({"x": batch()}, {}, h, hk.build_discriminator(h), None, 0)
    torch.manual_seed(SEED)
    found = loss(step)
    torch.manual_seed(SEED)
    torch.testing.assert_close(found, negative_elbo(h, batch()))


def test_they_are_off_by_default():
    assert hk.Trainer(small()).method.columns == ("d_loss", "g_loss", "rho_q", "rho_p")


@pytest.mark.parametrize("changes", [{"cycle_weight": 1.0}, {"elbo_weight": 1.0}], ids=str)
def test_a_heavy_weight_makes_reconstructions_better(changes):
    """By the error of the mean after 60 steps with a weight of 1, against the game alone."""
    errors = []
    for options in ({}, changes):
        trainer = hk.Trainer(small(**DENSE, learning_rate=3e-3, **options))
        digits = hk.data.load("digits").train.batch(torch.arange(64))
        for _ in range(60):
            trainer.step(digits)
        hierarchy = trainer.model.hierarchy.eval()
        errors.append((hierarchy.reconstruct(digits) - digits).square().mean().item())
    assert errors[1] < 0.96 * errors[0]


@pytest.mark.parametrize("changes", [{"cycle_weight": 1.0}, {"elbo_weight": 1.0}], ids=str)
def test_they_are_compiled_with_the_step(changes, monkeypatch):
    graphs = without_machine_code(monkeypatch)
    notices: list[str] = []
    options = {"on_notice": notices.append}
    trainers = [hk.Trainer(small(**DENSE, **changes, compile=mode), **options) for mode in (None, "default")]
    for _ in range(2):
        eager, compiled = (trainer.step(batch()) for trainer in trainers)
        for name, value in eager.items():
            torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6)
    assert not notices
    assert len(graphs) == 1


def test_a_bound_without_densities_is_refused_before_the_first_step():
    with pytest.raises(InputError, match="needs densities in training"):
        hk.Trainer(small(elbo_weight=1.0))
    with pytest.raises(InputError, match="the evidence bound sums log-densities: it needs precision '32'"):
        small(elbo_weight=1.0, precision="bf16")


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), ()])
def test_a_cycle_has_a_weight_for_each_level(weights):
    with pytest.raises(InputError, match=rf"cycle_weight has {len(weights)} weights, and the hierarchy has 2 levels"):
        hk.Trainer(small(cycle_weight=weights))


# --- in a run ---------------------------------------------------------------------------------------------------------


def column(run: Path, name: str) -> list[str]:
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_its_column_is_in_the_metrics(tmp_path):
    """The loss without its weight, the mean over the steps since the last row."""
    values, records = [], []

    def spread(step: StepContext) -> Tensor:
        values.append(float(step.decoder_states["x"].detach().std()))
        return step.decoder_states["x"].std()

    losses = [hk.ExtraLoss(spread, "decoder", weight=0.1), hk.ExtraLoss(everything, "encoder", name="mine")]
    options = {"extra_losses": losses, "out": tmp_path / "run", "on_record": records.append}
    trainer = hk.Trainer(small(), "digits", **options)
    trainer.fit()
    assert trainer.method.columns == ("d_loss", "g_loss", "rho_q", "rho_p", "spread", "mine")
    expected = [sum(pair) / 2 for pair in zip(values[::2], values[1::2], strict=True)]
    assert [float(cell) for cell in column(tmp_path / "run", "spread")] == pytest.approx(expected, rel=1e-4)
    assert all(float(cell) > 0 for cell in column(tmp_path / "run", "mine"))
    assert records[-1].extra["spread"] == pytest.approx(expected[-1])


def test_labels_of_the_data_and_of_a_batch_arrive():
    seen: list[tuple[Tensor, Tensor]] = []

    def look(step: StepContext) -> Tensor:
        seen.append((step.encoder_states["x"], step.labels))
        return step.encoder_states["z1"].square().mean()

    trainer = hk.Trainer(small(), "digits", extra_losses=[hk.ExtraLoss(look, "encoder")])
    trainer.fit(2)
    digits = hk.data.load("digits").train
    every = digits.batch(torch.arange(len(digits))).flatten(1)
    for x, labels in seen:
        assert labels.dtype == torch.int64
        nearest = torch.cdist(x.flatten(1), every).argmin(1)
        assert torch.equal(digits.labels[nearest], labels)
    trainer.step(batch(), torch.arange(16))
    assert torch.equal(seen[-1][1], torch.arange(16))
    trainer.step(batch())
    assert seen[-1][1] is None
    parts = hk.Trainer(small(accumulate=2), extra_losses=[hk.ExtraLoss(look, "encoder")])
    parts.step(batch(), torch.arange(16))
    assert [labels.tolist() for _, labels in seen[-2:]] == [list(range(8)), list(range(8, 16))]
    with pytest.raises(InputError, match=r"a batch of 16 has labels \(16,\), got \(8,\)"):
        parts.step(batch(), torch.arange(8))


def test_the_number_of_the_step_arrives():
    numbers = []

    def look(step: StepContext) -> Tensor:
        numbers.append(step.number)
        return step.encoder_states["z1"].square().mean()

    trainer = hk.Trainer(small(), "digits", extra_losses=[hk.ExtraLoss(look, "encoder")])
    trainer.fit(3)
    assert numbers == [0, 1, 2]


# --- compiled steps ---------------------------------------------------------------------------------------------------


def weights_of(trainer: hk.Trainer) -> dict[str, Tensor]:
    modules = trainer.model.parts | {name: module for name, (module, _) in trainer.method.extra_modules.items()}
    return {f"{name}.{key}": value.clone() for name, m in modules.items() for key, value in m.state_dict().items()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective": "least_squares"}, {"discriminator_steps": 1, "generator_steps": 2}, {"sleep_weights": 1.0}],
    ids=["one pass", "two passes", "rounds", "beside the sleep phase"],
)
def test_a_loss_that_can_be_captured_stays_compiled(changes, monkeypatch):
    graphs = without_machine_code(monkeypatch)
    trainers, notices = [], []
    for mode in (None, "default"):
        losses = [
            hk.ExtraLoss(on_both_joints, "generators", weight=0.1),
            hk.ExtraLoss(on_both_joints, "discriminator", "judged"),
        ]
        options = {"extra_losses": [*losses, probe()], "on_notice": notices.append}
        trainers.append(hk.Trainer(small(compile=mode, **changes), **options))
    for _ in range(3):
        outcomes = [trainer.step(batch(), torch.arange(16) % 10) for trainer in trainers]
        assert list(outcomes[0]) == list(outcomes[1])
        for name, value in outcomes[0].items():
            torch.testing.assert_close(outcomes[1][name], value, rtol=1e-6, atol=1e-7, msg=name)
    eager, compiled = map(weights_of, trainers)
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert not notices
    assert len(graphs) == (2 if "generator_steps" in changes else 1)


def annealed(step: StepContext) -> Tensor:
    return step.encoder_states["z1"].square().mean() * 0.9**step.number


def on_values(step: StepContext) -> Tensor:
    z = step.encoder_states["z1"]
    return z.square().mean() if z.mean() > 0 else z.abs().mean()


@pytest.mark.parametrize(
    ("function", "reason"),
    [(annealed, "the number of the step is not constant"), (on_values, "RuntimeError")],
)
def test_a_loss_that_cannot_be_captured_makes_steps_eager(function, reason, monkeypatch):
    graphs = without_machine_code(monkeypatch)
    notices: list[str] = []
    trainers = [
        hk.Trainer(small(compile=mode), extra_losses=[hk.ExtraLoss(function, "encoder")], on_notice=notices.append)
        for mode in (None, "default")
    ]
    for _ in range(3):
        outcomes = [trainer.step(batch()) for trainer in trainers]
        assert outcomes[0] == outcomes[1]
    (notice,) = notices
    assert "steps are not compiled from here on" in notice
    assert reason in notice
    assert not graphs
    eager, other = map(weights_of, trainers)
    assert all(torch.equal(other[name], tensor) for name, tensor in eager.items())


def test_a_loss_that_does_not_use_the_samples_runs_beside_the_graph(monkeypatch):
    graphs = without_machine_code(monkeypatch)
    numbers = []

    def norm(step: StepContext) -> Tensor:
        numbers.append(step.number)
        return sum((p - 0.5).square().sum() for p in step.hierarchy.parameters())

    loss = hk.ExtraLoss(norm, "generators", samples="unused")
    with warnings.catch_warnings(action="error", category=UserWarning):
        trainer = hk.Trainer(small(compile="default"), extra_losses=[loss])
        for _ in range(3):
            assert trainer.step(batch())["norm"] > 0
    assert numbers == [0, 1, 2]
    assert len(graphs) == 1


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="machine code for the CPU is made by g++")
def test_machine_code_with_extra_losses_has_the_gradients_of_the_eager_step():
    found = []
    for mode in (None, "default"):
        losses = [hk.ExtraLoss(on_both_joints, "generators"), probe()]
        trainer = hk.Trainer(small(compile=mode), extra_losses=losses)
        trainer.step(batch(), torch.arange(16) % 10)
        modules = [*trainer.model.parts.values(), losses[-1].module]
        found.append([g for module in modules for g in gradients(module)])
    assert relative_error(found[1], found[0]) < 1e-4


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_function_alone_is_no_extra_loss():
    with pytest.raises(InputError, match=r"an extra loss is an ExtraLoss\(function, player\), got function"):
        hk.Trainer(small(), extra_losses=[on_both_joints])


@pytest.mark.parametrize(
    ("value", "got"),
    [(torch.zeros(3), r"\(3,\)"), (1.0, "float"), (None, "NoneType")],
    ids=["vector", "float", "nothing"],
)
@pytest.mark.parametrize("mode", [None, "default"], ids=["eager", "compiled"])
def test_what_is_no_loss_is_refused(value, got, mode, monkeypatch):
    without_machine_code(monkeypatch)
    loss = hk.ExtraLoss(lambda _: value, "encoder", name="mine")
    trainer = hk.Trainer(small(compile=mode), extra_losses=[loss], on_notice=lambda _: None)
    with pytest.raises(InputError, match=rf"the extra loss mine must return a tensor \(\), got {got}"):
        trainer.step(batch())


def test_one_number_of_any_shape_is_a_loss():
    loss = hk.ExtraLoss(lambda step: step.encoder_states["z1"].mean().reshape(1, 1), "encoder", name="mine")
    assert hk.Trainer(small(), extra_losses=[loss]).step(batch())["mine"].shape == ()


@pytest.mark.parametrize("name", ["d_loss", "rho_q", "sleep_loss", "step", "seconds", "error_z1", "no name", "1st"])
def test_names_that_are_taken_or_no_identifiers_are_refused(name):
    with pytest.raises(InputError, match=f"needs a name of its own that is an identifier, got '{name}'"):
        hk.Trainer(small(), extra_losses=[hk.ExtraLoss(everything, "encoder", name=name)])


def test_two_losses_need_two_names(tmp_path):
    losses = [hk.ExtraLoss(everything, player) for player in ("encoder", "decoder")]
    with pytest.raises(InputError, match="got 'everything'"):
        hk.Trainer(small(), extra_losses=losses)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["extra", "errors", "recovery"])
def test_names_of_fields_without_a_column_are_free(name, tmp_path):
    hk.Trainer(
        small(), "digits", extra_losses=[hk.ExtraLoss(everything, "encoder", name=name)], out=tmp_path / "run"
    ).fit(2)
    assert float(column(tmp_path / "run", name)[-1]) > 0


def test_a_player_that_there_is_not_is_refused():
    with pytest.raises(InputError, match="one of encoder, decoder, generators, discriminator, got 'both'"):
        hk.ExtraLoss(everything, "both")


@pytest.mark.parametrize("method", ["elbo", "supervised"])
def test_they_go_with_the_game_alone(method):
    changes = {"method": method, "classes": 10, "labels.number": 20} if method == "supervised" else {"method": method}
    settings = {k: v for k, v in SMALL.items() if k not in ("discriminator.width", "sleep_weights")}
    model = hk.build(configured(**settings | changes, gauge=None, max_scale=None, observation_scale=0.5))
    with pytest.raises(InputError, match=f"extra losses go with the game of Algorithm 1, not with .* = '{method}'"):
        hk.Trainer(model, "digits", extra_losses=[hk.ExtraLoss(everything, "encoder")])


def test_default_names():
    def relation(step: StepContext) -> Tensor:
        return step.encoder_states["z1"].mean()

    assert hk.ExtraLoss(relation, "encoder").name == "relation"
    assert hk.ExtraLoss(Probe(), "encoder").name == "probe"
    assert hk.ExtraLoss(lambda step: step.labels, "encoder").name == "lambda"
    assert hk.ExtraLoss(relation, "encoder").module is None


def test_a_loss_that_holds_parameters_of_the_model_is_refused() -> None:
    model = small()

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hierarchy = model.hierarchy

        def forward(self, step: StepContext) -> Tensor:
            return step.encoder_states["z1"].square().mean()

    with pytest.raises(InputError, match="has parameters of the model"):
        hk.Trainer(model, extra_losses=[hk.ExtraLoss(Holder(), "encoder", name="holder")])


def test_a_discriminator_over_other_spaces_is_refused() -> None:
    model, other = small(), small(widths=(6, 4))
    with pytest.raises(InputError, match=r"the discriminator reads z1 \(6\), and the hierarchy has"):
        hk.Trainer(hk.Model(model.hierarchy, other.discriminator))
