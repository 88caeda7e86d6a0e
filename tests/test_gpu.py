"""What a GPU computes, beside a CPU and beside itself by other settings: ``pytest -m gpu``, in two minutes.

Without a GPU the tests are skipped. ``HALIKIT_GPU_TESTS=cpu`` plays them on the CPU instead: a test of the tests. Two
devices draw different noise from one seed, so noise is replaced by a fixed pattern wherever two steps are compared.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import gradients, relative_error
from torch import Tensor

import halikit as hk
from halikit.analysis.inference import Inference
from halikit.config import Config, override
from halikit.data import Augmentation, Split
from halikit.presets import families
from halikit.runs.export import export
from halikit.training.batches import Batches

KIND = os.environ.get("HALIKIT_GPU_TESTS", "cuda")
DEVICE = torch.device(KIND)
HAS_CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(KIND == "cuda" and not HAS_CUDA, reason="these tests need a GPU, or HALIKIT_GPU_TESTS=cpu"),
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:this CPU has no"),
    pytest.mark.usefixtures("exact_products"),
]
only_cuda = pytest.mark.skipif(KIND != "cuda", reason="CUDA alone has it")

N, EXACT = 12, 1e-8
PLAIN = {"hidden": 8, "discriminator.width": 16, "batch_size": N, "precision": "32", "compile": None, "steps": 8}
SILENT = {"dropout": 0.0, "input_noise": 0.0, "encoder_noise": 0.0}
DENSE = override(families.dense(2), {"data_shape": (1, 8, 8), "widths": (6, 5), **PLAIN, **SILENT})
CONV = override(
    families.conv(2),
    {"data_shape": (3, 16, 16), "maps": 1, "units": 16, "penalty_every": 1, "latent_noise": 0.0, **PLAIN, **SILENT},
)
configs = pytest.mark.parametrize("config", [DENSE, CONV], ids=["dense", "conv"])


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Single precision without TF32."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def pattern(shape: torch.Size, like: Tensor) -> Tensor:
    """Numbers with mean 0 and variance 1, nearly, and no two rows alike."""
    n = shape.numel()
    return (torch.arange(n, device=like.device).to(like.dtype) * 1.7 + 0.3).cos().view(shape) * 2**0.5


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels and the prior take a pattern for their noise."""

    def sample(self: hk.GaussianKernel, given: Tensor, *, generator: object = None) -> Tensor:
        mean, scale = self.moments(given)
        return mean + scale * pattern(mean.shape, mean)

    def draw(self: hk.priors.StandardNormal, n: int, *, generator: object = None) -> Tensor:
        parameter = next(iter(self.buffers()))
        return pattern(torch.Size([n, *self.space.shape]), parameter)

    def normal(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return pattern(shape, torch.empty((), dtype=dtype, device=device))

    monkeypatch.setattr(hk.GaussianKernel, "sample", sample)
    monkeypatch.setattr(hk.priors.StandardNormal, "sample", draw)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", normal)


def images(config: Config, n: int = N) -> Tensor:
    return torch.rand(n, *config.model.data_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trained(config: Config, steps: int = 1, device: str = KIND, **settings: object) -> hk.Trainer:
    """After some steps from the same weights on the same batch."""
    torch.manual_seed(0)
    trainer = hk.Trainer(hk.build(override(config, {"device": device, **settings})), on_notice=lambda said: None)
    for _ in range(steps):
        trainer.step(images(config))
    return trainer


def of_both(trainer: hk.Trainer) -> list[Tensor | None]:
    """The gradients of both players, on the CPU."""
    found = [gradient for part in trainer.model.parts.values() for gradient in gradients(part)]
    return [None if gradient is None else gradient.cpu() for gradient in found]


def all_weights(trainer: hk.Trainer) -> list[Tensor]:
    modules = (*trainer.model.parts.values(), trainer.averaged)
    return [tensor.cpu() for module in modules for tensor in module.state_dict().values()]


# --- a step -----------------------------------------------------------------------------------------------------------

BOUND = {"training.method": "elbo", "gauge": None, "max_scale": None, "observation_scale": 0.5}
OPTIONS = {
    "game": {},
    "micro-batches": {"accumulate": 2},
    "recompute": {"recompute": True},
    "cycle": {"cycle_weight": 1.0},
    "Wasserstein": {"objective": "wasserstein", "penalised_joint": "both"},
    "running statistics": {"sleep_statistics": "running"},
    "evidence bound": BOUND,
}


@pytest.mark.usefixtures("fixed_noise")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@configs
def test_a_step_in_float64_is_that_of_the_cpu(config: Config, options: dict[str, object]) -> None:
    settings = options | {"precision": "64"}
    found, expected = trained(config, **settings), trained(config, device="cpu", **settings)
    assert relative_error(of_both(found), of_both(expected)) < EXACT
    torch.testing.assert_close(all_weights(found), all_weights(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("fixed_noise")
@configs
def test_a_step_in_float32_is_close_to_float64(config: Config) -> None:
    single, double = (of_both(trained(config, precision=precision)) for precision in ("32", "64"))
    assert relative_error(single, double) < 1e-3


@pytest.mark.usefixtures("fixed_noise")
@configs
def test_a_step_in_bfloat16_is_close_to_float32(config: Config) -> None:
    """Gradients point the same way; weights and gradients stay in single precision."""
    single, half = (of_both(trained(config, precision=precision)) for precision in ("32", "bf16"))
    flat = [torch.cat([g.flatten() for g in found if g is not None]) for found in (single, half)]
    assert flat[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*flat, 0) > 0.98


@pytest.mark.usefixtures("fixed_noise")
def test_channels_last_changes_rounding_alone() -> None:
    plain, last = (
        of_both(trained(CONV, precision="64", memory_format=layout)) for layout in ("contiguous", "channels_last")
    )
    assert relative_error(last, plain) < EXACT


@only_cuda
@pytest.mark.parametrize("precision", ["32", "bf16"])
@configs
def test_no_step_waits_for_the_device(config: Config, precision: str) -> None:
    """Under torch's own watch, with all noise on."""
    trainer = trained(config, precision=precision, dropout=0.1, input_noise=0.1, encoder_noise=0.1)
    x = images(config).to(DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            trainer.step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32", "bf16"])
@configs
def test_training_is_finite(config: Config, precision: str) -> None:
    """With all noise on, the averages follow and no step is skipped."""
    trainer = trained(config, 5, precision=precision, dropout=0.1, input_noise=0.1, encoder_noise=0.1)
    losses = trainer.step(images(config))
    assert all(loss.isfinite() for loss in losses.values())
    assert all(tensor.isfinite().all() for tensor in all_weights(trainer))


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions and interpolation have deterministic forms, which are slower."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["32", "bf16"])
@configs
def test_a_resumed_run_is_byte_identical(config: Config, precision: str, tmp_path: Path) -> None:
    changes = {"device": KIND, "precision": precision, "evaluate_every": 4, "checkpoint_every": 2}
    config = override(config, changes | {"dropout": 0.1, "input_noise": 0.1})

    def model(resume: int | bool) -> bytes:
        """What four steps lead to, or two steps after a checkpoint."""
        torch.manual_seed(0)
        given = hk.build(config)
        trainer = hk.Trainer(given, images(config, 60), out=tmp_path, resume=resume, on_notice=lambda said: None)
        trainer.fit(4 - trainer.steps)
        return (tmp_path / "model.safetensors").read_bytes()

    whole = model(False)
    (tmp_path / "model.safetensors").unlink()
    assert model(2) == whole


def test_batches_from_the_host_are_those_on_the_device() -> None:
    """Read ahead by a thread from pinned memory, and augmented on the device."""
    data = hk.data.from_tensor(images(CONV, 60))
    part = Split((torch.rand(60, *CONV.model.data_shape) * 255).to(torch.uint8))
    augmentation = Augmentation(flip=True, shift=2, rotate=10)
    hardware = trained(CONV, 0).hardware
    found = []
    for resident, prefetch in ((True, 0), (False, 2)):
        placed = type(data)(data.spec, data.shape, (), part.to(DEVICE, resident=resident), None, part)
        batches = Batches(placed, augmentation, hardware, size=N, seed=0, prefetch=prefetch)
        with batches.starting_at(0) as prepared:
            found.append([next(prepared).x.clone() for _ in range(7)])
    assert all(x.device.type == KIND for x in found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fixed_noise")
@configs
def test_inference_is_that_of_the_cpu(config: Config) -> None:
    """Data in the host's memory, batch by batch, in double precision."""
    x = images(config, 10).double()
    results = []
    for device in (KIND, "cpu"):
        inference = Inference(trained(config, 0, device, precision="64").averaged, batch_size=4)
        states = inference.encode(x)
        results.append([*states.values(), inference.reconstruct(x), inference.reconstruct(x, 1)])
        assert all(result.device.type == "cpu" for result in results[-1])
        results[-1].append(inference.sample(10).cpu())
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


@configs
def test_a_model_on_the_device_is_exported(config: Config, tmp_path: Path) -> None:
    exported = export(trained(config, 1).averaged, tmp_path, format="pt2")
    assert len(exported) == 3
    assert all(file.difference < 1e-4 for file in exported)


def test_a_model_moves_between_devices(tmp_path: Path) -> None:
    """Trained on one, loaded on the other."""
    config = override(DENSE, {"device": KIND})
    hk.Trainer(hk.build(config), images(config, 60), out=tmp_path / "run").fit(2)
    x = images(config)
    there, here = (hk.load(tmp_path / "run", device=device).hierarchy for device in (KIND, "cpu"))
    with torch.no_grad():
        torch.testing.assert_close(there.reconstruct(x.to(DEVICE)).cpu(), here.reconstruct(x), rtol=1e-3, atol=1e-4)


# --- compiled: last, because it takes longest -------------------------------------------------------------------------


@only_cuda
def test_noise_differs_between_the_steps_of_a_cuda_graph() -> None:
    """The seed of a step reaches the graph: frozen weights, and other losses in each step."""
    config = override(DENSE, {"learning_rate": 1e-30, "discriminator_learning_rate": 1e-30, "encoder_noise": 0.2})
    trainer = trained(config, 2, compile="reduce-overhead")
    losses = [float(trainer.step(images(config))["d_loss"]) for _ in range(4)]
    assert len(set(losses)) == 4


@pytest.mark.skipif(KIND == "cpu" and shutil.which("g++") is None, reason="a CPU's machine code is made by g++")
def test_compiled_inference_is_the_eager_one() -> None:
    hierarchy, x = trained(DENSE, 0).averaged, images(DENSE, 10)
    plain, compiled = Inference(hierarchy, batch_size=4), Inference(hierarchy, batch_size=4, compile="default")
    torch.testing.assert_close(compiled.reconstruct(x), plain.reconstruct(x), rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(KIND == "cpu" and shutil.which("g++") is None, reason="a CPU's machine code is made by g++")
@pytest.mark.usefixtures("fixed_noise")
@pytest.mark.parametrize(
    ("config", "mode"),
    [
        pytest.param(DENSE, "default", id="dense-default"),
        pytest.param(DENSE, "reduce-overhead", id="dense-CUDA-graphs", marks=only_cuda),
        pytest.param(CONV, "reduce-overhead", id="conv-CUDA-graphs", marks=only_cuda),
        pytest.param(CONV, "max-autotune-no-cudagraphs", id="conv-max-autotune", marks=only_cuda),
    ],
)
def test_compiled_steps_are_the_eager_ones(config: Config, mode: str) -> None:
    """Four steps move all weights alike: a CUDA graph is recorded in the second and played from the third on."""
    start = all_weights(trained(config, 0))
    eager, compiled = (all_weights(trained(config, 4, compile=way)) for way in (None, mode))
    moves = [[b.double() - a.double() for a, b in zip(start, end, strict=True)] for end in (compiled, eager)]
    # Adam divides by the size of a gradient, which is rounding alone ahead of a batch normalisation.
    assert relative_error(*moves) < 0.01
