"""Recovery of each latent from the decoder's own samples: closed forms, alarms, and where it is shown."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, gaussian, linear_gaussian
from torch import Tensor, nn

import halikit as hk
from halikit.analysis.health import Health, examine
from halikit.analysis.recovery import LEAST, decoder_use, recovery
from halikit.config import Config, override
from halikit.kernels import Gaussian
from halikit.runs.record import Record

ENOUGH = 40_000


def spaces(*sizes: int) -> list[hk.Space]:
    return [hk.Space(f"z{level}" if level else "x", (size,)) for level, size in enumerate(sizes)]


def exact(*sizes: int) -> tuple[hk.Hierarchy, list[Gaussian]]:
    """A random linear-Gaussian decoder, its exact posteriors as the encoder, and the measures of ``x, z1, …``."""
    places = spaces(*sizes)
    measures = [Gaussian(torch.zeros(sizes[-1]).double(), torch.eye(sizes[-1]).double())]
    links: list[hk.Link] = []
    for lower, upper in reversed(list(zip(places, places[1:], strict=False))):
        down = linear_gaussian(upper, lower, torch.float64)
        links.insert(0, hk.Link(down.posterior(measures[0]), down))
        measures.insert(0, down.marginal(measures[0]))
    return hk.Hierarchy(links).double().eval(), measures


def explained(posterior: Tensor, prior: Tensor) -> float:
    return (1 - posterior.diagonal() / prior.diagonal()).mean().item()


class Constant(nn.Module):
    """Says the same whatever it is given."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, given: Tensor) -> Tensor:
        return self.values.expand(len(given), -1)


class Times(nn.Module):
    """``w v``."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, given: Tensor) -> Tensor:
        return self.weight * given


def chain(*, lost: str | None = None, size: int = 3, weight: float = 0.95) -> hk.Hierarchy:
    """Two levels ``z_l = w z_{l−1} + √(1 − w²) ε`` and the same back; one way past ``z2`` may be cut off."""
    x, z1, z2 = spaces(size, size, size)
    scale = math.sqrt(1 - weight**2)

    def kernel(source: hk.Space, target: hk.Space, w: float = weight) -> hk.GaussianKernel:
        return hk.GaussianKernel(source, target, Times(w), scale=scale if w else 1.0)

    up = kernel(z1, z2, 0.0 if lost in ("encoder", "both") else weight)
    down = kernel(z2, z1, 0.0 if lost in ("decoder", "both") else weight)
    return hk.Hierarchy([hk.Link(kernel(x, z1), kernel(z1, x)), hk.Link(up, down)]).eval()


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 3), (5, 4, 3), (6, 4, 3, 2)])
def test_of_exact_posteriors_it_is_what_they_explain(sizes):
    """``1 − Var(z_l|z_{l−1}) / Var(z_l)`` in one step, and with ``Var(z_l|x)`` from ``x``, to 0.01."""
    h, measures = exact(*sizes)
    found = recovery(h, ENOUGH)
    assert found.num_samples == ENOUGH
    assert len(found.in_one_step) == len(found.from_x) == len(h)
    down = None
    for level, link in enumerate(h, 1):
        one_step = explained(link.up.covariance, measures[level].covariance)
        assert found.in_one_step[level - 1] == pytest.approx(one_step, abs=0.01)
        down = link.down if down is None else down @ link.down
        from_x = explained(down.posterior(measures[level]).covariance, measures[level].covariance)
        assert found.from_x[level - 1] == pytest.approx(from_x, abs=0.01)
    assert found.from_x[0] == pytest.approx(found.in_one_step[0])
    assert all(a <= b + 0.01 for a, b in zip(found.from_x, found.in_one_step, strict=True))


def test_it_is_averaged_over_elements_and_not_over_squares():
    """One element all found, of great variance, and one not at all: a half."""
    x, z = spaces(2, 2)
    down = hk.LinearGaussianKernel(z, x, torch.eye(2), covariance=torch.tensor([[1e-8, 0.0], [0.0, 1e-8]]))
    up = hk.LinearGaussianKernel(x, z, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    prior = dist.Normal(torch.tensor([0.0, 0.0]), torch.tensor([100.0, 1.0])).to_event(1)
    assert recovery(hk.Hierarchy([hk.Link(up, down)], prior).eval()).in_one_step[0] == pytest.approx(0.5, abs=0.01)


def test_a_wrong_guess_costs_more_than_none():
    h = chain()
    with torch.no_grad():
        h.links[1].up.network.weight.neg_()
    # The guess is off by 2 w² z, and what is left: E(z + w(w z + ε))² = 1 + 3 w².
    assert recovery(h, ENOUGH).in_one_step[1] == pytest.approx(-3 * 0.95**2, abs=0.05)


def test_averaged_over_samples_however_many():
    """Chunks make no difference, and samples are those of torch's generator."""
    h, _ = exact(4, 3)
    torch.manual_seed(3)
    found = recovery(h, 700)
    torch.manual_seed(3)
    assert recovery(h, 700) == found
    torch.manual_seed(3)
    parts = [h.sample_states(n) for n in (250, 250, 200)]
    x, z = (torch.cat([part[name] for part in parts]) for name in ("x", "z1"))
    r2 = 1 - (z - h.links[0].up.mean(x)).square().mean(0) / z.var(0, correction=0)
    assert found.in_one_step[0] == pytest.approx(r2.mean().item())


