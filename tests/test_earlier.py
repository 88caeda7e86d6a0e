"""Files of earlier versions load, give the same numbers, and can be trained further.

In 0.1.0, stacks grew level by level. Until 0.2.0, most settings were in ``[training]``.
"""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Shell
from readers import survives
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from test_cli import halikit as process
from test_resume import rewritten
from torch import Tensor, nn

import halikit as hk
from halikit import data
from halikit.config import Config, ConfigError, override
from halikit.errors import InputError
from halikit.model import save_model
from halikit.renamed import RENAMED
from halikit.runs.checkpoints import Checkpoint, open_checkpoint
from halikit.runs.run import Run

RUNS = {"run-0.1.0": 3, "growing-0.1.0": 2}
runs = pytest.mark.parametrize("name", RUNS)


def copied(name: str, where: Path) -> Path:
    """A copy of a run under tests/data, which may be written to."""
    return Path(shutil.copytree(Path(__file__).parent / "data" / name, where / "run"))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return copied("run-0.1.0", tmp_path)


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    return copied("growing-0.1.0", tmp_path)


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


def assert_close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=1e-6, atol=1e-6)


# --- models -----------------------------------------------------------------------------------------------------------


@runs
@torch.no_grad()
def test_a_model_gives_the_numbers_that_it_gave(name: str, tmp_path: Path) -> None:
    run = copied(name, tmp_path)
    expected = json.loads((run / "expected.json").read_text())
    model = hk.load(run)
    h, d = model.hierarchy.double(), model.discriminator.double()
    assert not h.training
    assert not d.training
    assert len(h) == len(d.spaces) - 1 == RUNS[name]
    x = data.load("digits").held_out.batch(torch.arange(4)).double()
    errors = [(h.reconstruct(x, level=level) - x).square().flatten(1).mean(1).sqrt() for level in range(1, len(h) + 1)]
    assert_close(torch.stack(errors), expected["errors"])
    assert_close(d.features(h.encode(x)), expected["features"])


@runs
def test_raw_weights_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    run = copied(name, tmp_path)
    written = load_file(run / "model.safetensors")
    for key, tensor in hk.load(run, weights="raw").hierarchy.state_dict().items():
        assert torch.equal(tensor, written[f"hierarchy.{key}"])


@runs
def test_its_settings_are_those_it_was_trained_with(name: str, tmp_path: Path) -> None:
    config = hk.load(copied(name, tmp_path)).config
    assert config.game.sleep_weights == 0
    assert config.model.skips is False
    assert config.model.widths == (6, 5, 4)


def as_of_0_1_0(path: Path, model: hk.Model, level: int) -> list[hk.JointDiscriminator]:
    """Write a model as 0.1.0 did with so many levels trained; gives the discriminators of the games it played then.

    In front of each head was an adapter for every level, a linear layer from the features there.
    """
    whole = model.discriminator
    games, tensors = [], {}
    for i, game in enumerate(whole.games):
        prefix = f"discriminator.pairs.{i}." if isinstance(whole, hk.MultiGameDiscriminator) else "discriminator."
        played = []
        for last in range(1, len(game.spaces)):
            adapter = nn.LazyLinear(model.config.discriminator.width)
            head = nn.Sequential(nn.Flatten(), adapter, *list(game.head)[2:])
            played.append(hk.JointDiscriminator(game.spaces[: last + 1], game.stages[: last + 1], head).eval())
            played[-1]({space.name: torch.zeros(1, *space.shape) for space in game.spaces})
            tensors |= {f"{prefix}adapters.{last - 1}.1.{k}": p.detach().clone() for k, p in adapter.named_parameters()}
        tensors |= {
            f"{prefix}head.{k - 2}.{key}": tensor
            for k, layer in list(enumerate(game.head))[2:]
            for key, tensor in layer.state_dict().items()
        }
        games.append(played[level - 1] if len(whole.games) == 1 else played[0])
    save_model(path, model, model.hierarchy, config=model.config, step=1)
    new = {key: tensor for key, tensor in load_file(path).items() if ".head." not in key}
    config = model.config.model_dump(mode="json")
    config["training"] |= {"grow_every": 5, "settled_rate": 0.3}
    for new_name, old_name in {new: old for old, new in RENAMED.items()}.items():
        (section, key), (old_section, old_key) = new_name.split("."), old_name.split(".")
        if config[section]:
            config[old_section][old_key] = config[section].pop(key)
    for key in ("cycle_weight", "elbo_weight", "sleep_statistics", "latent_noise_until"):
        del config["game"][key]
    for key in ("best_by", "stop_after", "stop_metric", "loggers"):
        del config["record"][key]
    for name in ("game", "optimiser", "labels", "record", "hardware"):
        assert not config.pop(name)
    del config["discriminator"]["spectral_norm"]
    for section, key in (("model", "skips"), ("training", "sleep"), ("training", "penalty_every")):
        del config[section][key]
    about = {"schema": 1, "step": 1, "level": level, "config": config}
    save_file(new | tensors, path, {"halikit": json.dumps(about)})
    return games[:level]


