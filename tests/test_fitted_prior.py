"""A prior that is fitted after training: ``hk.priors.fit`` and ``halikit fit-prior``."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Network, Shell, gaussian, tiny_ladder

import halikit as hk
from halikit.analysis.fitted_prior import log_density, top_draws
from halikit.analysis.sampling import sample
from halikit.config import override
from halikit.errors import InputError

X, Z = hk.Space("x", (3,)), hk.Space("z1", (2,))


def clusters(n: int = 600) -> torch.Tensor:
    """Two clusters at ±3 in the first coordinate, of unequal weights."""
    signs = torch.where(torch.rand(n) < 0.25, -1.0, 1.0)
    return torch.randn(n, 3) * 0.3 + torch.stack([3 * signs, 0 * signs, 0 * signs], 1)


def copying_model() -> hk.Model:
    """An encoder that copies the first two coordinates with noise of 0.1, and a decoder that copies them back."""
    up = hk.LinearGaussianKernel(X, Z, torch.eye(2, 3), torch.zeros(2), 0.01 * torch.eye(2))
    down = hk.LinearGaussianKernel(Z, X, torch.eye(3, 2), torch.zeros(3), 0.01 * torch.eye(3))
    return hk.Model(hk.Hierarchy([hk.Link(up, down)]))


@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_the_fit_finds_the_distribution_of_the_encodings(kind: str) -> None:
    model, x = copying_model(), clusters(200 if kind == "flow" else 600)
    before = copy.deepcopy(model.hierarchy.state_dict())
    options = {"layers": 4} if kind == "flow" else {}
    fitted = hk.priors.fit(model, x, kind, **options)
    # The given model has not changed, and shares nothing with the fitted one.
    assert isinstance(model.hierarchy.prior, hk.priors.StandardNormal)
    assert all(torch.equal(before[name], value) for name, value in model.hierarchy.state_dict().items())
    addresses = {p.data_ptr() for p in model.hierarchy.parameters()}
    assert not addresses & {p.data_ptr() for p in fitted.hierarchy.parameters()}
    held_out = hk.data.from_tensor(clusters())
    z = top_draws(fitted.hierarchy, held_out.train)[:, 0]
    # The entropy of the true distribution: that of a sign, and of two Gaussians of variance 0.09 + 0.01.
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75) + math.log(2 * math.pi * math.e * 0.1)
    found = -log_density(fitted.hierarchy.prior, z).mean()
    assert entropy - 0.15 < found < entropy + (0.15 if kind == "mixture" else 0.4)
    assert -log_density(model.hierarchy.prior, z).mean() > entropy + 3
    drawn = sample(fitted.hierarchy, 2000)
    assert (drawn[:, 0] < 0).double().mean() == pytest.approx(0.25, abs=0.06)


def test_the_number_of_components_is_chosen_or_given() -> None:
    model, x = copying_model(), clusters()
    # One is far too few, and with tens the held-out likelihood falls.
    assert 2 <= len(hk.priors.fit(model, x).hierarchy.prior.logits) <= 8
    assert len(hk.priors.fit(model, x, components=5).hierarchy.prior.logits) == 5


def test_the_same_seed_gives_the_same_prior() -> None:
    model, x = copying_model(), clusters(200)
    a, b, c = (hk.priors.fit(model, x, components=3, seed=seed).hierarchy.prior.locs for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_fitted_model_is_saved_and_loaded_by_its_config(tmp_path: Path) -> None:
    config = override(hk.Config(), {"levels": 1, "data_shape": (3,), "widths": (2,), "model.hidden": 8})
    config = override(config, {"prior": "flow", "prior_layers": 3})
    fitted = hk.priors.fit(hk.build(config), clusters(200), components=3)
    assert (fitted.config.model.prior, fitted.config.model.prior_components) == ("mixture", 3)
    hk.model.save_model(tmp_path / "model.safetensors", fitted, fitted.hierarchy, config=fitted.config, step=0)
    loaded = hk.load(tmp_path).hierarchy.prior
    assert torch.equal(loaded.locs, fitted.hierarchy.prior.locs)


def with_top(support: str | None, up: type[hk.Kernel] | None = None) -> hk.Model:
    y = hk.Space("y", (3,), support)
    kernel = up(X, y, Network(X, 3)) if up else gaussian(X, y)
    return hk.Model(hk.Hierarchy([hk.Link(kernel, gaussian(y, X))]))


@pytest.mark.parametrize(
    ("model", "options", "complaint"),
    [
        (lambda: with_top(None, hk.CategoricalKernel), {}, "y \\(3\\), the top of this model, is discrete"),
        (lambda: with_top("bits", hk.BernoulliKernel), {}, "discrete"),
        (lambda: with_top("unit"), {}, "bounded"),
        (lambda: with_top("real"), {"kind": "vae"}, "'mixture' or a 'flow'"),
        (lambda: with_top("real"), {"kind": "flow", "components": 3}, "a mixture has components"),
        (lambda: hk.Model(tiny_ladder(1, (5,))), {}, "data of shape"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(model, options, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        hk.priors.fit(model(), clusters(100), **options)
    assert "\n" not in str(error.value)


def test_densities_outside_the_support_are_minus_infinity() -> None:
    z = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    expected = torch.tensor([-2 * math.log(2 * math.sqrt(3)), -math.inf])
    torch.testing.assert_close(log_density(hk.priors.Uniform(Z), z), expected)


def test_fit_prior_makes_a_run_that_other_commands_take(halikit: Shell, tmp_path: Path) -> None:
    out = tmp_path / "mixture"
    said = json.loads(halikit("fit-prior", "digits", "--components", 4, "--out", out, "--json"))
    assert (said["kind"], said["components"], said["layers"]) == ("mixture", 4, None)
    difference = said["log_prob_after"]["value"] - said["log_prob_before"]["value"]
    assert said["gain"]["value"] == pytest.approx(difference)
    assert said["gain"]["kind"] == "estimate"
    assert said["gain"]["standard_error"] > 0
    assert 0 < said["samples_after"]["coverage"]["value"] <= 1
    assert 'prior = "mixture"' in (out / "config.toml").read_text()
    assert "The fitted prior" in (out / "report.html").read_text("utf-8")
    for weights in ("averaged", "raw"):
        assert len(hk.load(out, weights=weights).hierarchy.prior.logits) == 4
    assert halikit("sample", out, "--truncation", 1)
    assert halikit("inspect", out)
    # Neither overwritten nor trained on.
    assert "not empty" in halikit("fit-prior", "digits", "--out", out, code=2)
    assert "no good checkpoint" in halikit("train", "--resume", "--out", out, code=2)


def test_raw_weights_get_a_prior_of_their_own(halikit: Shell, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "flow"
    halikit("--quiet", "train", "--levels", 1, "--steps", 8, "--set", "model.hidden=8", "--out", source)
    text = halikit("fit-prior", source, "--components", 2, "--out", out)
    assert "components" in text.splitlines()[0]
    averaged, raw = (hk.load(out, weights=weights).hierarchy for weights in ("averaged", "raw"))
    assert not torch.equal(averaged.prior.locs, raw.prior.locs)
    assert (out / "metrics.csv").read_text() == (source / "metrics.csv").read_text()
    assert halikit("evaluate", "samples", out, "--json")


def test_a_conditional_model_is_encoded_with_the_labels_of_the_data(halikit: Shell, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    options = ["--set", "model.conditional=labels", "--set", "model.context_size=10", "--set", "model.hidden=8"]
    halikit("--quiet", "train", "--levels", 1, "--steps", 4, *options, "--out", source)
    said = json.loads(halikit("fit-prior", source, "--components", 2, "--out", out, "--json"))
    assert said["log_prob_after"]["value"] > -30
    assert halikit("sample", out, "--class", 3)