def test_constant_elements_are_left_out():
    x, z = spaces(2, 3)
    scales = torch.tensor([1.0, 1e-4, 1.0])
    down = hk.LinearGaussianKernel(
        z, x, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), covariance=0.25 * torch.eye(2)
    )
    up = hk.LinearGaussianKernel(
        x, z, torch.tensor([[0.8, 0.0], [0.0, 0.0], [0.0, 0.8]]), torch.tensor([0.0, 5.0, 0.0])
    )
    found = recovery(hk.Hierarchy([hk.Link(up, down)], dist.Normal(torch.zeros(3), scales).to_event(1)).eval(), ENOUGH)
    assert found.in_one_step[0] == pytest.approx(0.8, abs=0.01)


def test_where_no_element_varies_there_is_nothing_to_recover():
    x, z1, z2 = spaces(3, 2, 2)
    silent = hk.DeterministicKernel(z2, z1, Constant(0.3, -0.2))
    h = hk.Hierarchy([hk.Link(gaussian(x, z1), gaussian(z1, x)), hk.Link(gaussian(z1, z2), silent)]).eval()
    found = recovery(h, 500)
    assert math.isnan(found.in_one_step[0])
    assert math.isfinite(found.in_one_step[1])


@pytest.mark.parametrize("kind", ["one hot", "index"])
def test_of_classes_it_is_the_share_recovered(kind):
    """Three classes, of which ``x`` says so much that the likeliest is right in a known share."""
    x, y = hk.Space("x", (3,)), hk.Space("z1", (3,) if kind == "one hot" else ())
    places = 2 * torch.eye(3)

    class OfClass(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return given @ places if given.dim() > 1 else places[given]

    uniform = torch.full((3,), 1 / 3)
    prior = dist.OneHotCategorical(uniform) if kind == "one hot" else dist.Categorical(uniform)
    encoder = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        encoder.weight.copy_(2 * torch.eye(3))
    link = hk.Link(hk.CategoricalKernel(x, y, encoder), hk.GaussianKernel(y, x, OfClass(), scale=1.0))
    found = recovery(hk.Hierarchy([link], prior).eval(), ENOUGH)
    # Right where 2 + ε_1 is above ε_2 and ε_3.
    t = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    share = torch.trapezoid(normal.log_prob(t).exp() * normal.cdf(t + 2).square(), t)
    assert found.in_one_step[0] == found.from_x[0] == pytest.approx(float(share), abs=0.01)


def test_classes_are_guessed_by_chance_where_nothing_is_known():
    x, y = hk.Space("x", (3,)), hk.Space("z1", (4,))
    link = hk.Link(hk.CategoricalKernel(x, y, Network(x, 4)), gaussian(y, x))
    with torch.no_grad():
        link.down.network.layers[-1].weight.zero_()
    prior = dist.OneHotCategorical(torch.full((4,), 0.25))
    h = hk.Hierarchy([link], prior).eval()
    assert recovery(h, ENOUGH).in_one_step[0] == pytest.approx(0.25, abs=0.02)
    assert decoder_use(h)[0] == pytest.approx(1)


# --- what a latent is worth to the decoder ----------------------------------------------------------------------------


def test_a_decoder_that_ignores_a_level_leaves_nothing_to_recover():
    """And the best that its encoder can do is to guess."""
    h = chain(lost="both")
    found, used = recovery(h, ENOUGH), decoder_use(h, ENOUGH)
    assert found.in_one_step[1] == pytest.approx(0, abs=0.01)
    assert used[1] == pytest.approx(1)
    assert found.in_one_step[0] == pytest.approx(0.95**2, abs=0.01)
    assert used[0] > 2


def test_an_encoder_that_does_not_find_a_level_leaves_it_to_the_decoder():
    h = chain(lost="encoder")
    assert recovery(h, ENOUGH).in_one_step[1] == pytest.approx(0, abs=0.01)
    assert decoder_use(h)[1] > 2


@pytest.mark.parametrize("weight", [0.3, 0.95])
def test_the_use_of_a_linear_decoder(weight):
    """Another's ``z`` is ``√(1 + 2 w² / σ²)`` times as far off, where ``σ² = 1 − w²``."""
    expected = math.sqrt(1 + 2 * weight**2 / (1 - weight**2))
    for used in decoder_use(chain(weight=weight), ENOUGH):
        assert used == pytest.approx(expected, rel=0.02)


def test_the_use_of_a_decoder_without_noise():
    """One that uses its latent uses it without bound; one that does not, not at all."""
    x, z = spaces(3, 2)
    used, ignored = nn.Linear(2, 3), Constant(0.1, 0.2, 0.3)
    for network, least, most in ((used, 1e6, math.inf), (ignored, 1.0, 1.0)):
        h = hk.Hierarchy([hk.Link(gaussian(x, z), hk.DeterministicKernel(z, x, network))]).eval()
        assert least <= decoder_use(h)[0] <= most


# --- alarms -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examined() -> dict[str, Health]:
    torch.manual_seed(1)
    return {way: examine(chain(lost=way), torch.randn(600, 3)) for way in ("both", "encoder")}


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("both", "the decoder ignores it: another sample's z2 leads as near to the state below"),
        ("encoder", "the decoder uses it, and the encoder does not find it"),
    ],
)
def test_an_alarm_says_who_loses_a_level(way, why, examined):
    found = examined[way]
    lower, upper = found.levels
    assert (lower.name, upper.name) == ("z1", "z2")
    said = [alarm for alarm in found.alarms if "is not recovered" in alarm]
    assert said == [f"z2 is not recovered from the decoder's own samples (R² {upper.recovery:.2f}): {why}"]
    assert lower.recovery == lower.recovery_from_x == pytest.approx(0.95**2, abs=0.02)
    assert upper.recovery == pytest.approx(0, abs=0.02)
    used = math.sqrt(1 + 2 * 0.95**2 / (1 - 0.95**2))
    assert lower.decoder_use == pytest.approx(used, rel=0.1)
    assert upper.decoder_use == pytest.approx(1 if way == "both" else used, rel=0.1)


