"""The game as settings: objectives by name and of the user's own, penalties between samples, norms, the context."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Shell, configured, gradients, relative_error, without_machine_code
from torch import Tensor

import halikit as hk
from halikit.algorithm import add_gradients, interpolated_penalty, play
from halikit.config import ConfigError, GameSettings, override
from halikit.errors import InputError
from halikit.objectives import OBJECTIVES, Losses, hinge, is_never_flat, never_flat, wasserstein

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

SMALL = {
    "levels": 2,
    "data_shape": (1, 8, 8),
    "widths": (5, 4),
    "hidden": 8,
    "discriminator.width": 8,
    "steps": 4,
    "batch_size": 16,
    "log_every": 2,
    "evaluate_every": 4,
    "checkpoint_every": 2,
    "sleep_weights": 0.0,
}


def small(**changes: object) -> hk.Model:
    torch.manual_seed(0)
    return hk.build(configured(**SMALL | changes))


def batch(n: int = 16) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)).tanh()


def mine(s_q: Tensor, s_p: Tensor) -> Losses:
    """An objective of the user's own."""
    return Losses((1 - s_q).relu().mean() + (1 + s_p).relu().mean(), s_q.mean() - s_p.mean())


# --- objectives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "mode"),
    [*((name, None) for name in (*OBJECTIVES, "mine")), ("wasserstein", "default"), ("mine", "default")],
)
def test_every_objective_trains(objective, mode, monkeypatch):
    without_machine_code(monkeypatch)
    options = {} if objective == "mine" else {"objective": objective}
    own = mine if objective == "mine" else None
    trainer = hk.Trainer(small(compile=mode, **options), objective=own)
    assert trainer.method.single_pass == (own is None and is_never_flat(OBJECTIVES[objective]))
    before = [p.clone() for part in trainer.model.parts.values() for p in part.parameters()]
    for _ in range(2):
        assert all(value.isfinite() for value in trainer.step(batch()).values())
    after = [p for part in trainer.model.parts.values() for p in part.parameters()]
    assert all(p.isfinite().all() for p in after)
    assert sum(torch.equal(a, b) for a, b in zip(before, after, strict=True)) < len(after) / 10


def test_the_same_function_as_a_setting_and_of_ones_own():
    given, named = hk.Trainer(small(), objective=mine), hk.Trainer(small(objective="hinge"))
    for _ in range(3):
        assert given.step(batch()) == named.step(batch())
    assert given.config.game.objective == "custom:mine"
    assert hk.Trainer(small(), objective=hinge).config.game.objective == "hinge"


def test_a_declared_objective_of_ones_own_takes_one_pass():
    @never_flat
    def drift(s_q: Tensor, s_p: Tensor) -> Losses:
        return wasserstein(s_q, s_p)

    assert hk.Trainer(small(), objective=drift).method.single_pass


def test_a_run_with_an_objective_of_ones_own_is_read_and_resumed(tmp_path, halikit: Shell):
    run = tmp_path / "run"
    whole = hk.Trainer(small(), "digits", objective=mine, out=tmp_path / "whole")
    whole.fit()
    shutil.copytree(tmp_path / "whole", run)
    assert 'objective = "custom:mine"' in (run / "config.toml").read_text()
    assert hk.load(run).config.game.objective == "custom:mine"
    assert "custom:mine" in halikit("report", run) + (run / "report.html").read_text()
    complaint = "the objective mine is not one of halikit's: pass it as hk.Trainer"
    with pytest.raises(InputError, match=complaint):
        hk.Trainer(hk.load(run), "digits", out=run, resume=2)
    said = halikit("train", "--resume-from", 2, "--out", run, code=2)
    assert complaint in said
    assert len(said.strip().splitlines()) == 1
    again = hk.Trainer(small(), "digits", objective=mine, out=run, resume=2)
    again.fit()
    for name, tensor in whole.model.hierarchy.state_dict().items():
        assert torch.equal(again.model.hierarchy.state_dict()[name], tensor), name


