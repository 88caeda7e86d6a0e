"""Training on the evidence lower bound: a bound it is, for hierarchies of any depth, without a discriminator."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import pyro
import pytest
import torch
from conftest import configured, density_ladder, linear_hierarchy

import halikit as hk
from halikit.config import Config, ConfigError, DiscriminatorSettings, GameSettings, override, to_toml
from halikit.elbo import negative_elbo
from halikit.errors import InputError
from halikit.kernels import Gaussian
from halikit.runs.record import Record

DIGITS = (1, 8, 8)


def config(levels: int = 1, **changes: object) -> Config:
    model = {"levels": levels, "data_shape": DIGITS, "widths": (8, 6, 5)[:levels], "hidden": 32, "gauge": None}
    model |= {"max_scale": None, "observation_scale": "fitted"}
    training = {"steps": 60, "batch_size": 32, "log_every": 20, "evaluate_every": 30, "learning_rate": 3e-3}
    return configured(method="elbo", **model, **training | changes)


def built(levels: int = 1, **changes: object) -> hk.Model:
    torch.manual_seed(0)
    return hk.build(config(levels, **changes))


@pytest.mark.parametrize("levels", [1, 2])
def test_it_is_a_bound_on_the_exact_likelihood(levels: int) -> None:
    h = linear_hierarchy(levels, dtype=torch.float32)
    top = Gaussian(torch.zeros(2), torch.eye(2))
    marginal = h.decoder.marginal(top)
    x = torch.randn(4000, 3)
    exact = -torch.distributions.MultivariateNormal(marginal.mean, marginal.covariance).log_prob(x).mean()
    with torch.no_grad():
        assert negative_elbo(h, x) > exact + 0.1


def test_it_is_exact_where_the_encoder_is_the_posterior() -> None:
    down = linear_hierarchy(1, dtype=torch.float32).links[0].down
    top = Gaussian(torch.zeros(2), torch.eye(2))
    up = down.posterior(top)
    marginal = down.marginal(top)
    h = hk.Hierarchy(
        [hk.Link(up, hk.LinearGaussianKernel(down.source, down.target, down.weight, down.bias, down.covariance))]
    )
    x = torch.randn(50, 3)
    exact = -torch.distributions.MultivariateNormal(marginal.mean, marginal.covariance).log_prob(x).mean()
    torch.testing.assert_close(negative_elbo(h, x), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_hierarchy_trains_without_a_discriminator(levels: int, tmp_path: Path) -> None:
    model = built(levels)
    assert model.discriminator is None
    records: list[Record] = []
    before = [p.detach().clone() for p in model.hierarchy.parameters()]
    trainer = hk.Trainer(model, "digits", out=tmp_path / "run", on_record=records.append)
    assert "evidence lower bound" in trainer.method.description
    assert not trainer.method.single_pass
    trainer.fit()
    assert all((p != old).any() for p, old in zip(model.hierarchy.parameters(), before, strict=True))
    assert records[-1].negative_elbo < records[0].negative_elbo
    bounds = [record.held_out_negative_elbo for record in records]
    assert [bound is None for bound in bounds] == [True, False, True, False]
    assert bounds[-1] < bounds[1]
    assert records[-1].d_loss is None
    assert not list(pyro.get_param_store().keys())
    with (tmp_path / "run" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["held_out_negative_elbo"]) == pytest.approx(bounds[-1], rel=1e-4)
    assert rows[0]["held_out_negative_elbo"] == rows[-1]["d_loss"] == ""
    loaded = hk.load(tmp_path / "run")
    assert loaded.discriminator is None
    x = torch.rand(5, *DIGITS) * 2 - 1
    assert loaded.hierarchy.links[0].down.log_prob(x, loaded.hierarchy.encode(x)["z1"]).shape == (5,)


def test_the_same_seed_trains_the_same_autoencoder() -> None:
    first, second = (hk.Trainer(built(2), "digits").fit(10).hierarchy.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_fitted_scale_finds_the_noise_of_the_data() -> None:
    torch.manual_seed(0)
    space, latent = hk.Space("x", (6,)), hk.Space("z1", (1,))
    # What no latent of one element can tell: noise of this standard deviation.
    x = torch.randn(2000, 1) @ torch.ones(1, 6) + 0.3 * torch.randn(2000, 6)
    up = hk.GaussianKernel(space, latent, torch.nn.Linear(6, 2))
    down = hk.GaussianKernel(latent, space, torch.nn.Linear(1, 6), scale="fitted")
    model = hk.Model(hk.Hierarchy([hk.Link(up, down)]))
    settings = configured(method="elbo", steps=600, learning_rate=1e-2, betas=(0.9, 0.999), batch_size=128)
    hk.Trainer(model, x, settings=settings).fit()
    z = torch.zeros(1, 1)
    assert down.scale(z).unique().item() == pytest.approx(0.3, rel=0.05)


def test_a_fitted_scale_keeps_its_bounds() -> None:
    down = hk.ladder(1, DIGITS, observation_scale="fitted").links[0].down
    for raw, scale in ((-50.0, 0.001), (0.0, 0.5005), (50.0, 1.0)):
        down.raw_scale.data.fill_(raw)
        assert down.eval().scale(torch.zeros(2, *down.source.shape)).unique().item() == pytest.approx(scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.gauge": "standardised"}, "T_{z1|x} has a gauge: set model.gauge and model.max_scale to none"),
        ({"model.observation_scale": None}, "T_{x|z1} has none: set model.observation_scale to a number"),
    ],
)
def test_kernels_without_a_density_in_training_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        hk.Trainer(hk.build(override(config(), changes)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"objective": "relativistic"}, r"\[game\]"),
        ({"gradient_penalty": 1.0}, r"\[game\]"),
        ({"encoder_noise": 0.2}, "training.encoder_noise"),
        ({"latent_noise": 0.2}, "model.latent_noise"),
    ],
    ids=str,
)
def test_settings_of_the_game_are_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=f"{what} has no effect here: training.method = 'elbo' has no game"):
        config(**changes)


def test_half_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="sums log-densities"):
        config(precision="bf16")


def test_the_game_wants_a_discriminator() -> None:
    with pytest.raises(InputError, match="needs a discriminator"):
        hk.Trainer(hk.Model(density_ladder(1, DIGITS)))


def test_another_method_drops_what_belongs_to_the_game() -> None:
    changed = override(hk.presets.digits(), {"method": "elbo", "gauge": None, "observation_scale": 0.3})
    written = to_toml(changed)
    assert (changed.discriminator, changed.game, changed.labels) == (DiscriminatorSettings(), GameSettings(), None)
    assert Config.parse(tomllib.loads(written)) == changed
    assert hk.build(changed).discriminator is None
    with pytest.raises(ConfigError, match=r"\[discriminator\] has no effect here: training.method = 'elbo' has no"):
        override(changed, {"discriminator.width": 7})


def test_classes_on_top_train_too(tmp_path: Path) -> None:
    """Hard classes with a straight-through gradient: the held-out bound falls, and every parameter moves."""
    model = built(1, classes=10)
    before = [p.detach().clone() for p in model.hierarchy.parameters()]
    records: list[Record] = []
    trainer = hk.Trainer(model, "digits", out=tmp_path / "run", on_record=records.append)
    trainer.fit()
    assert all((p != old).any() for p, old in zip(model.hierarchy.parameters(), before, strict=True))
    assert records[-1].held_out_negative_elbo < records[1].held_out_negative_elbo
    assert [space.name for space in hk.load(tmp_path / "run").hierarchy.spaces] == ["x", "z1", "y"]
