"""Saving and loading: one file that is enough, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

import halikit as hk
from halikit import data
from halikit.analysis.labels import label_scores
from halikit.config import Config, ModelSettings, RecordSettings, TrainingSettings, override, read_toml
from halikit.errors import InputError
from halikit.model import ModelError, resolved
from halikit.presets import PRESETS

SMALL = Config(
    model=ModelSettings(levels=2, data_shape=(1, 8, 8), widths=(6, 3), hidden=16),
    training=TrainingSettings(steps=6, batch_size=8),
    record=RecordSettings(evaluate_every=3),
)
# Settings that are "auto" in SMALL, as training resolves them.
RESOLVED = {"sleep_weights": (1.0, 1.0), "gradient_penalty": 0.0, "penalised_joint": "encoder"}
RESOLVED |= {"hardware.precision": "32", "hardware.compile": None}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, hk.Trainer]:
    torch.manual_seed(0)
    trainer = hk.Trainer(hk.build(SMALL), "digits", out=tmp_path_factory.mktemp("runs") / "run")
    trainer.fit()
    return trainer.run.path, trainer


@pytest.mark.parametrize("weights", ["averaged", "raw"])
def test_a_run_loads_from_its_one_file(run: tuple[Path, hk.Trainer], tmp_path: Path, weights: str) -> None:
    path, trainer = run
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((path / "model.safetensors").read_bytes())
    trained = trainer.averaged if weights == "averaged" else trainer.model.hierarchy
    model = hk.load(alone, weights=weights)
    # Settings that the program resolves by itself are resolved in the run.
    assert model.config == override(SMALL, RESOLVED)
    assert not model.hierarchy.training
    assert not model.discriminator.training
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(model.hierarchy.state_dict()[name], tensor, rtol=0, atol=0)
    for name, tensor in trainer.model.discriminator.state_dict().items():
        torch.testing.assert_close(model.discriminator.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_file_has_one_metadata_key_of_json(run: tuple[Path, hk.Trainer]) -> None:
    with safe_open(run[0] / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["halikit"]
    assert json.loads(metadata["halikit"])["step"] == 6


def own_kernels() -> hk.Model:
    x, z = hk.Space("x", (1, 8, 8)), hk.Space("z1", (4,))
    up = hk.GaussianKernel(x, z, nn.Sequential(nn.Flatten(), nn.Linear(64, 8)))
    hierarchy = hk.Hierarchy([hk.Link(up, hk.DeterministicKernel(z, x, nn.Linear(4, 64)))])
    return hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=8))


def test_own_kernels_load_with_their_code(tmp_path: Path) -> None:
    settings = override(Config(), {"steps": 2, "batch_size": 8})
    trainer = hk.Trainer(own_kernels(), "digits", settings=settings, out=tmp_path / "own")
    trainer.fit()
    with pytest.raises(ModelError, match="pass build="):
        hk.load(tmp_path / "own")
    model = hk.load(tmp_path / "own", build=own_kernels)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.hierarchy.reconstruct(x), trainer.averaged.reconstruct(x), rtol=0, atol=0)


def test_a_file_that_does_not_fit_is_refused(run: tuple[Path, hk.Trainer]) -> None:
    with pytest.raises(ModelError, match=r"does not fit.*missing"):
        hk.load(run[0], build=own_kernels)


@pytest.mark.parametrize("damage", ["truncated", "text", "missing"])
def test_damaged_files_are_named(run: tuple[Path, hk.Trainer], tmp_path: Path, damage: str) -> None:
    content = (run[0] / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("not a model")
    with pytest.raises(ModelError, match=str(path)):
        hk.load(path)


def test_build_needs_the_shape_of_the_data() -> None:
    with pytest.raises(ValueError, match="data_shape"):
        hk.build(Config())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_without_its_data(name: str) -> None:
    model = hk.build(PRESETS[name]())
    # The classes are one level more.
    assert len(model.hierarchy) == model.config.model.levels + (model.config.model.classes is not None)


@pytest.mark.parametrize("dropout", [0.0, 0.0001, 0.9999])
def test_every_dropout_below_one_is_taken(dropout: float) -> None:
    model = hk.build(override(SMALL, {"dropout": dropout}))
    dropped = [module.probability for module in model.discriminator.modules() if hasattr(module, "threshold")]
    assert bool(dropped) == bool(dropout)
    assert all(0 < probability < 1 for probability in dropped)


def test_shared_weights_are_saved(tmp_path: Path) -> None:
    def tied() -> hk.Model:
        x, z = hk.Space("x", (1, 8, 8)), hk.Space("z1", (64,))
        shared = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
        links = [hk.Link(hk.DeterministicKernel(x, z, shared), hk.DeterministicKernel(z, x, shared))]
        hierarchy = hk.Hierarchy(links)
        return hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=8))

    settings = override(Config(), {"steps": 2, "batch_size": 8, "sleep_weights": 0.0})
    trainer = hk.Trainer(tied(), "digits", settings=settings, out=tmp_path / "run")
    trainer.fit()
    model = hk.load(tmp_path / "run", build=tied)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.hierarchy.reconstruct(x), trainer.averaged.reconstruct(x), rtol=0, atol=0)


def test_a_run_describes_the_training_that_was_played(tmp_path: Path) -> None:
    settings = override(Config(), {"steps": 50, "batch_size": 8, "learning_rate": 1e-4})
    hk.Trainer(hk.build(SMALL), "digits", settings=settings, out=tmp_path / "run").fit(3)
    for config in (read_toml(tmp_path / "run" / "config.toml"), hk.load(tmp_path / "run").config):
        own = {"model": SMALL.model, "discriminator": SMALL.discriminator, "data": SMALL.data}
        played = override(settings, {"steps": 3} | RESOLVED)
        assert config == played.model_copy(update=own)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (7,)])
def test_a_resolved_config_builds_the_same_model_and_leaves_nothing_to_defaults(shape: tuple[int, ...]) -> None:
    config = Config(model=ModelSettings(levels=2, data_shape=shape))
    full = resolved(config)
    assert hk.build(full).hierarchy.spaces == hk.build(config).hierarchy.spaces
    assert None not in (full.model.family, full.model.maps, full.model.widths, full.model.hidden)
    sizes = [[p.shape for p in hk.build(c).hierarchy.parameters()] for c in (config, full)]
    assert sizes[0] == sizes[1]
    assert resolved(full) == full
    assert resolved(hk.presets.cifar10()) == hk.presets.cifar10()


class TestTheModelThatShips:
    """``digits`` and ``mnist``: small, good, and never in the way of a run of that name."""

    def test_is_small_and_knows_the_digits(self) -> None:
        path = Path(hk.__file__).parent / "pretrained" / "digits.safetensors"
        assert path.stat().st_size < 2_000_000
        model = hk.load("digits")
        scores = label_scores(model.hierarchy, data.load("digits"), num_samples=500)
        assert [kept > least for kept, least in zip(scores.kept, (0.85, 0.8, 0.7), strict=True)] == [True] * 3
        assert min(scores.class_shares) > 0.03

    def test_mnist_is_small_and_draws_all_digits(self) -> None:
        path = Path(hk.__file__).parent / "pretrained" / "mnist.safetensors"
        assert path.stat().st_size < 8 * 2**20
        model = hk.load("mnist")
        assert model.config is not None
        assert model.config.data.spec == "mnist:data/mnist"
        torch.manual_seed(0)
        with torch.no_grad():
            images = model.hierarchy.sample(500)
            again = model.hierarchy.reconstruct(images, 1)
        assert images.shape == (500, 1, 28, 28)
        assert float((again - images).square().mean().sqrt()) < 0.5 * float(images.std())
        # The digits of scikit-learn are 8×8, and fill what MNIST's 20×20 box is.
        small = functional.interpolate(images[..., 4:24, 4:24], (8, 8), mode="area").flatten(1)
        train = data.load("digits").train
        nearest = torch.cdist(small, train.batch().flatten(1)).argmin(1)
        assert torch.bincount(train.labels[nearest], minlength=10).min() > 10

    def test_has_no_raw_weights_and_says_so(self) -> None:
        with pytest.raises(InputError, match="holds no raw weights"):
            hk.load("digits", weights="raw")

    def test_yields_to_what_is_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "digits").mkdir()
        assert len(hk.load("digits").hierarchy) == 3
        (tmp_path / "digits" / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises(InputError, match="no halikit model, or damaged"):
            hk.load("digits")

    def test_other_names_are_not_looked_for_among_files(self) -> None:
        for name in ("letters", "../pretrained/digits", "/digits"):
            with pytest.raises(InputError, match="there is no model"):
                hk.load(name)
