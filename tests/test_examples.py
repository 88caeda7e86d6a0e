"""The examples run, and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_custom_kernel(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "custom_kernel.py"))
    untrained, trained = (example["main"](steps) for steps in (2, 600))
    assert trained < 0.2 < untrained
    example["main"](4, out=str(tmp_path / "run"))
    import halikit as hk

    model = hk.load(tmp_path / "run", build=example["build"])
    assert model.hierarchy.sample(5).shape == (5, 2)


def test_the_readme_example_builds_what_it_says() -> None:
    text = (EXAMPLES.parent / "README.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    model = names["model"]
    assert str(model.hierarchy.encoder) == "T_{z2|z1} ∘ T_{z1|x}"
    states = model.hierarchy.encode(torch.randn(4, 64))
    assert model.discriminator(states).shape == (4,)
