"""Going on from a checkpoint: to the last bit, and what is refused or said."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

import halikit as hk
from halikit.config import Config, override
from halikit.errors import InputError
from halikit.runs.checkpoints import SCHEMA, CheckpointError

TIMES = {"seconds", "steps_per_second", "images_per_second"}
SMALL = {
    "model.data_shape": (1, 8, 8),
    "model.hidden": 8,
    "discriminator.width": 8,
    "training.steps": 20,
    "training.batch_size": 16,
    "record.log_every": 3,
    "record.evaluate_every": 10,
    "record.checkpoint_every": 4,
    "training.seed": 7,
}


class PowerCutError(Exception):
    """The end of a process, without any goodbye."""


def config(levels: int = 2, **changes: object) -> Config:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    plays = changes.get("training.method", "adversarial") == "adversarial"
    small = {name: value for name, value in SMALL.items() if plays or not name.startswith("discriminator")}
    return override(Config(), small | {"model.levels": levels} | changes)


def trainer(settings: Config, out: Path, **options: object) -> hk.Trainer:
    torch.manual_seed(settings.training.seed)
    return hk.Trainer(hk.build(settings), "digits", out=out, **options)


def cut_at(run: hk.Trainer, step: int) -> None:
    """Train until the power goes off, in the step after so many."""

    def cut(module: nn.Module, given: object) -> None:
        if run.steps == step:
            raise PowerCutError

    run.model.hierarchy.links[0].up.network.register_forward_pre_hook(cut)
    with pytest.raises(PowerCutError):
        run.fit()


def fingerprint(run: Path) -> dict[str, object]:
    """What has to be identical: weights, averages, optimisers, metrics without times, figures."""
    with (run / "metrics.csv").open() as file:
        rows = [{key: cell for key, cell in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    latest = (run / "checkpoints" / "latest").read_text().strip()
    files = [run / "model.safetensors", run / "checkpoints" / latest / "tensors.safetensors"]
    files += sorted((run / "samples").iterdir())
    return {"latest": latest, "metrics": rows} | {path.name: path.read_bytes() for path in files}


CASES = {
    "one level": config(1),
    "two levels": config(2),
    "three levels": config(3),
    "convolutional": config(1, model__family="conv"),
    "convolutional, two levels": config(2, model__family="conv", discriminator__family="conv"),
    "convolutional, three levels": config(3, model__family="conv"),
    "augmentation": config(2, data__flip=True, data__shift=1),
    "rounds, penalty and noise": config(
        2, game__discriminator_steps=2, game__gradient_penalty=0.1, training__encoder_noise=0.1
    ),
    "pairs, falling rates and noise": config(
        2, discriminator__games="pairwise", optimiser__final_rate_share=0.1, game__final_input_noise=0.0
    ),
    "an autoencoder": config(
        2, training__method="elbo", model__observation_scale=0.5, model__gauge=None, model__max_scale=None
    ),
    "labels and consistency": config(
        1, model__classes=10, labels__number=20, labels__consistency_weight=0.5, data__flip=True
    ),
    "labels that spread over latents": config(
        1,
        model__classes=10,
        labels__number=20,
        labels__consistency_weight=0.5,
        labels__pseudo_label_threshold=0.2,
        labels__propagate_every=10,
    ),
    "given classes": config(2, model__conditional="labels", model__context_size=10),
    "several epochs": config(1, training__batch_size=500, model__gauge=None, model__max_scale=None),
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_resumed_run_is_the_undisturbed_one(settings: Config, tmp_path: Path) -> None:
    trainer(settings, tmp_path / "whole").fit()
    cut_at(trainer(settings, tmp_path / "cut"), 7)
    cut_at(trainer(settings, tmp_path / "cut", resume=True), 19)
    assert (tmp_path / "cut" / "checkpoints" / "latest").read_text() == "step-0000016\n"
    again = trainer(settings, tmp_path / "cut", resume=True)
    assert again.steps == 16
    again.fit()
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


def test_momenta_are_found_again_where_a_level_is_frozen(tmp_path: Path) -> None:
    def partly_frozen(name: str, *, resume: bool = False) -> hk.Trainer:
        torch.manual_seed(0)
        model = hk.build(config(3))
        model.hierarchy.links[1].requires_grad_(False)
        return hk.Trainer(model, "digits", out=tmp_path / name, resume=resume)

    partly_frozen("whole").fit()
    cut_at(partly_frozen("cut"), 9)
    partly_frozen("cut", resume=True).fit()
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


def test_dropout_and_momenta_are_what_the_identity_is_about(tmp_path: Path) -> None:
    """The test above would see a lost optimiser: without its state the end is another one."""
    settings = config()
    trainer(settings, tmp_path / "whole").fit()
    cut_at(trainer(settings, tmp_path / "cut"), 9)
    checkpoint = tmp_path / "cut" / "checkpoints" / "step-0000008"
    tensors = load_file(checkpoint / "tensors.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimiser.")}
    assert len(kept) < len(tensors)
    rewritten(checkpoint, "tensors.safetensors", save(kept))
    again = trainer(settings, tmp_path / "cut", resume=True)
    assert again.steps == 8
    again.fit()
    assert fingerprint(tmp_path / "cut") != fingerprint(tmp_path / "whole")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    trainer(config(record__keep_checkpoints=9), path).fit()
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def test_a_checkpoint_comes_before_the_first_step(run: Path) -> None:
    assert steps_of(run) == [0, 4, 8, 12, 16, 20]


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    settings = config(record__keep_checkpoints=2, record__checkpoint_every=2, record__evaluate_every=2)
    trainer(settings, tmp_path / "run").fit()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["error_z1"]]
    best = min(rows, key=lambda row: float(row["error_z1"]) + float(row["error_z2"]))
    assert steps_of(tmp_path / "run") == sorted({18, 20, int(best["step"])})


def test_resuming_from_a_step_leaves_later_ones_behind(run: Path, finished: Path) -> None:
    again = trainer(config(record__keep_checkpoints=9), run, resume=8)
    assert steps_of(run) == steps_of(finished)  # until training begins
    cut_at(again, 9)
    assert steps_of(run) == [0, 4, 8]
    assert not list((run / "samples").glob("*20.png"))
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6", "9"]
    trainer(config(record__keep_checkpoints=9), run, resume=True).fit()
    assert fingerprint(run) == fingerprint(finished)


def test_another_run_can_begin_at_a_checkpoint(run: Path, finished: Path, tmp_path: Path) -> None:
    settings, checkpoint = config(record__keep_checkpoints=9), run / "checkpoints" / "step-0000012"
    branch = trainer(settings, tmp_path / "branch", resume=checkpoint)
    assert branch.steps == 12
    branch.fit()
    assert steps_of(tmp_path / "branch") == [12, 16, 20]
    ends = (path / "model.safetensors" for path in (tmp_path / "branch", finished))
    assert next(ends).read_bytes() == next(ends).read_bytes()


@pytest.mark.parametrize("which", [5, "5", "nowhere/step-0000004"])
def test_a_checkpoint_that_is_named_but_missing_is_an_error(run: Path, which: object) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        trainer(config(), run, resume=which)


def test_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        trainer(config(), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="give it as out"):
        hk.Trainer(hk.build(config()), "digits", resume=True)


def test_another_architecture_is_refused_with_the_settings_that_differ(run: Path) -> None:
    with pytest.raises(InputError) as error:
        trainer(config(3, discriminator__width=9, optimiser__learning_rate=0.1), run, resume=True)
    assert "model.levels: 2 → 3" in str(error.value)
    assert "discriminator.width: 8 → 9" in str(error.value)
    assert "learning_rate" not in str(error.value)


def test_other_settings_and_surroundings_are_said(run: Path) -> None:
    state = run / "checkpoints" / "step-0000020" / "state.json"
    facts = json.loads(state.read_text())
    facts["surroundings"] |= {"device": "cuda", "processes": "2"}
    said: list[str] = []
    other = run.parent / "other"
    rewritten(run / "checkpoints" / "step-0000020", "state.json", json.dumps(facts).encode())
    trainer(config(optimiser__learning_rate=1e-5), other, resume=state.parent, on_notice=said.append)
    assert len(said) == 2
    assert "optimiser.learning_rate: 0.0003 → 1e-05" in said[0]
    assert "device: cuda → cpu; processes: 2 → 1" in said[1]
    assert "not be the same to the last bit" in said[1]


def rewritten(checkpoint: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and what the manifest says of it."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: os.truncate(path, 100)], ids=["flip", "rm", "cut"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(run: Path, name: str, damage: object) -> None:
    damage(run / "checkpoints" / "step-0000020" / name)
    said: list[str] = []
    again = trainer(config(record__keep_checkpoints=9), run, resume=True, on_notice=said.append)
    if name == "manifest.json" and damage is flip and not said:
        return  # a bit that means nothing, such as one of the config's hash
    assert again.steps == 16
    assert [f"step-0000020/{name} is damaged" in line for line in said] == [True]
    again.fit()
    assert trainer(config(record__keep_checkpoints=9), run, resume=20).steps == 20


def test_notices_are_warnings_by_default(run: Path) -> None:
    flip(run / "checkpoints" / "step-0000020" / "tensors.safetensors")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(config(), run, resume=True)
    assert "damaged" in str(caught[0].message)


def test_a_newer_schema_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "step-0000020" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": SCHEMA + 1}))
    with pytest.raises(CheckpointError, match="newer halikit"):
        trainer(config(), run, resume=True)


def test_the_clock_and_the_times_of_files_do_not_matter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, step in enumerate(steps_of(run)):
        os.utime(run / "checkpoints" / f"step-{step:07d}", (10**9 - number, 10**9 - number))
    monkeypatch.setattr("time.time", lambda: 0.0)
    again = trainer(config(training__steps=23), run, resume=True, on_notice=lambda _: None)
    assert again.steps == 20
    again.fit()
    with (run / "metrics.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)
