"""Sizes of convolutional stacks: what they are, which one is chosen, and who refuses them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import Shell
from hypothesis import given
from hypothesis import strategies as st

import halikit as hk
from halikit.config import Config, override
from halikit.hardware import memory, processes
from halikit.hardware.memory import device_memory
from halikit.model import resolved
from halikit.networks.sizes import SIZES, fitting_size
from halikit.presets.families import conv

GIB = 2**30
CONV = ("train", "--levels", 2, "--set", "model.family=conv")


def config(**changes: object) -> Config:
    return override(conv(2), {"model.data_shape": (1, 16, 16), "model.family": "conv"} | changes)


def choices(text: str) -> dict[str, object]:
    """What a printed config says of the size."""
    printed = tomllib.loads(text)
    model = {name: printed["model"].get(name) for name in ("size", "hidden", "depth", "units")}
    return model | {"width": printed["discriminator"].get("width")}


def expected(name: str) -> dict[str, object]:
    size = SIZES[name]
    numbers = {"hidden": size.hidden, "depth": size.depth, "units": size.dense, "width": size.discriminator}
    return {"size": name} | numbers


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "gibibytes", "images", "size"),
    [
        ("cpu", 0, 100, "tiny"),
        ("cpu", 1000, 10**7, "tiny"),
        ("cuda", 80, 100, "small"),
        ("cuda", 80, 9_999, "small"),
        ("cuda", 80, 10_000, "base"),
        ("cuda", 80, 199_999, "base"),
        ("cuda", 80, 200_000, "large"),
        ("mps", 80, 200_000, "large"),
        ("cuda", 24, 200_000, "large"),
        ("cuda", 23, 200_000, "base"),
        ("cuda", 7, 200_000, "small"),
        ("cuda", 6, 10_000, "small"),
        ("cuda", 5, 200_000, "tiny"),
    ],
)
def test_the_size_follows_device_memory_and_images(device: str, gibibytes: int, images: int, size: str) -> None:
    assert fitting_size(device, gibibytes * GIB, images) == size


@given(st.sampled_from(["cuda", "xpu"]), *[st.integers(0, 100 * GIB)] * 2, *[st.integers(2, 10**6)] * 2)
def test_more_memory_or_images_never_give_a_smaller_size(device: str, a: int, b: int, few: int, many: int) -> None:
    order = list(SIZES)
    small, large = (fitting_size(device, f(a, b), f(few, many)) for f in (min, max))
    assert order.index(small) <= order.index(large)


def test_the_cpu_has_no_memory_of_its_own() -> None:
    assert device_memory(torch.device("cpu")) == 0


def test_all_gpus_count_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes with different GPUs must build the same networks."""

    class Properties:
        def __init__(self, index: int) -> None:
            self.total_memory = (24, 8, 16)[index] * GIB

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    found = [device_memory(torch.device(name)) / GIB for name in ("cuda", "cuda:0", "cuda:2")]
    assert found == [8, 24, 16]


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, *SIZES])
def test_a_model_has_the_networks_of_its_size(name: str | None) -> None:
    """Tiny where no size is said. The discriminator follows, whether the config has been resolved or not."""
    unresolved = config(**{"model.size": name})
    for each in (unresolved, resolved(unresolved)):
        with torch.device("meta"):
            model = hk.build(each)
        layers = [m for m in model.hierarchy.links[0].down.modules() if isinstance(m, torch.nn.Conv2d)]
        size = SIZES[name or "tiny"]
        assert {m.in_channels for m in layers} >= {size.hidden}
        assert model.discriminator.head[-1].in_features == size.discriminator
        linear = [m for m in model.hierarchy.links[1].up.modules() if isinstance(m, torch.nn.Linear)]
        assert linear[0].out_features == size.dense


def test_larger_sizes_have_more_weights() -> None:
    numbers = []
    for name in SIZES:
        with torch.device("meta"):
            model = hk.build(config(**{"model.size": name}))
        numbers.append([sum(p.numel() for p in part.parameters()) for part in model.parts.values()])
    assert all(
        a < b
        for smaller, larger in zip(numbers, numbers[1:], strict=False)
        for a, b in zip(smaller, larger, strict=True)
    )