KINDS = {
    "joint, vectors": ((1, 8, 8), {"model.family": "dense", "discriminator.family": "dense"}),
    "pairs, vectors": ((1, 8, 8), {"discriminator.games": "pairwise", "model.family": "dense"}),
    "joint, strided": ((1, 20, 20), {"model.family": "mixed", "discriminator.family": "dense"}),
}


@pytest.mark.parametrize("level", [1, 2, 4])
@pytest.mark.parametrize(("shape", "changes"), KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_every_form_and_family_gives_the_features_of_its_top_level(
    shape: tuple[int, ...], changes: dict[str, object], level: int, tmp_path: Path
) -> None:
    small = {"model.levels": 4, "model.data_shape": shape, "model.hidden": 4, "model.depth": 1, "model.skips": False}
    model = hk.build(override(Config(), small | {"discriminator.width": 8} | changes))
    games = as_of_0_1_0(tmp_path / "model.safetensors", model, level)
    loaded = hk.load(tmp_path / "model.safetensors")
    assert len(loaded.hierarchy) == level
    assert [game.spaces for game in loaded.discriminator.games] == [game.spaces for game in games]
    states = model.hierarchy.eval().encode(torch.rand(3, *shape))
    expected = torch.cat([game.features(states) for game in games], 1)
    torch.testing.assert_close(loaded.discriminator.eval().features(states), expected)
    assert loaded.discriminator.games[0].noise.scale == model.discriminator.games[0].noise.scale


@pytest.mark.parametrize("level", [2, 4])
@torch.no_grad()
def test_kernels_of_the_users_own_load_with_their_code(level: int, tmp_path: Path) -> None:
    shape, changes = (1, 32, 32), {"model.family": "conv", "discriminator.family": "conv"}
    small = {"model.levels": 4, "model.data_shape": shape, "model.hidden": 4, "model.skips": False}
    config = override(Config(), small | {"discriminator.width": 8} | changes)
    path = tmp_path / "model.safetensors"
    (game,) = as_of_0_1_0(path, hk.build(config), level)
    changed_model(path, config=None)
    loaded = hk.load(path, build=lambda: hk.build(config))
    states = loaded.hierarchy.encode(torch.rand(3, *shape))
    torch.testing.assert_close(loaded.discriminator.features(states), game.features(states))


CONVOLUTIONS = {
    "a convolutional stack": ((1, 8, 8), {"model.family": "conv"}, True),
    "one by default": ((1, 20, 20), {}, True),
    "an autoencoder of it": ((1, 20, 20), {"training.method": "elbo", "observation_scale": 0.5}, True),
    "a discriminator": ((1, 8, 8), {"model.family": "dense", "discriminator.family": "conv"}, True),
    "one of large images by default": ((1, 20, 20), {"model.family": "mixed"}, True),
    "a dense stack": ((1, 20, 20), {"model.family": "dense", "discriminator.family": "dense"}, False),
    "a mixed stack": ((1, 20, 20), {"model.family": "mixed", "discriminator.family": "dense"}, False),
    "a mixed autoencoder": (
        (1, 20, 20),
        {"model.family": "mixed", "training.method": "elbo", "observation_scale": 0.5},
        False,
    ),
    "vectors": ((9,), {}, False),
}


@pytest.mark.parametrize("schema", [2, 3, 4])
@pytest.mark.parametrize(("shape", "changes", "changed"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutional_networks_of_earlier_versions_are_refused(
    shape: tuple[int, ...], changes: dict[str, object], changed: bool, schema: int, tmp_path: Path
) -> None:
    config = override(Config(), {"model.levels": 2, "data_shape": shape, "hidden": 4, "model.depth": 1} | changes)
    model = hk.build(config)
    path = tmp_path / "model.safetensors"
    save_model(path, model, model.hierarchy, config=config, step=1)
    changed_model(path, schema=schema)
    if not changed or schema == 4:
        assert hk.load(path).hierarchy.spaces == model.hierarchy.spaces
        return
    with pytest.raises(InputError) as error:
        hk.load(path)
    assert "convolutional networks of an earlier version" in str(error.value)
    assert str(error.value).endswith("train again, or load it with the halikit that wrote it, such as 0.1")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schema", [3, 4])
def test_a_checkpoint_of_earlier_convolutional_networks_is_refused(schema: int, tmp_path: Path, halikit: Shell) -> None:
    options = ["--set", "model.family=conv", "--set", "hidden=4", "--set", "width=8", "--batch-size", 16]
    halikit("train", "--levels", 1, "--steps", 2, *options, "--out", tmp_path / "run")
    path = checkpoint_of(tmp_path / "run")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema": schema}))
    complaint = halikit("train", "--resume", "--out", tmp_path / "run", "--steps", 3, code=2 if schema == 3 else 0)
    assert ("networks of an earlier version, which this version does not build: train again" in complaint) == (
        schema == 3
    )


def test_no_value_for_skips_means_that_there_are_skips(tmp_path: Path) -> None:
    """As in a model of a development version that was built in Python: dense stacks had them by default."""
    config = override(Config(), {"model.levels": 2, "data_shape": (9,), "hidden": 4})
    model = hk.build(config)
    save_model(tmp_path / "model.safetensors", model, model.hierarchy, config=config, step=1)
    values = config.model_dump(mode="json")
    values["model"]["skips"] = None
    changed_model(tmp_path / "model.safetensors", schema=3, config=values)
    assert hk.load(tmp_path / "model.safetensors").config.model.skips is True


# --- commands ---------------------------------------------------------------------------------------------------------


@runs
def test_commands_use_the_levels_that_are_trained(name: str, tmp_path: Path, halikit: Shell) -> None:
    run, levels = copied(name, tmp_path), RUNS[name]
    assert len(json.loads(halikit("evaluate", "labels", run, "-n", 50, "--json"))["kept"]) == levels
    assert len(json.loads(halikit("evaluate", "recovery", run, "--json"))["recovery"]) == levels
    said = json.loads(halikit("inspect", run, "--json"))
    assert list(said["spaces"]) == ["x", "z1", "z2", "z3"][: levels + 1]
    assert said["discriminator"][-2]["name"] == f"concatenates z{levels}"
    assert said["discriminator"][-1]["name"] == "head"
    page = Path(halikit("report", run).strip()).read_text("utf-8")
    with (run / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert f"{float(last['error_z1']):.4f}" in page
    halikit("sample", run, "-n", 4)
    assert f"levels 1 to {levels}" in halikit("traverse", run, "--level", levels + 1, code=2)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_gone_on_with(finished: Path, halikit: Shell) -> None:
    before = load_file(checkpoint_of(finished) / "tensors.safetensors")
    halikit("train", "--resume", "--out", finished, "--steps", 70)
    after = load_file(checkpoint_of(finished) / "tensors.safetensors")
    assert checkpoint_of(finished).name == "step-0000070"
    # What the adapter of the top level had learned, and how, is the first layer of the head's.
    for kind in ("exp_avg", "exp_avg_sq"):
        assert before[f"optimiser.discriminator.{kind}.adapters.2.1.weight"].any()
    assert float(before["optimiser.discriminator.step.adapters.2.1.weight"]) == 30
    assert float(after["optimiser.discriminator.step.head.1.weight"]) == 40
    assert float(after["optimiser.discriminator.step.head.3.0.weight"]) == 70
    assert not any("adapters" in name for name in after)
    settings = tomllib.loads((finished / "config.toml").read_text())
    assert settings["training"]["steps"] == 70
    assert settings["game"]["sleep_weights"] == 0
    assert not {"grow_every", "settled_rate"} & set(settings["training"])
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["10", "20", "30", "40", "50", "60", "70"]
    assert "level" not in rows[0]
    assert rows[-2]["error_z3"] != "" == rows[-2]["recovery_z3"]
    assert rows[-1]["recovery_z3"] != ""
    assert len(hk.load(finished).hierarchy) == 3
    halikit("report", finished)
    # From now on it is a run like any other.
    halikit("train", "--resume", "--out", finished, "--steps", 72)


def test_states_of_optimisers_follow_their_parameters(finished: Path) -> None:
    path = checkpoint_of(finished)
    before, now = load_file(path / "tensors.safetensors"), open_checkpoint(path).tensors()
    parts = ["", *(f"optimiser.{quantity}" for quantity in ("step", "exp_avg", "exp_avg_sq"))]
    prefixes = [part.replace("optimiser.", "optimiser.discriminator.") or "discriminator" for part in parts]
    moved = {
        f"{prefix}.{old}.{leaf}": f"{prefix}.{new}.{leaf}"
        for prefix in prefixes
        for old, new in {"adapters.2.1": "head.1", "head.1.0": "head.3.0", "head.2": "head.4"}.items()
        for leaf in ("weight", "bias")
    }
    gone = {name for name in before if "adapters.0" in name or "adapters.1" in name}
    assert set(now) == {moved.get(name, name) for name in before if name not in gone}
    for old in set(before) - gone - {"unread"}:
        assert torch.equal(now[moved.get(old, old)], before[old]), old


def test_the_checkpoint_and_the_model_of_one_step_have_the_same_weights(finished: Path) -> None:
    model = hk.load(finished, weights="raw")
    trainer = hk.Trainer(hk.build(model.config), "digits", out=finished, resume=True)
    assert trainer.steps == 60
    for name, part in trainer.model.parts.items():
        for key, tensor in model.parts[name].state_dict().items():
            assert torch.equal(part.state_dict()[key], tensor), key


def test_a_growing_run_is_not_gone_on_with(growing: Path) -> None:
    before = {path: path.read_bytes() for path in growing.rglob("*") if path.is_file()}
    for options in (["--resume", "--out", "run"], ["--resume-from", str(checkpoint_of(growing)), "--out", "other"]):
        done = process("train", *options, cwd=growing.parent, check=False)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "still growing, with 2 of 3 levels: only halikit 0.1.0 can go on with it" in line
    assert {path: path.read_bytes() for path in growing.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["grow_every", "training.settled_rate"])
def test_settings_of_growth_are_refused(finished: Path, name: str) -> None:
    for options in ([], ["--resume", "--out", "run"]):
        done = process("train", *options, "--set", f"{name}=0.5", cwd=finished.parent, check=False)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "since 0.2.0 all levels train at once" in line


def test_a_config_file_of_growth_is_refused(finished: Path) -> None:
    (finished.parent / "growth.toml").write_text("[training]\ngrow_every = 15\nsettled_rate = 0.3\n")
    found = {}
    for file in ("growth.toml", "run/config.toml"):
        done = process("train", "--config", file, "--out", "new", cwd=finished.parent, check=False)
        assert done.returncode == 2
        found[file] = done.stderr.splitlines()
    assert [line.split("'")[1] for line in found["growth.toml"]] == ["training.grow_every", "training.settled_rate"]
    assert all("since 0.2.0 all levels train at once" in line for line in found["growth.toml"])
    # The first few of all names that have changed since.
    assert ["any more" in line for line in found["run/config.toml"]] == [True] * 3
    assert not (finished.parent / "new").exists()


# --- before the settings had owners -----------------------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return copied("run-flat-0.2.0", tmp_path)


@torch.no_grad()
def test_a_model_with_flat_settings_gives_the_same_numbers(flat: Path) -> None:
    expected = json.loads((flat / "expected.json").read_text())
    model = hk.load(flat)
    states = model.hierarchy.double().encode(data.load("digits").held_out.batch(torch.arange(4)).double())
    for name, values in expected["encodings"].items():
        assert_close(states[name], values)
    assert_close(model.discriminator.double().features(states), expected["features"])


def test_flat_settings_have_their_new_names(flat: Path) -> None:
    before = tomllib.loads((flat / "config.toml").read_text())
    for config in (hk.load(flat).config, Run(flat).settings, Config.parse(open_checkpoint_of(flat).facts["config"])):
        for old, new in RENAMED.items():
            (section, key), (new_section, new_key) = old.split("."), new.split(".")
            value, owner = before[section].get(key, "none"), getattr(config, new_section)
            expected = None if value == "none" else tuple(value) if isinstance(value, list) else value
            if new_section == "labels":
                assert owner is None
            else:
                assert getattr(owner, new_key) == expected, old
        assert config.discriminator.games == "pairwise"


def open_checkpoint_of(run: Path) -> Checkpoint:
    return open_checkpoint(checkpoint_of(run))


def test_a_run_with_flat_settings_is_trained_further(flat: Path, halikit: Shell) -> None:
    expected = json.loads((flat / "expected.json").read_text())["losses at step 50"]
    halikit("train", "--resume", "--out", flat, "--steps", 50)
    metrics = Run(flat).metrics()
    assert metrics["step"] == [10, 20, 30, 40, 50]
    for name, value in expected.items():
        assert metrics[name][-1] == pytest.approx(value, rel=1e-3), name
    settings = tomllib.loads((flat / "config.toml").read_text())
    assert settings["record"]["log_every"] == 10
    assert settings["labels"] == "none"
    assert "keep" not in settings["training"]
    # Now it is a run of this version.
    halikit("train", "--resume", "--out", flat, "--steps", 52)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    section, key = old.split(".")
    message = f"there is no setting {old!r} any more: it is now {new}"
    with pytest.raises(ConfigError, match=message):
        override(Config(), {old: 1})
    with pytest.raises(ConfigError, match=message):
        Config.parse({section: {key: 1}})


def test_old_names_are_refused_by_the_command(flat: Path) -> None:
    done = process("train", "--set", "averaging=0.9", cwd=flat.parent, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "there is no setting 'training.averaging' any more: it is now training.ema_decay" in line
    for text in ("[training]\naveraging = 0.9\n", "[discriminator]\nform = 'pairwise'\n"):
        (flat.parent / "mine.toml").write_text(text)
        done = process("train", "--config", "mine.toml", "--out", "new", cwd=flat.parent, check=False)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "mine.toml: there is no setting" in line
        assert line.endswith(("it is now training.ema_decay", "it is now discriminator.games"))
    assert not (flat.parent / "new").exists()


# --- damage -----------------------------------------------------------------------------------------------------------


def in_one_line(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def changed_model(path: Path, without: str = "", **about: object) -> None:
    """Leave out the tensors with this in their names, and let the file say something else of itself."""
    with safe_open(path, "pt") as file:
        said: dict[str, Any] = json.loads(file.metadata()["halikit"])
    tensors = {name: t for name, t in load_file(path).items() if not without or without not in name}
    save_file(tensors, path, {"halikit": json.dumps(said | about)})


def changed_checkpoint(run: Path, without: str = "", put: dict[str, Tensor] | None = None, **facts: object) -> None:
    """The same of the checkpoint, whose manifest says that it is good; and put other tensors in."""
    path = checkpoint_of(run)
    tensors = load_file(path / "tensors.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not without or without not in name}
    rewritten(path, "tensors.safetensors", save(kept | (put or {})))
    state = json.loads((path / "state.json").read_text()) | facts
    rewritten(path, "state.json", json.dumps(state).encode())


@runs
@pytest.mark.parametrize("level", [0, -1, 4, 10**6, "two", None, [2]], ids=str)
def test_a_model_with_an_impossible_level_is_refused(name: str, level: object, tmp_path: Path) -> None:
    run = copied(name, tmp_path)
    changed_model(run / "model.safetensors", level=level)
    assert str(run) in in_one_line(lambda: hk.load(run))


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("run-0.1.0", "adapters.2."),
        ("run-0.1.0", "adapters."),
        ("run-0.1.0", "discriminator.head."),
        ("growing-0.1.0", "adapters.1."),
        ("growing-0.1.0", "adapters."),
        ("growing-0.1.0", "adapters.1.1.bias"),
        ("growing-0.1.0", "links.1.up"),
    ],
)
def test_a_model_without_what_it_played_with_is_refused(name: str, without: str, tmp_path: Path) -> None:
    run = copied(name, tmp_path)
    changed_model(run / "model.safetensors", without)
    assert "missing" in in_one_line(lambda: hk.load(run))


def resumed(run: Path) -> hk.Trainer:
    config = hk.load(run).config
    return hk.Trainer(hk.build(config), "digits", out=run, resume=True, on_notice=lambda _: None)


@pytest.mark.parametrize("level", [0, 4, "two", None, [3], {}], ids=str)
def test_a_checkpoint_with_an_impossible_level_is_refused(level: object, finished: Path) -> None:
    changed_checkpoint(finished, level=level)
    in_one_line(lambda: resumed(finished))


@pytest.mark.parametrize("without", ["discriminator.adapters.2.", "adapters.", "discriminator.head.", "unread"])
def test_a_checkpoint_without_what_it_played_with_is_refused(without: str, finished: Path) -> None:
    changed_checkpoint(finished, without)
    in_one_line(lambda: resumed(finished))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 4)], ids=str)
def test_a_checkpoint_with_odd_outcomes_is_refused(shape: tuple[int, ...], finished: Path) -> None:
    changed_checkpoint(finished, put={"unread": torch.zeros(shape)})
    in_one_line(lambda: resumed(finished))


@pytest.mark.parametrize("columns", [3, "d_loss", {"d_loss": 1}, [[]], [None], []], ids=str)
def test_a_checkpoint_with_odd_columns_is_refused_or_read(columns: object, finished: Path) -> None:
    changed_checkpoint(finished, columns=columns)
    survives(lambda: resumed(finished))


@pytest.mark.parametrize("config", [{}, {"training": {}}, {"training": {"grow_every": 3}}, {"training": 3}], ids=str)
def test_a_checkpoint_with_another_config_is_refused(config: object, finished: Path) -> None:
    model = hk.load(finished)
    changed_checkpoint(finished, config=config)
    in_one_line(lambda: resumed(finished))
    # Kernels of the user's own are not compared with it.
    own = hk.Model(model.hierarchy, model.discriminator)
    options = {"settings": model.config, "resume": True, "on_notice": lambda _: None}
    survives(lambda: hk.Trainer(own, "digits", out=finished, **options))
