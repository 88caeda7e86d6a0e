"""What training says of kernels when it is set up, and models in double precision."""

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, UniformKernel, configured, gaussian

import halikit as hk


class Detached(UniformKernel):
    def sample(self, given, *, generator=None):
        return super().sample(given, generator=generator).detach()


def stack(*kinds):
    """A hierarchy of links of these kinds of kernels, each between vectors."""
    spaces = [hk.Space("x", (3,)), *(hk.Space(f"z{level}", (2,)) for level in range(1, len(kinds) + 1))]
    return hk.Hierarchy(
        [hk.Link(kind(a, b), gaussian(b, a)) for kind, a, b in zip(kinds, spaces, spaces[1:], strict=False)]
    )


def told_of(hierarchy, **settings):
    told: list[str] = []
    model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=4))
    hk.Trainer(model, settings=configured(sleep_weights=0, **settings), on_notice=told.append)
    return told


def test_draws_without_a_gradient_are_reported_once():
    told = told_of(stack(Detached))
    assert len(told) == 1
    assert told[0].startswith("draws of T_{z1|x} (Detached) pass no gradient: the game trains neither it nor")
    assert "straight-through" in told[0]
    assert told_of(stack(UniformKernel)) == []


def test_a_latent_between_two_others_without_a_gauge_is_reported():
    told = told_of(stack(UniformKernel, gaussian))
    assert told == [
        "nothing fixes location and scale of z1 in T_{z1|x} and T_{z1|z2}: levels drift apart in training and do not "
        "couple. Wrap the kernels, as hk.gauged(kernel, 'standardised')"
    ]

    def with_gauge(source, target):
        return hk.gauged(gaussian(source, target, max_scale=0.5), "variance_preserving")

    assert "in T_{z1|z2}:" in told_of(stack(with_gauge, with_gauge))[0]
    x, z1, z2 = hk.Space("x", (3,)), hk.Space("z1", (2,)), hk.Space("z2", (2,))
    fixed = hk.Hierarchy([hk.Link(with_gauge(x, z1), gaussian(z1, x)), hk.Link(gaussian(z1, z2), with_gauge(z2, z1))])
    assert told_of(fixed) == []
    bits = hk.Hierarchy(
        [
            hk.Link(hk.BernoulliKernel(x, z1, Network(x, 2), temperature=0.5), gaussian(z1, x)),
            hk.Link(gaussian(z1, z2), hk.BernoulliKernel(z2, z1, Network(z2, 2), temperature=0.5)),
        ]
    )
    assert told_of(bits) == []


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


SMALL = {"batch_size": 32, "steps": 3, "evaluate_every": 3, "model__hidden": 8, "width": 8, "spec": "digits"}


def trained(**changes):
    config = configured(data_shape=(1, 8, 8), levels=2, **SMALL | changes)
    trainer = hk.Trainer(hk.build(config), "digits", on_notice=lambda notice: None)
    trainer.fit()
    return trainer


def test_a_model_trains_in_double_precision():
    trainer = trained(precision="64")
    assert {p.dtype for p in trainer.model.hierarchy.parameters()} == {torch.float64}
    assert {p.dtype for p in trainer.model.discriminator.parameters()} == {torch.float64}
    assert trainer.averaged.sample(2).dtype == torch.float64


@pytest.mark.parametrize("changes", [{}, {"games": "pairwise", "gradient_penalty": 0.1, "accumulate": 2}], ids=str)
def test_training_works_where_double_precision_is_the_default(double_by_default, changes):
    assert trained(**changes).averaged.sample(2).dtype == torch.float64


def test_a_run_is_used_where_double_precision_is_the_default(double_by_default, halikit, tmp_path):
    said = halikit("train", "--levels", 1, "--steps", 2, "--batch-size", 32, "--out", tmp_path / "run", "--quiet")
    assert "level 1" in said
    for command in (["reconstruct"], ["sample", "-n", 4], ["evaluate", "reconstruction", "-n", 20]):
        halikit(*command, tmp_path / "run")


def test_a_kernel_of_a_network_in_double_precision_is_a_model_in_double_precision():
    hierarchy = stack(gaussian).double()
    model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=4).double())
    trainer = hk.Trainer(model, torch.randn(64, 3), settings=configured(steps=2, batch_size=16))
    trainer.fit()
    assert trainer.averaged.sample(2).dtype == torch.float64


class Proportions(hk.DensityKernel):
    """Draws on the simplex, under a prior on all of R^d."""

    def __init__(self, source, target):
        super().__init__(source, target)
        self.network = Network(source, target.size)

    def forward(self, given):
        return dist.Dirichlet(self.network(given).exp())


def test_a_level_whose_samples_have_no_density_has_no_sleep_phase():
    hierarchy, told = stack(Proportions), []
    model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=4))
    trainer = hk.Trainer(model, settings=configured(steps=2), on_notice=told.append)
    assert told == [
        "no sleep phase at z1: samples of the decoder lie where T_{z1|x} has no density; give the hierarchy a prior, "
        "or kernels, on the support of its draws"
    ]
    assert trainer.config.game.sleep_weights == (0.0,)
    assert trainer.step(torch.randn(8, 3))["g_loss"].isfinite()
