"""Health: known two-sample problems, latents that are used or not, and how far samples are from data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Shell, linear_hierarchy
from torch import nn

import halikit as hk
from halikit.analysis.health import examine, information
from halikit.analysis.sample_quality import frechet_distance, kernel_distance, manifolds, onnx_features
from halikit.analysis.two_sample import two_sample_test
from halikit.config import Config, ModelSettings, TrainingSettings
from halikit.errors import InputError


class Affine(nn.Module):
    """``w v``, from ``(n, d)`` to ``(n, d)``."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.weight * given


def matched(weights: tuple[float, ...], size: int = 3) -> hk.Hierarchy:
    """Levels ``z_l = w z_{l−1} + √(1 − w²) ε`` and the same back: on standard normal data both joints agree."""
    spaces = [hk.Space(name, (size,)) for name in ("x", "z1", "z2", "z3")[: len(weights) + 1]]

    def kernel(source: hk.Space, target: hk.Space, w: float) -> hk.Kernel:
        return hk.GaussianKernel(source, target, Affine(w), scale=math.sqrt(1 - w**2))

    pairs = zip(spaces, spaces[1:], weights, strict=False)
    return hk.Hierarchy([hk.Link(kernel(a, b, w), kernel(b, a, w)) for a, b, w in pairs]).eval()


def test_alike_and_unlike_sets() -> None:
    a, b = torch.randn(2, 1000, 2)
    alike = two_sample_test(a, b)
    assert abs(alike.js_bound.value) < 0.02
    assert alike.p_value > 0.001
    # D_JS of two normal distributions three standard deviations apart is 0.494 nats.
    unlike = two_sample_test(a, b + torch.tensor([3.0, 0.0]))
    assert 0.35 < unlike.js_bound.value < 0.494 + 4 * unlike.js_bound.standard_error
    assert unlike.p_value < 1e-10
    assert unlike.accuracy.value == pytest.approx(0.933, abs=0.03)
    assert (unlike.js_bound.kind, unlike.accuracy.kind) == ("lower bound", "estimate")
    with pytest.raises(ValueError, match="one size"):
        two_sample_test(a, b[:, :1])


def test_the_bound_on_information_lies_below_and_near() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 3)
    for w in (0.5, 0.9):
        means = w * x
        z = means + math.sqrt(1 - w**2) * torch.randn_like(x)
        exact = -1.5 * math.log(1 - w**2)
        bound = information(means, z)
        assert bound.kind == "lower bound"
        assert 0.8 * exact - 0.05 < bound.value < exact + 4 * bound.standard_error
    nothing = information(torch.zeros_like(x), torch.randn_like(x))
    assert nothing.value == pytest.approx(0, abs=1e-9)
    assert information(x, x).value == pytest.approx(math.log(128))


def test_a_healthy_hierarchy_raises_no_alarm() -> None:
    torch.manual_seed(1)
    found = examine(matched((0.95, 0.9)), torch.randn(1500, 3))
    assert found.alarms == ()
    for level in found.levels:
        assert abs(level.aggregate.js_bound.value) < 0.02
        assert abs(level.pair.js_bound.value) < 0.02
        assert level.error_shuffled.value > 1.5 * level.error.value
        assert level.dead == 0
    assert found.levels[0].information.value > found.levels[1].information.value > 1
    assert found.spread == pytest.approx(1, abs=0.05)


def test_a_latent_that_says_nothing_is_found() -> None:
    found = examine(matched((0.95, 0.0)), torch.randn(600, 3))
    assert [alarm.split()[0] for alarm in found.alarms] == ["z2"] * 4
    assert "ignored by the encoder" in found.alarms[0]
    assert "not recovered" in found.alarms[1]
    assert "ignored by the decoder" in found.alarms[2]
    assert "100% hardly vary" in found.alarms[3]
    assert found.levels[1].information.value < 0.1 < found.levels[0].information.value


def test_joints_that_differ_and_samples_that_are_alike_are_found() -> None:
    hierarchy = matched((0.95, 0.9))
    shifted = examine(hierarchy, torch.randn(600, 3) * 0.3 + 4)
    assert any("joints differ at level 1" in alarm for alarm in shifted.alarms)
    wide = examine(hierarchy, 5 * torch.randn(600, 3))
    assert any("samples have collapsed" in alarm for alarm in wide.alarms)
    few = examine(linear_hierarchy(1), torch.randn(40, 3, dtype=torch.float64))
    assert few.levels[0].information is None


def test_precision_recall_density_and_coverage() -> None:
    torch.manual_seed(0)
    data = torch.randn(1200, 2)
    same = manifolds(data, torch.randn(1200, 2))
    assert min(same.precision.value, same.recall.value, same.coverage.value) > 0.9
    assert same.density.value == pytest.approx(1, abs=0.1)
    # Half of the data is missed: samples are fine, recall and coverage are not.
    half = manifolds(data, torch.cat([x := torch.randn(1200, 1).abs(), torch.randn_like(x)], 1))
    assert half.precision.value > 0.9
    assert half.recall.value < 0.7
    assert 0.4 < half.coverage.value < 0.65
    far = manifolds(data, data + 50)
    assert far.precision.value == far.recall.value == far.coverage.value == far.density.value == 0
    with pytest.raises(ValueError, match="more than 5 points"):
        manifolds(data[:5], data)


def test_frechet_and_kernel_distances() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 20_000, 3)
    assert frechet_distance(a, a).value == pytest.approx(0, abs=1e-9)
    # ‖μ − ν‖² + Σ (s − t)² for axis-aligned Gaussians.
    found = frechet_distance(a, 2 * b + torch.tensor([1.0, 0.0, 0.0]))
    assert found.value == pytest.approx(1 + 3, rel=0.05)
    same = kernel_distance(a[:2000], b[:2000])
    assert abs(same.value) < 4 * same.standard_error
    assert kernel_distance(a[:2000], b[:2000] + 1).value > 10 * abs(same.value)


def test_feature_networks_in_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, 4, 4])
    pooled = onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, ["n", 1, 1, 1])
    node = onnx.helper.make_node("GlobalAveragePool", ["image"], ["pooled"])
    graph = onnx.helper.make_graph([node], "g", [image], [pooled])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "f.onnx")
    features = onnx_features(tmp_path / "f.onnx")
    images = torch.rand(5, 1, 4, 4)
    torch.testing.assert_close(features(images), images.mean((2, 3)))
    with pytest.raises(InputError, match="does not take images"):
        features(torch.rand(5, 3, 4, 4))
    with pytest.raises(InputError, match="cannot read the feature network"):
        onnx_features(tmp_path / "none.onnx")


def test_the_commands(halikit: Shell, tmp_path: Path) -> None:
    config = Config(model=ModelSettings(levels=2, data_shape=(1, 8, 8), hidden=16), training=TrainingSettings(steps=4))
    run = tmp_path / "run"
    hk.Trainer(hk.build(config), "digits", out=run).fit()
    said = json.loads(halikit("evaluate", "health", run, "--json"))
    assert [level["information"]["kind"] for level in said["levels"]] == ["lower bound"] * 2
    assert Path(said["path"]).is_file()
    # Four steps have taught it nothing, and it says so.
    assert said["alarms"]
    said = json.loads(halikit("evaluate", "samples", run, "--json"))
    assert {name: said[name]["kind"] for name in ("precision", "recall", "density", "coverage")} == dict.fromkeys(
        ("precision", "recall", "density", "coverage"), "estimate"
    )
    complaint = halikit("evaluate", "samples", run, "--features", "no.onnx", code=2)
    assert "feature network" in complaint