def test_what_is_no_objective_is_refused_before_the_first_step():
    with pytest.raises(InputError, match=r"an objective returns two losses \(\), .*; lambda gives \[\(2,\)\]"):
        hk.Trainer(small(), objective=lambda s_q, s_p: s_q - s_p)
    with pytest.raises(InputError, match=r"a function of the logits of both joints, got 'hinge'; .*takes a name"):
        hk.Trainer(small(), objective="hinge")
    with pytest.raises(InputError, match="depend on the logits; one of lambda is constant"):
        hk.Trainer(small(), objective=lambda s_q, s_p: ((s_p - s_q).mean(), s_q.detach().mean()))
    with pytest.raises(ConfigError, match=r"'hinges' is not an objective; there are jensen_shannon, .*hellinger"):
        configured(objective="hinges")
    autoencoder = configured(
        **{k: v for k, v in SMALL.items() if k not in ("discriminator.width", "sleep_weights")},
        method="elbo",
        gauge=None,
        max_scale=None,
        observation_scale=0.5,
    )
    with pytest.raises(InputError, match=r"an objective goes with the game of Algorithm 1, not with .* = 'elbo'"):
        hk.Trainer(hk.build(autoencoder), objective=mine)


# --- penalties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "weight", "place"),
    [
        ({}, 0.0, "encoder"),
        ({"gradient_penalty": 2.0}, 2.0, "encoder"),
        ({"penalised_joint": "between"}, 10.0, "between"),
        ({"objective": "wasserstein"}, 10.0, "between"),
        ({"objective": "wasserstein", "gradient_penalty": 0.0}, 0.0, "between"),
        ({"objective": "wasserstein", "gradient_penalty": 1.0}, 1.0, "between"),
        ({"objective": "wasserstein", "penalised_joint": "both"}, 10.0, "both"),
        ({"objective": "kl", "penalised_joint": "both"}, 0.0, "both"),
    ],
    ids=str,
)
def test_the_penalty_that_an_objective_takes_by_default(given, weight, place):
    resolved = GameSettings(**given).resolved
    assert (resolved.gradient_penalty, resolved.penalised_joint) == (weight, place)
    assert resolved.resolved == resolved
    recorded = hk.Trainer(small(**given), on_notice=lambda _: None).config.game
    assert (recorded.gradient_penalty, recorded.penalised_joint) == (weight, place)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_wasserstein_objective_is_played_with_its_penalty(rounds):
    """``L_d + 10 E (‖∇s‖ − 1)²`` by plain autograd, on the samples of a step, without dropout and noise."""
    options = {"objective": "wasserstein", "dropout": 0.0, "input_noise": 0.0, "discriminator_steps": rounds}
    trainer = hk.Trainer(small(**options))
    hierarchy, discriminator = copy.deepcopy((trainer.model.hierarchy, trainer.model.discriminator))
    torch.manual_seed(7)
    with torch.set_grad_enabled(rounds == 1):
        step = play(hierarchy, discriminator, batch(), wasserstein)
    q, p = ({name: s.detach() for name, s in joint.items()} for joint in (step.encoder_states, step.decoder_states))
    loss = discriminator(p).mean() - discriminator(q).mean() + 10 * interpolated_penalty(discriminator, q, p)
    loss.backward()
    torch.manual_seed(7)
    trainer.method.add_gradients(batch(), None, 0, 4)
    assert relative_error(gradients(trainer.model.discriminator), gradients(discriminator)) < 1e-5


def test_a_penalty_between_samples_reaches_the_discriminator_alone():
    found = []
    for weight in (0.0, 10.0):
        trainer = hk.Trainer(small(objective="wasserstein", gradient_penalty=weight), on_notice=lambda _: None)
        trainer.step(batch())
        found.append([gradients(part) for part in trainer.model.parts.values()])
    (h_without, d_without), (h_with, d_with) = found
    assert all(torch.equal(a, b) for a, b in zip(h_without, h_with, strict=True))
    assert relative_error(d_with, d_without) > 1e-3


@pytest.mark.parametrize(
    ("options", "is_told"), [({}, False), ({"gradient_penalty": 0.0}, True), ({"spectral": True}, False)], ids=str
)
def test_a_critic_that_nothing_bounds_is_reported(options, is_told):
    if options.get("spectral"):
        options = {"spectral_norm": True, "weight_norm": False, "gradient_penalty": 0.0}
    notices: list[str] = []
    hk.Trainer(small(objective="wasserstein", **options), on_notice=notices.append)
    assert any("the Wasserstein objective needs a Lipschitz constant" in notice for notice in notices) == is_told


def discrete(kind: str) -> hk.Model:
    x, z = hk.Space("x", (6,)), hk.Space("z1", (4,), support="bits" if kind == "stated" else None)
    up = torch.nn.Linear(6, 4)
    kernel = hk.BernoulliKernel(x, z, up) if kind == "kernel" else hk.GaussianKernel(x, z, up, scale=0.1)
    hierarchy = hk.Hierarchy([hk.Link(kernel, hk.GaussianKernel(z, x, torch.nn.Linear(4, 6), scale=0.1))])
    return hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=8))