# --- in training ------------------------------------------------------------------------------------------------------


def playing(h: hk.Hierarchy, said: list[str], **settings: object) -> list[Record]:
    """Train without moving, and give the records."""
    records: list[Record] = []
    d = hk.build_discriminator(h, width=8)
    config = override(Config(), {"batch_size": 16, "optimiser.learning_rate": 1e-9, **settings})
    hk.Trainer(
        hk.Model(h, d), torch.randn(200, 3), settings=config, on_record=records.append, on_notice=said.append
    ).fit()
    return records


def test_the_end_of_training_warns_of_levels_that_are_lost():
    said: list[str] = []
    records = playing(chain(lost="encoder"), said, steps=6, evaluate_every=2)
    assert [len(record.recovery) for record in records] == [2, 2, 2]
    of_gauge, notice = said
    assert of_gauge.startswith("nothing fixes location and scale of z1")
    value = records[-1].recovery[1]
    assert value < LEAST == 0.5
    assert notice.startswith(f"the encoder does not recover z2 ({value:.2f}) from the decoder's own samples")
    assert "halikit evaluate health RUN" in notice


def test_it_does_not_where_all_are_recovered():
    said: list[str] = []
    records = playing(chain(), said, steps=4, evaluate_every=4)
    assert min(records[-1].recovery) > 0.8
    assert all("recover" not in notice for notice in said)


