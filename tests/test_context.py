"""Models that are given a context: classes or attributes beside each datum, in training, analyses and commands."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conftest import Shell, configured, without_machine_code
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import one_hot

import halikit as hk
from halikit import data
from halikit.algorithm import add_both_gradients, add_discriminator_gradients, add_generator_gradients, play
from halikit.analysis.conditioning import class_agreement
from halikit.analysis.features import encoded
from halikit.analysis.fitted_prior import top_draws
from halikit.analysis.inference import Inference
from halikit.analysis.interpolation import interpolate
from halikit.analysis.labels import label_scores
from halikit.analysis.reconstruction import fit_observation_scale, js_bound
from halikit.analysis.recovery import recovery
from halikit.analysis.sampling import sample
from halikit.analysis.svm import encoder_features
from halikit.config import override
from halikit.data import DataSet, Split
from halikit.errors import InputError
from halikit.networks.context import ContextEmbedding
from halikit.runs.context import Asked
from halikit.runs.export import export
from halikit.runs.run import Run
from halikit.training.sleep import sleep_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore:the encoder does not recover"),
    pytest.mark.filterwarnings("ignore:samples have collapsed"),
]

SMALL = {"model__hidden": 8, "model__depth": 1, "discriminator__width": 16, "training__batch_size": 16}
GIVEN = {"model__conditional": "labels", "model__context_size": 10, "model__data_shape": (1, 8, 8)}


def small(levels: int = 2, **changes: object) -> hk.Config:
    return configured(model__levels=levels, **{**SMALL, **GIVEN, "hardware__device": "cpu", **changes})


def parameters_changed(before: dict[str, Tensor], module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if not torch.equal(before[name], p)]


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "shape", "options"),
    [
        (3, (1, 8, 8), {}),
        (2, (5,), {"skips": False, "observation_scale": "fitted"}),
        (3, (3, 32, 32), {"hidden": 4, "family": "conv"}),
        (2, (1, 32, 32), {"family": "mixed"}),
        (2, (2, 32), {"family": "conv", "hidden": 4}),
    ],
    ids=["dense", "vectors", "conv", "mixed", "sequences"],
)
def test_every_network_of_the_ladder_reads_the_context_of_each_row(levels, shape, options):
    torch.manual_seed(0)
    h = hk.ladder(levels, shape, context=4, **{"hidden": 8, "depth": 1, **options}).eval()
    # Linear skips start with networks whose last layer is zero.
    for p in h.parameters():
        nn.init.normal_(p, std=0.3)
    assert all(kernel.takes_context for link in h for kernel in (link.up, link.down))
    x, c = torch.randn(3, *shape), torch.tensor([0, 3, 1])
    for kernel in (kernel for link in h for kernel in (link.up, link.down)):
        given = torch.randn(3, *kernel.source.shape)
        together = kernel.mean(given, context=c)
        for i in range(3):
            torch.testing.assert_close(together[i], kernel.mean(given[i : i + 1], context=c[i : i + 1])[0])
        torch.testing.assert_close(together, kernel.mean(given, context=one_hot(c, 4).float()))
        assert not torch.allclose(together, kernel.mean(given, context=c.flip(0)))
    with pytest.raises(ValueError, match="takes a context, and none was given"):
        h.encode(x)
    assert h.sample(3, context=c).shape == x.shape


def test_a_linear_skip_starts_as_the_same_map_for_every_context():
    up = hk.ladder(2, (1, 8, 8), context=4).eval().links[1].up
    z = torch.randn(2, up.source.size)
    torch.testing.assert_close(up.mean(z, context=torch.tensor([0])), up.mean(z, context=torch.tensor([3])))


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (torch.tensor([0, 4]), "a class of the context lies between 0 and 3, got 0 to 4"),
        (torch.zeros(2, 3), r"\(n,\) int64 of 4 classes, or \(n, 4\) numbers; got \(2, 3\) of torch.float32"),
        (torch.zeros(2), r"got \(2,\) of torch.float32"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(context, words):
    with pytest.raises(InputError, match=words):
        ContextEmbedding(4)(context)


def test_settings_without_effect_or_sense_are_refused():
    for changes, words in (
        ({"model.context_size": 3}, "context_size = 3 has no effect here: it is for model.conditional"),
        ({"model.family": "paper", "model.conditional": "labels"}, "the paper's networks are those of Table 4"),
        ({"model.conditional": "labels", "labels.number": 10}, "a model either is given classes or finds them"),
        ({"model.conditional": "labels", "model.classes": 10}, "a model either is given classes or finds them"),
    ):
        with pytest.raises(InputError, match=words):
            override(hk.Config(), changes)
    with pytest.raises(InputError, match=r"model\.context_size is not set"):
        hk.build(small(model__context_size=None))


# --- training ---------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """A discriminator that finds in the first element of x the class that is among the states."""

    takes_context = True

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rows = nn.Linear(3, 1), 0

    def forward(self, states: dict[str, Tensor]) -> Tensor:
        x, c = states["x"], states["context"]
        assert len(x) == len(c)
        if len(x) > 8:  # not the trials before training
            half = len(x) // 2
            torch.testing.assert_close(x[:half, 0], c[:half].float())
            self.rows += half
        return self.layer(x)


class Centred(hk.DensityKernel):
    """Draws around a linear map of what is given and of the class."""

    takes_context = True

    def __init__(self, source: hk.Space, target: hk.Space) -> None:
        super().__init__(source, target)
        self.layer = nn.Linear(source.size + 1, target.size)

    def forward(self, given: Tensor) -> dist.TorchDistribution:
        both = torch.cat([given, self.context[:, None].to(given.dtype)], 1)
        return dist.Normal(self.layer(both), 0.1).to_event(1)


def own_model() -> hk.Model:
    torch.manual_seed(0)
    x, z = hk.Space("x", (3,)), hk.Space("z1", (2,))
    return hk.Model(hk.Hierarchy([hk.Link(Centred(x, z), Centred(z, x))]), Told())


def labelled_vectors(n: int = 64, classes: int = 4) -> DataSet:
    labels = torch.arange(n) % classes
    x = torch.randn(n, 3)
    x[:, 0] = labels.float()
    part = Split(x, labels)
    return DataSet("tensor", (3,), tuple("abcd"[:classes]), part, None, part)


@pytest.mark.parametrize("changes", [{}, {"hardware__accumulate": 2, "game__gradient_penalty": 0.1}])
def test_the_trainer_gives_kernels_discriminator_and_losses_the_labels_of_the_batch(changes):
    model, seen = own_model(), []

    def looks(step: hk.training.StepContext) -> Tensor:
        torch.testing.assert_close(step.encoder_states["x"][:, 0], step.context.float())
        seen.append(len(step.context))
        return step.encoder_states["z1"].square().mean()

    settings = configured(training__batch_size=32, hardware__device="cpu", **changes)

    def looks_unused(step: hk.training.StepContext) -> Tensor:
        seen.append(len(step.context))
        return step.hierarchy.links[0].up.layer.weight.square().sum()

    losses = [hk.ExtraLoss(looks, "encoder"), hk.ExtraLoss(looks_unused, "encoder", samples="unused")]
    before = {name: p.clone() for name, p in model.hierarchy.named_parameters()}
    trainer = hk.Trainer(model, labelled_vectors(), settings=settings, extra_losses=losses)
    trainer.fit(3)
    assert sum(seen) == 2 * 3 * 32
    assert model.discriminator.module.rows >= 3 * 32
    assert len(parameters_changed(before, model.hierarchy)) == len(before)


def test_a_step_takes_labels_or_any_context_and_is_refused_without():
    model, batch = own_model(), labelled_vectors().train
    trainer = hk.Trainer(model)
    trainer.step(batch.images, batch.labels)
    trainer.step(batch.images, context=batch.labels)
    assert trainer.method.single_pass  # found at the first step
    with pytest.raises(InputError, match="the model takes a context with 64 rows, one for each datum; got none"):
        trainer.step(batch.images)
    with pytest.raises(InputError, match=r"got one of \(3,\)"):
        trainer.step(batch.images, context=batch.labels[:3])


def test_data_without_labels_are_refused_before_the_first_step():
    with pytest.raises(
        InputError, match="the model takes a context, and tensor has neither labels nor attributes"
    ) as e:
        hk.Trainer(own_model(), torch.randn(64, 3))
    assert "\n" not in str(e.value)
    x = torch.randn(64, 1, 8, 8)
    with pytest.raises(InputError, match="tensor has no labels, which a conditional model reads"):
        hk.Trainer(
            hk.build(small()), DataSet("tensor", (1, 8, 8), (), Split(x, attributes=x[:, 0, 0] > 0), None, Split(x))
        )


def test_data_with_another_number_of_classes_are_refused_before_the_first_step():
    with pytest.raises(InputError, match="the model takes 7 labels, and digits has 10"):
        hk.Trainer(hk.build(small(model__context_size=7)), "digits")


def test_a_single_pass_gives_both_gradients_given_a_context():
    torch.manual_seed(0)
    model = hk.build(small(discriminator__dropout=0.0, discriminator__input_noise=0.0, training__batch_size=8))
    h, d, c = model.hierarchy.eval(), model.discriminator.eval(), torch.arange(8)
    x = torch.randn(8, 1, 8, 8)

    def gradients(single: bool) -> list[Tensor]:
        torch.manual_seed(1)
        for part in (h, d):
            part.zero_grad()
        step = play(h, d, x, context=c, single_pass=single)
        if single:
            add_both_gradients(step)
        else:
            add_discriminator_gradients(step, d)
            add_generator_gradients(step, h)
        return [p.grad for part in (h, d) for p in part.parameters()]

    names = [name for part in (h, d) for name, _ in part.named_parameters()]
    for name, one, two in zip(names, gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6, msg=name)
        # At the other levels linear skips start with networks whose last layer is zero.
        if "projection" in name or name == "links.0.up.network.embedding.weight":
            assert one.abs().sum() > 0


def test_the_sleep_phase_and_the_evidence_bound_read_the_context():
    torch.manual_seed(0)
    h, c = hk.build(small()).hierarchy, torch.arange(10)
    states = h.sample_states(10, context=c)
    right, wrong = (sleep_loss(h.conditioned(given).eval(), states, (1, 1)) for given in (c, c.flip(0)))
    assert right != wrong
    options = {"model__observation_scale": 0.5, "model__gauge": None, "model__max_scale": None}
    config = configured(model__levels=1, model__hidden=8, training__method="elbo", **GIVEN, **options)
    found = hk.Trainer(hk.build(config), "digits")
    found.fit(2)
    assert all(p.grad is not None for p in found.model.hierarchy.parameters() if p.requires_grad)


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_step_takes_the_context_as_one_more_input(monkeypatch):
    graphs = without_machine_code(monkeypatch)

    def trained(compile_: str | None) -> list[Tensor]:
        torch.manual_seed(0)
        trainer = hk.Trainer(hk.build(small(1, hardware__compile=compile_)), "digits")
        trainer.fit(2)
        return list(trainer.model.hierarchy.parameters())

    for a, b in zip(trained("default"), trained(None), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert graphs


# --- analyses: every row is given its own context, also where data are taken batch by batch --------------------------


class OfClass(nn.Module):
    """Adds the class to what is given, so that every state tells which class it was given."""

    takes_context = True

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, given: Tensor, context: Tensor) -> Tensor:
        mean = context.to(given.dtype)[:, None].expand(-1, self.outputs)
        return mean + 0 * given.sum(1, keepdim=True)


def telling() -> hk.Hierarchy:
    """Encoder and decoder give the class that they are given, in every element."""
    x, z1, z2 = hk.Space("x", (3,)), hk.Space("z1", (2,)), hk.Space("z2", (1,))
    make = hk.DeterministicKernel
    below = hk.Link(make(x, z1, OfClass(2)), make(z1, x, OfClass(3)))
    return hk.Hierarchy([below, hk.Link(make(z1, z2, OfClass(1)), make(z2, z1, OfClass(2)))]).eval()


def test_batches_are_given_the_contexts_of_their_rows():
    n = 23
    c = torch.arange(n) % 4
    part = Split(torch.randn(n, 3), c)
    h, expected = telling().conditioned(c), c.float()[:, None].expand(n, 3)
    inference = Inference(h, batch_size=7)
    assert torch.equal(inference.reconstruct(part.images), expected)
    assert torch.equal(inference.sample(n), expected)
    assert torch.equal(inference.encode(part.images)["z2"], expected[:, :1])
    assert torch.equal(Inference(telling(), batch_size=7).decode(torch.zeros(n, 2), 1, context=c)["x"], expected)
    for draw in (False, True):
        states = torch.cat([found["z2"] for _, found in encoded(h, part, batch_size=7, draw=draw)])
        assert torch.equal(states[:, 0], expected[:, 0])
    assert torch.equal(torch.from_numpy(encoder_features(h, part, [1])[:, 0]), expected[:, 0])
    assert torch.equal(top_draws(h, part, draws=2)[:, 1, 0], expected[:, 0])
    for options in ({}, {"noiseless": True}, {"truncation": 1.0}):
        assert torch.equal(sample(h, n, **options), expected)
    one = telling().conditioned(torch.tensor([2]))
    assert torch.equal(Inference(one, batch_size=7).sample(n), torch.full((n, 3), 2.0))


def test_measures_in_chunks_are_given_the_contexts_of_their_rows(monkeypatch):
    for module in ("labels", "recovery", "sampling"):
        monkeypatch.setattr(f"halikit.analysis.{module}._CHUNK", 7)
    c = torch.arange(40) % 4
    x = c.float()[:, None].expand(40, 3).contiguous()
    part = Split(x, c)
    known, h = DataSet("tensor", (3,), tuple("abcd"), part, None, part), telling()
    assert label_scores(h.conditioned(c), known, num_samples=21).kept == (1.0, 1.0)
    wrong = label_scores(h.conditioned((c + 1) % 4), known, num_samples=21)
    assert wrong.kept == (0.0, 0.0)
    found = recovery(h.conditioned(c[:30]), 30)
    # The top is drawn from the prior, which no class says anything of.
    assert found.in_one_step[0] == found.from_x[0] == 1.0
    monkeypatch.setattr("halikit.analysis.reconstruction.CHUNK", 32)
    assert fit_observation_scale(h.conditioned(c), x) < 1e-5
    assert fit_observation_scale(h.conditioned((c + 1) % 4), x) > 1
    assert class_agreement(h, known, per_class=9).mean.value == 1.0


def test_agreement_of_samples_with_the_class_asked_for_is_a_share():
    """A decoder that gives class 0 whatever it is asked has a share of one in four."""
    c = torch.arange(40) % 4
    part = Split(c.float()[:, None].expand(40, 3).contiguous(), c)
    known = DataSet("tensor", (3,), tuple("abcd"), part, None, part)
    h = telling()
    for link in h:
        for kernel in (link.up, link.down):
            kernel.network.forward = lambda given, context, k=kernel: torch.zeros(len(given), k.target.size)
    found = class_agreement(h, known, per_class=25)
    assert found.mean.value == 0.25
    assert found.mean.count == 100
    assert found.mean.standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 99))
    assert found.by_class == (1.0, 0.0, 0.0, 0.0)
    assert found.reference.value == 1.0


def test_the_bound_of_the_discriminator_and_interpolation_read_contexts():
    torch.manual_seed(0)
    model = hk.build(small())
    c, x = torch.arange(10), torch.randn(10, 1, 8, 8)
    (bound,) = js_bound(model.hierarchy.conditioned(c), model.discriminator, x)
    assert math.isfinite(bound.value)
    h = model.hierarchy.eval()
    ends = tuple(one_hot(each, 10).float() for each in (c, c.flip(0)))
    path = interpolate(h, x, x.flip(0), 1, [0.0, 1.0], contexts=ends)
    torch.testing.assert_close(path[:, 0], h.reconstruct(x, 1, context=c))
    torch.testing.assert_close(path[:, 1], h.reconstruct(x.flip(0), 1, context=c.flip(0)))


# --- runs and commands ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("context") / "run"
    torch.manual_seed(0)
    hk.Trainer(hk.build(small(training__steps=3)), "digits", out=out, on_notice=lambda _: None).fit()
    return out


@pytest.fixture(scope="module")
def attributed(tmp_path_factory) -> tuple[Path, Path]:
    """A run on images with the attributes Big and Round, and its data."""
    folder = tmp_path_factory.mktemp("attributes")
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 256, (80, 8, 8, 1), np.uint8), "attributes": rng.integers(0, 2, (80, 2))}
    np.savez(folder / "data.npz", **arrays, attribute_names=np.array(["Big", "Round"]))
    changes = {"model__conditional": "attributes", "model__context_size": 2}
    torch.manual_seed(0)
    config = small(training__steps=3, **changes, data__spec=f"array:{folder / 'data.npz'}")
    loaded = data.load(config.data.spec)
    hk.Trainer(hk.build(config), loaded, out=folder / "run", on_notice=lambda _: None).fit()
    return folder / "run", folder / "data.npz"


@pytest.mark.parametrize(
    "words",
    [
        "reconstruct --draws 2",
        "inpaint -n 2",
        "traverse --level 1 --number 1",
        "innovate --number 1",
        "innovate --towards 3 --away 8",
        "interpolate --pairs 1",
        "neighbours -n 2",
        "evaluate recovery -n 20",
        "evaluate samples -n 20",
        "evaluate reconstruction -n 12 --scale fit --draws 4",
        "evaluate likelihood -n 12 --scale 0.5 --draws 4",
    ],
)
def test_commands_give_each_datum_its_label_or_the_class_asked_for(run, halikit: Shell, tmp_path, words):
    command, _, rest = words.partition(" ")
    first = [command, *([rest.split()[0]] if command == "evaluate" else [])]
    options = rest.split()[len(first) - 1 :]
    said = [
        json.loads(halikit(*first, run, *options, *more, "--json", "--out", tmp_path / "out.png"))
        for more in ([], ["--class", "3"])
    ]
    assert [found["context"] for found in said] == ["labels of the data", "class 3"]


def test_samples_have_the_classes_asked_for_or_those_of_the_training_data(run, halikit: Shell, tmp_path):
    out = tmp_path / "s.npy"
    said = halikit("sample", run, "-n", "20", "--out", out)
    assert "the labels of the samples are drawn from the training data (seed 0)" in said
    drawn = np.load(out)
    halikit("sample", run, "-n", "20", "--out", out)
    assert np.array_equal(drawn, np.load(out))
    asked = "\n".join(
        halikit("sample", run, "-n", "20", "--class", c, "--out", out) + str(np.load(out)[0]) for c in "33"
    )
    assert "are drawn from" not in asked
    three = np.load(out)
    halikit("sample", run, "-n", "20", "--class", "4", "--out", out)
    assert not np.array_equal(three, np.load(out))
    opened = Run(run)
    contexts = opened.conditioned_at_random(4000, 0).context
    share = torch.bincount(contexts, minlength=10) / 4000
    expected = torch.bincount(opened.data.train.labels, minlength=10) / 1500
    # Four standard errors of a share of a tenth.
    assert (share - expected).abs().max() < 4 * math.sqrt(0.1 * 0.9 / 4000)
    assert not torch.equal(contexts, opened.conditioned_at_random(4000, 1).context)


def test_the_context_of_data_is_theirs_row_by_row(run, halikit: Shell, tmp_path):
    out = tmp_path / "f.safetensors"
    halikit("encode", run, "--part", "test", "--batch-size", "100", "--out", out)
    opened = Run(run)
    part = opened.data.test
    x = part.batch(torch.arange(len(part)))
    expected = opened.hierarchy.encode(x, context=part.labels)
    torch.testing.assert_close(load_file(out)["z2"], expected["z2"].detach(), rtol=1e-4, atol=1e-5)
    halikit("encode", run, "--part", "test", "--class", "7", "--out", out)
    all_seven = opened.hierarchy.encode(x, context=torch.tensor([7]))
    torch.testing.assert_close(load_file(out)["z2"], all_seven["z2"].detach(), rtol=1e-4, atol=1e-5)


def test_what_a_command_cannot_be_given_is_refused_in_one_line(run, halikit: Shell, tmp_path):
    unlabelled = tmp_path / "plain.npz"
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(unlabelled, images=images)
    other = tmp_path / "other.npz"
    np.savez(other, images=images, labels=np.arange(40) % 3)
    for words, expected in (
        (["sample", run, "--class", "12"], "there is no class '12'; there are 0, 1, 2"),
        (
            ["sample", "digits", "--class", "3"],
            "--class is for models of train --conditional on labels, and digits takes",
        ),
        (["sample", run, "--attribute", "Smiling=1"], "--attribute is for models of train --conditional on attributes"),
        (["sample", run, "--attribute", "Smiling"], "--attribute takes NAME=0 or NAME=1, got 'Smiling'"),
        (["reconstruct", run, "--data", f"array:{unlabelled}"], "has none; use --class"),
        (["reconstruct", run, "--data", f"array:{other}"], "takes 10 labels, and array:"),
        (["evaluate", "svm", run], "is given the labels of the data, so its features contain them"),
        (["evaluate", "classes", "digits"], "is given no classes: train it with --conditional"),
        (["evaluate", "classes", run, "--class", "3"], "this measure asks for every class"),
        (["export", run], "an exported file takes no context"),
        (["benchmark", "--preset", "digits_conditional"], "benchmark a model without model.conditional"),
        (
            ["train", "--conditional", "--labels", "20"],
            "--conditional gives the model the labels that --labels is to find",
        ),
        (["train", "--conditional", "--data", f"array:{unlabelled}"], "has neither labels nor attributes"),
    ):
        message = halikit(*words, code=2)
        assert expected in message
        assert len(message.strip().splitlines()) == 1, message
    assert halikit("sample", run, "--class", "3", "--data", f"array:{unlabelled}", "--out", tmp_path / "s.png")


def test_attributes_are_those_of_the_data_but_for_those_asked_for(attributed, halikit: Shell, tmp_path):
    path, _ = attributed
    plain, changed = Run(path), Run(path, asked=Asked.parse(None, ["Round=1"]))
    part = plain.data.test
    own = plain.conditioned(part).context
    assert torch.equal(own, part.attributes.float())
    given = changed.conditioned(part).context
    assert torch.equal(given[:, 0], own[:, 0])
    assert torch.equal(given[:, 1], torch.ones(len(part)))
    assert (changed.conditioned_at_random(50, 0).context[:, 1] == 1).all()
    values = json.loads(halikit("sample", path, "--attribute", "Big=0", "--json", "--out", tmp_path / "s.png"))
    assert values["context"] == "Big=0, other attributes of the data"
    assert halikit("reconstruct", path, "--attribute", "Big=1", "--attribute", "Round=0", "--out", tmp_path / "r.png")
    assert halikit("interpolate", path, "--pairs", 1, "--out", tmp_path / "i.png")
    assert "there is no attribute 'Tall'; there are Big, Round" in halikit(
        "sample", path, "--attribute", "Tall=1", code=2
    )


def test_train_conditional_resolves_what_the_data_have(attributed, halikit: Shell, tmp_path):
    options = ["train", "--conditional", "--dry-run", "--json"]
    model = json.loads(halikit(*options))["model"]
    assert (model["conditional"], model["context_size"]) == ("labels", 10)
    model = json.loads(halikit(*options, "--levels", 2, "--data", f"array:{attributed[1]}", "--set", "batch_size=8"))[
        "model"
    ]
    assert (model["conditional"], model["context_size"]) == ("attributes", 2)
    assert json.loads(halikit("train", "--dry-run", "--json"))["model"]["conditional"] is None


def test_pictures_of_a_training_have_one_class_in_each_row(run):
    with (run / "samples" / "samples-0000003.png").open("rb") as file:
        from PIL import Image

        width, height = Image.open(file).size
    # Ten rows of sixteen.
    assert abs(width / height - 1.6) < 0.02


def test_the_explorer_gives_each_subject_its_context(run):
    from halikit.explore import Explorer

    opened = Run(run)
    train, test = opened.data.train, opened.data.held_out
    explorer = Explorer(opened.hierarchy, "run", data=opened.data, contexts=(test.labels, train.labels))
    picked = explorer.pick(5)
    x = test.batch(torch.tensor([5]))
    rebuilt = opened.hierarchy.reconstruct(x, 2, context=test.labels[5:6]).detach()
    assert picked["levels"][1]["error"] == pytest.approx(float((rebuilt - x).square().mean().sqrt()), rel=1e-3)
    assert f"“{int(test.labels[5])}”" in picked["title"]
    assert "“" in explorer.sample()["title"]
    assert explorer.about()["classes"] == [str(digit) for digit in range(10)]
    of_3, of_7 = (explorer.sample(seed=1, label=label) for label in (3, 7))
    assert ("“3”" in of_3["title"], "“7”" in of_7["title"]) == (True, True)
    assert of_3["view"] != of_7["view"]
    with pytest.raises(InputError, match="one of 10 classes here; there is no 10"):
        explorer.sample(label=10)
    fixed = Explorer(opened.hierarchy, "run", data=opened.data, contexts=(test.labels[:1], train.labels[:1]))
    assert fixed.about()["classes"] == []
    assert explorer.level(1)["entries"]
    assert explorer.move(picked["id"], 1, {0: 2.0}, keep=True)["id"]
    assert explorer.inpaint(picked["id"], "1" * 32 + "0" * 32)["missing"] == 32
    assert not explorer.about()["opens"]
    with pytest.raises(InputError, match="start again with --class"):
        explorer.open(b"")


def test_the_card_shows_how_to_give_a_context(run, tmp_path):
    from halikit.runs import hub

    card = (hub.bundle(run, tmp_path / "card") / "README.md").read_text("utf-8")
    assert "c = torch.arange(16) % 10  # the class of each sample" in card
    assert "model.hierarchy.sample(16, context=c)" in card


def test_an_export_of_one_class_takes_any_number_of_data(run, tmp_path):
    h, c = Run(run).hierarchy[:1], torch.tensor([3])
    export(h.conditioned(c), tmp_path, format="pt2")
    z = torch.randn(5, h.spaces[1].size)
    (images,) = torch.export.load(tmp_path / "decoder-z1.pt2").module()(z)
    torch.testing.assert_close(images, h.decode(z, context=c)["x"].detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="an exported file takes no context"):
        export(h, tmp_path)


def test_the_health_of_a_conditional_run(run, halikit: Shell, monkeypatch):
    monkeypatch.setattr("halikit.analysis.health._DRAWN", 50)
    found = json.loads(halikit("evaluate", "health", run, "-n", 16, "--json"))
    assert found["context"] == "labels of the data"
    assert len(found["levels"]) == 2


def test_kernels_of_ones_own_that_read_a_class():
    path = Path(__file__).parent.parent / "examples" / "class_conditional.py"
    code = [
        line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.strip().startswith('"""')
    ]
    assert len(code) <= 20
    images = runpy.run_path(str(path))["main"](steps=2)
    assert images.shape == (100, 1, 8, 8)
