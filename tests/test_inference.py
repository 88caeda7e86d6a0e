"""Trained hierarchies in use: in batches, compiled, and as files of other formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Shell, UniformKernel, density_ladder, gaussian
from torch import Tensor

import halikit as hk
from halikit.analysis.features import encoded
from halikit.analysis.inference import Inference
from halikit.config import Config, override
from halikit.data import Split
from halikit.errors import InputError
from halikit.runs.export import Exported, export

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

SHAPE = (1, 16, 16)


def batch(shape: tuple[int, ...], n: int = 12) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1)).tanh()


@pytest.fixture(scope="module")
def hierarchy() -> hk.Hierarchy:
    torch.manual_seed(0)
    return density_ladder(2, SHAPE, family="conv")


def test_batches_give_what_the_hierarchy_gives(hierarchy: hk.Hierarchy) -> None:
    x = batch(SHAPE, 11)
    inference = Inference(hierarchy, batch_size=4)
    with torch.no_grad():
        states = hierarchy.encode(x)
        found = inference.encode(x)
        assert list(found) == list(states)
        for name, state in states.items():
            torch.testing.assert_close(found[name], state)
        for level in (1, 2):
            z = states[f"z{level}"]
            for name, state in hierarchy.decode(z, level).items():
                torch.testing.assert_close(inference.decode(z, level)[name], state)
            torch.testing.assert_close(inference.reconstruct(x, level), hierarchy.reconstruct(x, level))


def test_results_are_ordinary_tensors(hierarchy: hk.Hierarchy) -> None:
    z = Inference(hierarchy).encode(batch(SHAPE))["z1"].requires_grad_()
    (gradient,) = torch.autograd.grad(z.square().sum(), z)
    torch.testing.assert_close(gradient, 2 * z.detach())


def test_samples_are_those_of_the_hierarchy_batch_by_batch(hierarchy: hk.Hierarchy) -> None:
    torch.manual_seed(3)
    expected = torch.cat([hierarchy.sample(size) for size in (4, 4, 1)])
    torch.manual_seed(3)
    found = Inference(hierarchy, batch_size=4).sample(9)
    torch.testing.assert_close(found, expected.detach())
    twice = [Inference(hierarchy, batch_size=4).sample(9, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    torch.testing.assert_close(*twice, rtol=0, atol=0)
    assert not torch.equal(twice[0], found)


def test_no_batch_is_larger_than_asked_for(hierarchy: hk.Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = hk.Hierarchy.encode

    def spy(self: hk.Hierarchy, x: Tensor, **options: object) -> dict[str, Tensor]:
        sizes.append(len(x))
        return original(self, x, **options)

    monkeypatch.setattr(hk.Hierarchy, "encode", spy)
    Inference(hierarchy, batch_size=4).encode(batch(SHAPE, 10))
    assert sizes == [4, 4, 2]


def test_compiled_inference_is_the_same_and_compiled_once(
    hierarchy: hk.Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    compile_ = torch.compile

    def traced(function: object, *, mode: str) -> object:
        made.append(1)
        return compile_(function, backend="aot_eager", dynamic=False)

    monkeypatch.setattr(torch, "compile", traced)
    x = batch(SHAPE, 10)
    part = Split(x)
    compiled = [states["z2"] for _, states in encoded(hierarchy, part, batch_size=4, compile="default")]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    inference = Inference(hierarchy, batch_size=4, compile="default")
    for _ in range(2):
        found = inference.encode(x)["z2"]
    assert before > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= before + 1
    assert len(made) == 2
    with torch.no_grad():
        expected = hierarchy.encode(x)["z2"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.cat(compiled), expected)


def test_what_inference_cannot_do_is_refused(hierarchy: hk.Hierarchy) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Inference(hierarchy, batch_size=0)
    with pytest.raises(ValueError, match="evaluation mode"):
        Inference(hk.ladder(1, (4,)).train())
    with pytest.raises(ValueError, match="between 1 and 2"):
        Inference(hierarchy).reconstruct(batch(SHAPE), 3)


# --- files ------------------------------------------------------------------------------------------------------------


def check(files: list[Exported], levels: int) -> None:
    names = [(file.path.stem, file.given, file.gives) for file in files]
    latents = [f"z{level}" for level in range(1, levels + 1)]
    assert names == [("encoder", "x", tuple(latents)), *((f"decoder-{z}", z, ("x",)) for z in latents)]
    assert all(file.difference < 1e-5 for file in files)


def test_programs_run_without_halikit_on_any_number_of_data(hierarchy: hk.Hierarchy, tmp_path: Path) -> None:
    files = export(hierarchy, tmp_path / "made", format="pt2")
    check(files, 2)
    encoder, *decoders = (torch.export.load(file.path).module() for file in files)
    for n in (1, 9):
        x = batch(SHAPE, n)
        with torch.no_grad():
            for found, z in zip(encoder(x), list(hierarchy.encode(x).values())[1:], strict=True):
                torch.testing.assert_close(found, z)
            for level, decoder in enumerate(decoders, 1):
                z = hierarchy.encode(x)[f"z{level}"]
                torch.testing.assert_close(decoder(z)[0], hierarchy.decode(z, level)["x"])


def test_onnx_runs_elsewhere_on_any_number_of_data(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    hierarchy = density_ladder(1, SHAPE, family="conv")
    files = export(hierarchy, tmp_path, format="onnx")
    check(files, 1)
    session = runtime.InferenceSession(files[0].path, providers=["CPUExecutionProvider"])
    for n in (1, 9):
        x = batch(SHAPE, n)
        (found,) = session.run(["z1"], {"x": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), hierarchy.encode(x)["z1"], rtol=1e-4, atol=1e-5)


def test_a_kernel_without_a_mean_is_not_exported(tmp_path: Path) -> None:
    x, z = hk.Space("x", (3,)), hk.Space("z1", (2,))
    drawing = hk.Hierarchy([hk.Link(UniformKernel(x, z), gaussian(z, x))]).eval()
    with pytest.raises(InputError, match=r"T_\{z1\|x\} does not know its mean"):
        export(drawing, tmp_path, format="pt2")
    with pytest.raises(InputError, match="evaluation mode"):
        export(drawing.train(), tmp_path, format="pt2")
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_trace_is_refused_with_its_reason(tmp_path: Path) -> None:
    x, z = hk.Space("x", (3,)), hk.Space("z1", (2,))

    class Branching(torch.nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return given[:, :2] if given.sum().item() > 0 else given[:, 1:]

    branching = hk.Hierarchy([hk.Link(hk.DeterministicKernel(x, z, Branching()), gaussian(z, x))]).eval()
    with pytest.raises(InputError, match="cannot export the encoder"):
        export(branching, tmp_path, format="pt2")


def test_the_command(tmp_path: Path, halikit: Shell) -> None:
    run = tmp_path / "run"
    config = override(Config(), {"levels": 1, "data_shape": (1, 8, 8), "hidden": 16, "steps": 2, "batch_size": 12})
    hk.Trainer(hk.build(config), "digits", out=run).fit()
    said = json.loads(halikit("export", run, "--format", "pt2", "--json"))
    assert [Path(file["path"]).name for file in said["files"]] == ["encoder.pt2", "decoder-z1.pt2"]
    assert all(Path(file["path"]).is_file() and file["difference"] < 1e-5 for file in said["files"])
    assert said["path"] == str(run / "export")
    assert "compile is one of" in halikit("encode", run, "--compile", "fast", code=2)
    assert "no directory" in halikit("export", run, "--out", tmp_path / "no" / "where", code=2)