@pytest.mark.parametrize("kind", ["stated", "kernel"])
def test_discrete_states_are_refused_before_the_first_step(kind):
    settings = configured(objective="wasserstein", sleep_weights=0.0)
    with pytest.raises(InputError, match=r"no penalty between samples of z1 \(4\), which is discrete") as error:
        hk.Trainer(discrete(kind), settings=settings, on_notice=lambda _: None)
    assert "\n" not in str(error.value)
    at_samples = override(settings, {"penalised_joint": "both"})
    trainer = hk.Trainer(discrete(kind), settings=at_samples, on_notice=lambda _: None)
    assert trainer.step(torch.randn(8, 6))["d_loss"].isfinite()


def test_training_with_the_wasserstein_objective_from_the_command_line(halikit: Shell, tmp_path: Path):
    sizes = ("--steps", 4, "--batch-size", 16, "--set", "hidden=8", "--set", "discriminator.width=8")
    options = ("--set", "game.objective=wasserstein", "--set", "game.discriminator_steps=2")
    halikit("train", "--levels", 2, *sizes, *options, "--out", tmp_path / "run")
    written = (tmp_path / "run" / "config.toml").read_text()
    for line in ('objective = "wasserstein"', "gradient_penalty = 10.0", 'penalised_joint = "between"'):
        assert line in written


def test_the_critic_does_not_set_off_the_alarm_of_a_discriminator_that_has_won(monkeypatch):
    monkeypatch.setattr("halikit.training.alarms._WON_DIFFERENCE", -2.0)
    monkeypatch.setattr("halikit.training.alarms._PATIENCE", 0)
    for objective, is_told in (("hinge", True), ("wasserstein", False)):
        notices: list[str] = []
        hk.Trainer(small(objective=objective), "digits", on_notice=notices.append).fit()
        assert any("has known the two joints apart" in notice for notice in notices) == is_told


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "default"], ids=["eager", "compiled"])
def test_a_spectrally_normalised_discriminator_trains(mode, monkeypatch):
    """In a single pass; its estimates move with the steps, and those of a resumed run are those of the whole one."""
    without_machine_code(monkeypatch)
    trainers = [
        hk.Trainer(small(spectral_norm=True, weight_norm=False, compile=m, gradient_penalty=0.1)) for m in (None, mode)
    ]
    before = [b.clone() for b in trainers[1].model.discriminator.buffers()]
    for _ in range(3):
        eager, other = (trainer.step(batch()) for trainer in trainers)
        for name, value in eager.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)
    assert trainers[1].method.single_pass
    assert not all(torch.equal(a, b) for a, b in zip(before, trainers[1].model.discriminator.buffers(), strict=True))


def test_spectral_norm_is_saved_and_resumed(tmp_path):
    options = {"spectral_norm": True, "weight_norm": False}
    whole = hk.Trainer(small(**options), "digits", out=tmp_path / "whole")
    whole.fit()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    again = hk.Trainer(small(**options), "digits", out=tmp_path / "cut", resume=2)
    again.fit()
    for name, tensor in whole.model.discriminator.state_dict().items():
        assert torch.equal(again.model.discriminator.state_dict()[name], tensor), name
    loaded = hk.load(tmp_path / "whole", weights="raw")
    assert set(loaded.discriminator.state_dict()) == set(whole.model.discriminator.state_dict())


def test_two_norms_are_refused():
    with pytest.raises(ConfigError, match="for spectral_norm, set weight_norm to false"):
        configured(spectral_norm=True)
    with pytest.raises(ConfigError, match="the paper's discriminator is that of Table 4"):
        configured(discriminator__family="paper", spectral_norm=True, weight_norm=False)


# --- the context ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.arange(16) % 3, torch.rand(16, 3)], ids=["classes", "attributes"])
@pytest.mark.parametrize("games", ["joint", "pairwise"])
def test_a_projection_on_the_context_plays(context, games):
    """Its weight gets a gradient in the one pass, the same as in two."""
    h = hk.ladder(2, (6,), widths=(5, 4), hidden=8).double()
    found = []
    for single_pass in (None, False):
        torch.manual_seed(0)
        d = hk.build_discriminator(h, games=games, width=8, context=3).double()
        step = play(h, d, torch.ones(16, 6).double(), context=context, single_pass=single_pass)
        assert step.single_pass == (single_pass is None)
        add_gradients(step, h, d)
        found.append(gradients(d))
        assert all(game.projection.weight.grad.abs().sum() > 0 for game in d.games)
    assert relative_error(*found) < 1e-10
