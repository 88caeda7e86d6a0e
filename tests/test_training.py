"""The trainer: what it plays, records, averages and refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

import halikit as hk
from halikit.config import (
    Config,
    DiscriminatorSettings,
    GameSettings,
    ModelSettings,
    OptimiserSettings,
    override,
    read_toml,
)
from halikit.discriminator import InputNoise
from halikit.errors import DivergedError, InputError
from halikit.optimisation.optimisers import rate_share
from halikit.runs.record import Record
from halikit.training.game import noise_scale, players_of

DIGITS = (1, 8, 8)
# What the evidence bound needs.
DENSITIES = {"observation_scale": "fitted", "gauge": None, "max_scale": None}


def small(levels: int = 2, **changes: object) -> hk.Model:
    torch.manual_seed(0)
    config = Config(
        model=ModelSettings(levels=levels, data_shape=DIGITS, widths=(8, 6, 5, 4, 3)[:levels], hidden=16),
        discriminator=DiscriminatorSettings(width=16),
    )
    settings = {"steps": 20, "batch_size": 16, "log_every": 5, "evaluate_every": 10}
    return hk.build(override(config, settings | changes))


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in module.state_dict().values()])


def test_training_is_a_function_of_the_seed() -> None:
    trained = [weights(hk.Trainer(small(seed=3), "digits").fit().hierarchy) for _ in range(2)]
    torch.testing.assert_close(*trained, rtol=0, atol=0)
    other = weights(hk.Trainer(small(seed=4), "digits").fit().hierarchy)
    assert not torch.equal(trained[0], other)


def test_training_leaves_the_global_generator_alone() -> None:
    trainer = hk.Trainer(small(), "digits")
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    trainer.fit()
    torch.testing.assert_close(torch.randn(3), expected)


def test_evaluation_changes_nothing() -> None:
    often, rarely = (weights(hk.Trainer(small(evaluate_every=every), "digits").fit().hierarchy) for every in (1, 1000))
    torch.testing.assert_close(often, rarely, rtol=0, atol=0)


def test_fit_can_be_played_in_parts() -> None:
    whole = hk.Trainer(small(), "digits")
    whole.fit()
    parts = hk.Trainer(small(), "digits")
    for _ in range(4):
        parts.fit(5)
    assert parts.steps == 20
    torch.testing.assert_close(weights(parts.model.hierarchy), weights(whole.model.hierarchy), rtol=0, atol=0)


def test_steps_of_ones_own_batches() -> None:
    trainer = hk.Trainer(small())
    before = weights(trainer.model.hierarchy)
    losses = trainer.step(torch.rand(16, *DIGITS) * 2 - 1)
    assert 0 < losses["rho_q"] < 1
    assert losses["d_loss"] > 0
    assert not torch.equal(before, weights(trainer.model.hierarchy))
    with pytest.raises(InputError, match="no data"):
        trainer.fit(1)


def test_steps_of_ones_own_leave_the_global_generator_alone() -> None:
    trainer = hk.Trainer(small())
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer.step(torch.rand(16, *DIGITS))
        draws.append(torch.randn(3))
    assert not torch.equal(*draws)


def test_a_player_may_be_frozen() -> None:
    model = small()
    model.hierarchy.requires_grad_(False)
    before = weights(model.discriminator)
    hk.Trainer(model, "digits").fit(2)
    assert not torch.equal(before, weights(model.discriminator))


def test_all_levels_learn_from_the_first_step_on() -> None:
    trainer = hk.Trainer(small(levels=3, learning_rate=1e-2), "digits")
    kernels = [kernel for link in trainer.model.hierarchy.links for kernel in (link.up, link.down)]
    before = [[p.detach().clone() for p in kernel.parameters()] for kernel in kernels]
    trainer.step(torch.rand(16, *DIGITS))
    for kernel, old in zip(kernels, before, strict=True):
        assert max((p - was).abs().max() for p, was in zip(kernel.parameters(), old, strict=True)) > 1e-3, kernel


def test_rounds_of_several_discriminator_steps() -> None:
    rounds = GameSettings(discriminator_steps=2, generator_steps=1)
    players = [players_of(rounds, step) for step in range(4)]
    assert players == ["discriminator", "discriminator", "generators", "discriminator"]
    trainer = hk.Trainer(small(discriminator_steps=1, generator_steps=1000), "digits")
    before = weights(trainer.model.hierarchy.links[0].up.network[-1]), weights(trainer.model.discriminator)
    trainer.step(torch.rand(16, *DIGITS))
    after = weights(trainer.model.hierarchy.links[0].up.network[-1]), weights(trainer.model.discriminator)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    trainer.step(torch.rand(16, *DIGITS))
    assert not torch.equal(after[0], weights(trainer.model.hierarchy.links[0].up.network[-1]))
    assert torch.equal(after[1], weights(trainer.model.discriminator))


def test_rates_fall_linearly_after_the_start_of_the_decay() -> None:
    settings = OptimiserSettings(final_rate_share=0.1, decay_from=0.5)
    assert rate_share(settings, 0, 100) == rate_share(settings, 50, 100) == 1
    assert rate_share(settings, 75, 100) == pytest.approx(0.55)
    assert rate_share(settings, 100, 100) == pytest.approx(0.1)


def test_input_noise_falls_linearly_to_its_last_value() -> None:
    assert [noise_scale(0.3, 0.1, step, 100) for step in (0, 50, 100)] == pytest.approx([0.3, 0.2, 0.1])
    trainer = hk.Trainer(small(final_input_noise=0.0), "digits")
    for _ in range(20):
        trainer.step(torch.rand(16, *DIGITS))
    assert trainer.model.discriminator.noise.scale == pytest.approx(0.2 / 20)
    trainer.fit(1)
    assert trainer.model.discriminator.noise.scale == 0.2
    assert noise_scale(0.3, None, 70, 100) == 0.3


def test_noise_on_latents_falls_too() -> None:
    trainer = hk.Trainer(small(levels=2, latent_noise=0.4, latent_noise_until=0.5), "digits")
    noises = [part for part in trainer.model.hierarchy.modules() if isinstance(part, InputNoise)]
    seen = []
    for _ in range(20):
        trainer.step(torch.rand(16, *DIGITS))
        seen.append([noise.scale for noise in noises])
    assert [each for each, *_ in seen] == pytest.approx([0.4 * max(0, 1 - step / 10) for step in range(20)])
    trainer.fit(1)
    assert [noise.scale for noise in noises] == [0.4]


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    trainer = hk.Trainer(small(threads=1), "digits", on_record=lambda record: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        trainer.fit()
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_averages_follow_weights_and_buffers() -> None:
    trainer = hk.Trainer(small(ema_decay=0.0), "digits")
    trainer.fit(3)
    torch.testing.assert_close(weights(trainer.averaged), weights(trainer.model.hierarchy))
    slow = hk.Trainer(small(ema_decay=0.999), "digits")
    start = weights(slow.averaged)
    slow.fit(3)
    moved = (weights(slow.averaged) - start).norm()
    assert 0 < moved < (weights(slow.model.hierarchy) - start).norm()
    assert not slow.averaged.training


def test_the_records_of_a_run(tmp_path: Path) -> None:
    records: list[Record] = []
    trainer = hk.Trainer(small(levels=3), "digits", out=tmp_path / "run", on_record=records.append)
    trainer.fit()
    assert [record.step for record in records] == [5, 10, 15, 20]
    assert [len(record.errors) for record in records] == [0, 3, 0, 3]
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    assert float(rows[-1]["error_z3"]) == pytest.approx(records[-1].errors[2], rel=1e-4)
    assert float(rows[-1]["embedded_z1"]) == pytest.approx(records[-1].embedded[0], rel=1e-4)
    kinds = ("error", "embedded", "recovery", "recovery_from_x")
    for row, record in zip(rows, records, strict=True):
        cells = [row[f"{kind}_z{level}"] for kind in kinds for level in (1, 2, 3)]
        assert [cell != "" for cell in cells] == [record.evaluated] * 12
    names = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert names == [f"{what}-{step:07d}.png" for what in ("reconstructions", "samples") for step in (10, 20)]
    assert (tmp_path / "run" / "config.toml").is_file()


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    hk.Trainer(small(steps=2), "digits", out=tmp_path / "run").fit()
    with pytest.raises(InputError, match="already holds a run"):
        hk.Trainer(small(steps=2), "digits", out=tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "training", "message"),
    [
        (torch.zeros(40, 1, 9, 9), {}, "shape"),
        (torch.zeros(10, *DIGITS), {"batch_size": 16}, "fewer than a batch"),
        (torch.full((40, *DIGITS), torch.nan), {}, "finite"),
        ("digits", {"batch_size": 1}, "at least 2"),
        ("digits", {"device": "cuda:77"}, "not available"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(data: object, training: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hk.Trainer(small(**training), data)


def test_divergence_is_an_error() -> None:
    trainer = hk.Trainer(small(), "digits")
    with torch.no_grad():
        trainer.model.hierarchy.links[0].up.network[-1].bias.fill_(torch.nan)
    with pytest.raises(DivergedError, match="not finite in 10 steps in a row"):
        trainer.fit()


@pytest.mark.parametrize("games", ["joint", "pairwise"])
@pytest.mark.parametrize("objective", ["jensen_shannon", "least_squares", "relativistic"])
def test_every_objective_and_number_of_games_trains(games: str, objective: str) -> None:
    model = small(objective=objective, gradient_penalty=0.1, encoder_noise=0.1)
    discriminator = hk.build_discriminator(model.hierarchy, games=games, width=16)
    trainer = hk.Trainer(hk.Model(model.hierarchy, discriminator, model.config), "digits")
    assert trainer.method.single_pass == (objective != "least_squares")
    before = weights(trainer.model.hierarchy)
    trainer.fit(5)
    assert weights(trainer.model.hierarchy).isfinite().all()
    assert not torch.equal(before, weights(trainer.model.hierarchy))


@pytest.mark.parametrize("side", ["encoder", "decoder", "both"])
def test_the_gradient_penalty_moves_the_discriminator_alone(side: str) -> None:
    gradients, buffers = [], []
    for weight in (0.0, 5.0):
        trainer = hk.Trainer(small(gradient_penalty=weight, penalised_joint=side), "digits")
        trainer.step(torch.linspace(-1, 1, 16 * 64).reshape(16, *DIGITS))
        modules = trainer.model.hierarchy, trainer.model.discriminator
        buffers.append(torch.cat([b.double().flatten() for b in trainer.model.hierarchy.buffers()]))
        found = [[p.grad.flatten() for p in module.parameters() if p.grad is not None] for module in modules]
        gradients.append([torch.cat(each) for each in found])
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=0, atol=0)
    torch.testing.assert_close(*buffers, rtol=0, atol=0)
    assert (gradients[0][1] - gradients[1][1]).norm() > 1e-3


def test_a_coupling_discriminator_is_found_and_reported() -> None:
    model = small()
    coupled = hk.build_discriminator(
        model.hierarchy, width=16, stages={1: nn.Sequential(nn.Linear(24, 16), nn.BatchNorm1d(16))}
    )
    trainer = hk.Trainer(hk.Model(model.hierarchy, coupled, model.config), "digits")
    assert not trainer.method.single_pass
    assert "couples" in trainer.method.description
    trainer.fit(2)


@pytest.mark.parametrize(("instructions", "is_told"), [((), True), (("avx512_bf16",), False)])
def test_bf16_trains_on_cpu(instructions: tuple[str, ...], is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any CPU, and where it is emulated one is told that it is slow."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))
    notices: list[str] = []
    trainer = hk.Trainer(small(precision="bf16"), "digits", on_notice=notices.append)
    trainer.fit(3)
    assert weights(trainer.model.hierarchy).isfinite().all()
    assert any("no units for bfloat16" in notice for notice in notices) == is_told


@pytest.mark.parametrize(
    ("instruction", "changes", "expected"),
    [
        ("amx_bf16", {}, "bf16"),
        ("avx512_bf16", {}, "bf16"),
        ("avx512_f", {}, "32"),
        ("avx512_bf16", {"precision": "32"}, "32"),
        ("avx512_bf16", {"training.method": "elbo"} | DENSITIES, "32"),
        ("avx512_bf16", {"elbo_weight": 0.1} | DENSITIES, "32"),
    ],
)
def test_the_precision_is_that_of_the_hardware(
    instruction: str, changes: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True})
    trainer = hk.Trainer(small(device="cpu", **changes), "digits", out=tmp_path / "run")
    assert trainer.config.hardware.precision == trainer.hardware.settings.precision == expected
    assert bool(trainer.precision_reason) == ("precision" not in changes)
    trainer.fit(2)
    # A resumed run keeps what was chosen, on any machine.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": expected == "32"})
    config = read_toml(tmp_path / "run" / "config.toml")
    assert config.hardware.precision == expected
    again = hk.Trainer(hk.build(config), "digits", on_notice=lambda notice: None)
    assert again.config.hardware.precision == expected


def test_a_model_in_double_precision_trains_in_it() -> None:
    model = small()
    for part in model.parts.values():
        part.double()
    assert hk.Trainer(model, "digits").config.hardware.precision == "64"


def test_one_level_learns_the_mean_of_its_data() -> None:
    """A game on one Gaussian cloud: after training, samples have the data's mean and spread."""
    torch.manual_seed(0)
    data = torch.randn(1000, 2) * 0.5 + torch.tensor([2.0, -1.0])
    hierarchy = hk.ladder(1, (2,), widths=[2], hidden=32)
    model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=32))
    rates = {"learning_rate": 2e-3, "discriminator_learning_rate": 8e-3, "final_rate_share": 0.05}
    trainer = hk.Trainer(model, data, settings=override(Config(), {"steps": 600, "batch_size": 64} | rates))
    trainer.fit()
    samples = trainer.averaged.sample(2000)
    # Of four seeds the worst came to 0.05 and 0.08.
    assert (samples.mean(0) - data.mean(0)).abs().max() < 0.15
    assert (samples.std(0) - data.std(0)).abs().max() < 0.15
