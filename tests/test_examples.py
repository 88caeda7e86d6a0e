"""The examples run, and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from children import _no_child_survives as _no_child_survives
from test_processes import launch, succeed

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_custom_kernel(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "custom_kernel.py"))
    untrained, trained = (example["main"](steps) for steps in (2, 600))
    assert trained < 0.2 < untrained
    example["main"](4, out=str(tmp_path / "run"))
    import halikit as hk

    model = hk.load(tmp_path / "run", build=example["build"])
    assert model.hierarchy.sample(5).shape == (5, 2)
    hk.testing.check_kernel(model.hierarchy.links[0].down)


@pytest.mark.filterwarnings("ignore:the encoder does not recover")
def test_a_learned_mixture_prior_puts_samples_into_clusters() -> None:
    example = runpy.run_path(str(EXAMPLES / "mixture_prior.py"))
    untrained, trained = (example["main"](steps) for steps in (2, 250))
    assert untrained < 0.1 < 0.2 < trained


@pytest.mark.filterwarnings("ignore:samples have collapsed")
@pytest.mark.filterwarnings("ignore:the discriminator has known")
@pytest.mark.parametrize(
    ("name", "options", "pictures"),
    [
        ("five_levels", {"steps": 7}, ["five_levels.png"]),
        ("vectors", {"steps": 6}, []),
        ("own_images", {"steps": 3, "number": 80}, ["own_images.png"]),
        ("vae_ali_hali", {"steps": 6}, []),
        ("semi_supervised", {"steps": 6}, []),
        ("editing", {"steps": 6}, ["editing/innovation.png", "editing/inpainting.png", "editing/traversal.png"]),
        ("pyro_inference", {"steps": 4}, []),
    ],
)
def test_example(
    name: str, options: dict[str, int], pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**options)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == pictures


def test_two_processes(tmp_path: Path) -> None:
    def run(rank: int) -> None:
        error = runpy.run_path(str(EXAMPLES / "two_processes.py"))["main"](steps=4, out=tmp_path / "run")
        (tmp_path / f"{rank}.txt").write_text(repr(error))

    succeed(launch(run, tmp_path))
    # One model: both have the same one, to the last bit.
    assert len({(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}) == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_readme_example_builds_what_it_says() -> None:
    text = (EXAMPLES.parent / "README.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    model = names["model"]
    assert str(model.hierarchy.encoder) == "T_{z2|z1} ∘ T_{z1|x}"
    states = model.hierarchy.encode(torch.randn(4, 64))
    assert model.discriminator(states).shape == (4,)