def test_records_have_it_of_averaged_weights_in_evaluation_mode():
    torch.manual_seed(0)
    x, z1, z2 = spaces(3, 3, 2)
    options = {"gauge": "variance_preserving", "max_scale": 0.5}
    h = hk.Hierarchy(
        [
            hk.Link(gaussian(x, z1, **options), gaussian(z1, x)),
            hk.Link(gaussian(z1, z2, **options), gaussian(z2, z1, **options)),
        ]
    )
    records: list[Record] = []
    changes = {"batch_size": 16, "steps": 40, "evaluate_every": 40, "ema_decay": 0.99, "optimiser.learning_rate": 0.05}
    settings = override(Config(), changes)
    model = hk.Model(h, hk.build_discriminator(h, width=8))
    trainer = hk.Trainer(
        model, torch.randn(200, 3), settings=settings, on_record=records.append, on_notice=lambda _: None
    )
    trainer.fit()
    record = records[-1]
    averaged, raw = (recovery(each, ENOUGH) for each in (trainer.averaged, model.hierarchy.eval()))
    for name, measured in (("in_one_step", record.recovery), ("from_x", record.recovery_from_x)):
        for here, wanted, other in zip(measured, getattr(averaged, name), getattr(raw, name), strict=True):
            assert abs(here - wanted) < 0.2 < 2 * abs(wanted - other)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recovery") / "run"
    torch.manual_seed(0)
    changes = {"levels": 2, "data_shape": (1, 8, 8), "hidden": 16, "model.depth": 1, "discriminator.width": 16}
    changes |= {"steps": 4, "batch_size": 16, "log_every": 1, "evaluate_every": 4}
    config = override(Config(), changes)
    hk.Trainer(hk.build(config), "digits", out=path, on_notice=lambda _: None).fit()
    return path


def test_metrics_have_its_columns(run):
    with (run / "metrics.csv").open() as file:
        *others, last = csv.DictReader(file)
    columns = [name for name in last if name.startswith("recovery")]
    assert columns == ["recovery_z1", "recovery_z2", "recovery_from_x_z1", "recovery_from_x_z2"]
    assert all(float(last[name]) <= 1 for name in columns)
    assert last["recovery_z1"] == last["recovery_from_x_z1"]
    assert all(row[name] == "" for row in others for name in columns)


def told(run: Path, name: str) -> list[str]:
    """What a command has said to people."""
    return json.loads((run / "figures" / f"{name}.json").read_text())["lines"]


@pytest.mark.parametrize("measure", ["labels", "recovery"])
def test_evaluating_gives_both_lists(run, measure, halikit):
    said = json.loads(halikit("evaluate", measure, run, "-n", "2000", "--json"))
    h = hk.load(run).hierarchy
    found = recovery(h, ENOUGH)
    assert said["recovery"] == pytest.approx(found.in_one_step, abs=0.1)
    assert said["recovery_from_x"] == pytest.approx(found.from_x, abs=0.1)
    lines = told(run, f"evaluate-{measure}")
    for name, values in zip(("z1", "z2"), zip(said["recovery"], said["recovery_from_x"], strict=True), strict=True):
        assert f"  {name}  {values[0]:.3f}  {values[1]:.3f}" in lines


def test_health_gives_it_for_each_level(run, halikit):
    said = json.loads(halikit("evaluate", "health", run, "--json"))
    assert [level["name"] for level in said["levels"]] == ["z1", "z2"]
    for level in said["levels"]:
        assert level["recovery"] <= 1
        assert level["recovery_from_x"] <= 1
        assert level["decoder_use"] >= 0.9
        line = f"recovered from samples     {level['recovery']:.3f} in one step, {level['recovery_from_x']:.3f} from x"
        assert any(line in each for each in told(run, "evaluate-health"))


def test_the_report_shows_it(run, halikit):
    halikit("report", run)
    page = (run / "report.html").read_text("utf-8")
    assert "<th>recovered in one step</th>" in page
    assert "<th>recovered from x</th>" in page
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    for name in ("z1", "z2"):
        cells = [f"{float(last[f'{kind}_{name}']):.4g}" for kind in ("recovery", "recovery_from_x")]
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page
    assert "the decoder’s own samples" in page