def test_a_setting_of_its_own_wins_over_the_size() -> None:
    changes = {"model.size": "base", "model.hidden": 5, "discriminator.width": 7}
    settings = resolved(config(**changes))
    assert (settings.model.hidden, settings.model.units, settings.discriminator.width) == (5, SIZES["base"].dense, 7)
    assert hk.build(settings).discriminator.head[-1].in_features == 7


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_size_is_tiny_on_a_cpu_and_written(halikit: Shell) -> None:
    for options in ((), ("--model-size", "auto"), ("--model-size", "tiny")):
        assert choices(halikit(*CONV, "--dry-run", "--device", "cpu", *options)) == expected("tiny")
    assert choices(halikit(*CONV, "--dry-run", "--model-size", "large")) == expected("large")


def test_the_size_of_a_gpu_is_that_of_its_memory_and_the_images(
    halikit: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(memory, "device_memory", lambda device: 80 * GIB)
    assert choices(halikit(*CONV, "--dry-run")) == expected("small")
    monkeypatch.setattr(memory, "device_memory", lambda device: GIB)
    assert choices(halikit(*CONV, "--dry-run")) == expected("tiny")


def test_a_size_replaces_that_of_a_file_and_not_what_is_set(halikit: Shell, tmp_path: Path) -> None:
    file = tmp_path / "base.toml"
    file.write_text(halikit(*CONV, "--dry-run", "--model-size", "base"))
    again = ("train", "--config", file, "--dry-run", "--device", "cpu")
    assert choices(halikit(*again)) == expected("base")
    assert choices(halikit(*again, "--model-size", "auto")) == expected("tiny")
    assert choices(halikit(*again, "--model-size", "small", "--set", "units=9")) == expected("small") | {"units": 9}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--model-size", "base"), "it is for family = 'conv'"),
        (("--levels", 2, "--model-size", "tiny"), "it is for family = 'conv'"),
        (("--levels", 2, "--set", "model.family=mixed", "--model-size", "tiny"), "it is for family = 'conv'"),
        (("--preset", "mnist", "--model-size", "large"), "it is for family = 'conv'"),
        (("--preset", "cifar10", "--model-size", "base"), "the paper's networks are those of Table 4"),
        ((*CONV[1:], "--model-size", "huge"), "--model-size is one of tiny, small, base, large, auto; got 'huge'"),
    ],
)
def test_other_stacks_and_other_sizes_are_refused(halikit: Shell, options: tuple[object, ...], reason: str) -> None:
    (line,) = halikit("train", "--dry-run", *options, code=2).strip().splitlines()
    assert reason in line


def test_auto_is_the_default_everywhere(halikit: Shell) -> None:
    printed = halikit("train", "--dry-run")
    assert halikit("train", "--dry-run", "--model-size", "auto") == printed
    assert "size" not in tomllib.loads(printed)["model"]


def test_a_run_says_its_size_and_goes_on_with_it(halikit: Shell, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = ("--batch-size", 16, "--set", "evaluate_every=2", "--set", "units=16", "--out", run)
    said = halikit(*CONV, "--steps", 2, "--model-size", "small", "--set", "hidden=4", *quick)
    (plan,) = (line for line in said.splitlines() if line.startswith("plan"))
    assert "2 steps of 16 at size small" in plan
    assert choices((run / "config.toml").read_text()) == expected("small") | {"hidden": 4, "units": 16}
    assert "size small" in halikit("inspect", run)
    assert json.loads(halikit("inspect", run, "--json"))["size"] == "small"
    said = halikit("train", "--resume", "--steps", 4, "--model-size", "auto", "--out", run)
    assert "4 steps of 16 at size small" in said
    complaint = halikit("train", "--resume", "--steps", 6, "--model-size", "base", "--out", run, code=2)
    assert 'model.size: "small" → "base"' in complaint


def test_listings_know_sizes(halikit: Shell) -> None:
    listed = halikit("presets")
    for name, size in SIZES.items():
        (line,) = (line for line in listed.splitlines() if line.split()[:1] == [name])
        assert line.split()[1:] == [str(number) for number in size]
    assert "--model-size" in halikit("train", "--help")
    assert json.loads(halikit("inspect", "digits", "--json"))["size"] is None
