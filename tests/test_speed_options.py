"""Options that make training faster or smaller: none of them changes what is computed."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import gradients, relative_error, without_machine_code
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import halikit as hk
from halikit.algorithm import add_discriminator_gradients, add_generator_gradients, play
from halikit.config import Config, ConfigError, DiscriminatorSettings, ModelSettings, override, read_toml
from halikit.data import Prefetched
from halikit.errors import InputError
from halikit.networks.blocks import Convolution
from halikit.objectives import OBJECTIVES, Losses, jensen_shannon
from halikit.training.sleep import sleep_loss

# Torch's own compiler is full of them.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

EXACT = 1e-10
DENSE, CONV = (1, 8, 8), (1, 16, 16)

shapes = pytest.mark.parametrize("shape", [DENSE, CONV], ids=["dense", "conv"])


def small(shape: tuple[int, ...] = DENSE, levels: int = 2, **settings: object) -> hk.Model:
    """A tiny model, all of whose noise is on unless told otherwise."""
    torch.manual_seed(0)
    conv = shape == CONV
    family = "conv" if conv else "dense"
    sizes = {"widths": (4,) * levels, "hidden": 4 if conv else 16, "depth": 1}
    config = Config(
        model=ModelSettings(levels=levels, data_shape=shape, family=family, **sizes),
        discriminator=DiscriminatorSettings(width=16, weight_norm=True, family=family),
    )
    training = {"steps": 8, "batch_size": 12, "log_every": 2, "evaluate_every": 4, "checkpoint_every": 2}
    return hk.build(override(config, training | settings))


def batch(shape: tuple[int, ...] = DENSE, n: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1)).tanh().to(dtype)


def stepped(model: hk.Model, x: Tensor, steps: int = 1) -> hk.Trainer:
    trainer = hk.Trainer(model)
    for _ in range(steps):
        trainer.step(x)
    return trainer


def of_both(model: hk.Model) -> list[Tensor | None]:
    return [gradient for part in model.parts.values() for gradient in gradients(part)]


def weights(trainer: hk.Trainer) -> dict[str, Tensor]:
    modules = trainer.model.parts | {"averaged": trainer.averaged}
    return {f"{name}.{key}": value.clone() for name, m in modules.items() for key, value in m.state_dict().items()}


def assert_same(actual: hk.Trainer, expected: hk.Trainer, **tolerance: float) -> None:
    theirs = weights(expected)
    for name, value in weights(actual).items():
        torch.testing.assert_close(value, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def broken_off(model: hk.Model, again: hk.Model, path: Path) -> hk.Trainer:
    """Trained for five of its eight steps, and from the checkpoint of the fourth on by another trainer."""
    hk.Trainer(model, "digits", out=path).fit(5)
    shutil.rmtree(next((path / "checkpoints").glob("step-*5")))
    trainer = hk.Trainer(again, "digits", out=path, resume=True, on_notice=lambda said: None)
    assert trainer.steps == 4
    trainer.fit(4)
    return trainer


# --- steps as one graph -----------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything that compiling does but the machine code: it takes a second instead of a minute. Gives the graphs."""
    return without_machine_code(monkeypatch)


ALL = {"gradient_penalty": 0.1, "encoder_noise": 0.1, "compile": "default"}


@shapes
@pytest.mark.parametrize(
    "options",
    [{}, {"objective": "least_squares"}, {"discriminator_steps": 2}],
    ids=["one", "two", "d"],
)
@pytest.mark.usefixtures("traced")
def test_captured_steps_are_the_eager_ones(shape: tuple[int, ...], options: dict[str, object]) -> None:
    eager = stepped(small(shape, **ALL | options | {"compile": None}), batch(shape), 3)
    captured = stepped(small(shape, **ALL | options), batch(shape), 3)
    assert captured.method.single_pass == (not {"objective", "discriminator_steps"} & set(options))
    assert_same(captured, eager)


@shapes
@pytest.mark.usefixtures("traced")
def test_captured_micro_batches_are_the_eager_ones(shape: tuple[int, ...]) -> None:
    """In double precision: the losses of two micro-batches are added up in another order."""
    trainers = []
    for mode in (None, "default"):
        model = small(shape, **ALL | {"accumulate": 2, "compile": mode})
        for part in model.parts.values():
            part.double()
        trainers.append(stepped(model, batch(shape, dtype=torch.float64), 3))
    assert_same(*trainers, rtol=EXACT, atol=EXACT)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="machine code for the CPU is made by g++")
def test_machine_code_of_the_digits_preset_is_the_eager_step() -> None:
    """Wrong memory that the compiler takes for free shows at this size only."""
    x = batch(n=128)
    trainers = []
    for mode in (None, "default"):
        torch.manual_seed(0)
        config = override(hk.presets.digits(), {"compile": mode})
        trainers.append(stepped(hk.build(config), x))
    eager, compiled = (of_both(trainer.model) for trainer in trainers)
    # Ahead of a batch normalisation the gradient of a bias is nought, and what is computed is rounding.
    judged = [(a, b) for a, b in zip(compiled, eager, strict=True) if b is not None and b.norm() > 1e-6]
    assert len(judged) > 60
    assert max(float((a - b).norm() / b.norm()) for a, b in judged) < 1e-3


@pytest.mark.skipif(shutil.which("g++") is None, reason="machine code for the CPU is made by g++")
@pytest.mark.parametrize("shape", [DENSE, pytest.param(CONV, marks=pytest.mark.soak)], ids=["dense", "conv"])
def test_machine_code_has_the_same_gradients(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = []
    for mode in (None, "default"):
        # Of maps it may lay out noise in another way.
        model = small(shape, 1, **(SILENT if shape == CONV else {}), compile=mode)
        if shape == CONV:
            without_chance(model, monkeypatch)
        for part in model.parts.values():
            part.double()
        trainers.append(stepped(model, batch(shape, dtype=torch.float64)))
    eager, compiled = trainers
    assert relative_error(of_both(compiled.model), of_both(eager.model)) < EXACT


@pytest.mark.usefixtures("traced")
def test_captured_steps_resume(tmp_path: Path) -> None:
    options = {"compile": "default"}
    whole = hk.Trainer(small(levels=2, **options), "digits", out=tmp_path / "whole")
    whole.fit()
    assert_same(broken_off(small(levels=2, **options), small(levels=2, **options), tmp_path / "parts"), whole)
    eager = hk.Trainer(small(levels=2, **options | {"compile": None}), "digits")
    eager.fit()
    assert_same(whole, eager)


def test_falling_noise_captures_nothing_anew(traced: list[object]) -> None:
    trainer = hk.Trainer(small(levels=1, compile="default", final_input_noise=0.05))
    for _ in range(5):
        trainer.step(batch())
    assert trainer.model.discriminator.noise.scale == pytest.approx(0.2 - 0.15 * 4 / 8)
    assert len(traced) == 1
    trainer.step(batch(n=8))
    assert len(traced) == 2


@pytest.mark.usefixtures("traced")
def test_a_step_whose_course_depends_on_values_goes_on_eager() -> None:
    class Wavering(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out if out.sum() > 0 else -out

    def losses(mode: str | None) -> list[dict[str, Tensor]]:
        torch.manual_seed(3)
        x, z = hk.Space("x", (3,)), hk.Space("z", (2,))
        up, down = hk.GaussianKernel(x, z, Wavering(3, 4)), hk.GaussianKernel(z, x, nn.Linear(2, 6))
        hierarchy = hk.Hierarchy([hk.Link(up, down)])
        model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=4))
        settings = override(Config(), {"compile": mode, "steps": 2})
        trainer = hk.Trainer(model, settings=settings, on_notice=notices.append)
        return [trainer.step(torch.ones(6, 3)) for _ in range(2)]

    notices: list[str] = []
    assert losses("default") == losses(None)
    (notice,) = notices
    assert "steps are not compiled from here on: RuntimeError" in notice


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def compile_(*_: object, **__: object) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor, "compile", compile_)
    with pytest.warns(UserWarning, match=r"needs a C\+\+ compiler"):
        hk.Trainer(small(compile="default")).step(batch())


@pytest.mark.parametrize(
    ("steps", "has_compiler", "changes", "mode"),
    [
        (3000, True, {}, "default"),
        (2999, True, {}, None),
        (3000, False, {}, None),
        (3000, True, {"recompute": True}, None),
        (3000, True, {"shape": CONV}, None),
        (10, True, {"compile": "default"}, "default"),
        (10_000, True, {"compile": None}, None),
    ],
)
def test_steps_are_compiled_where_it_pays(
    steps: int,
    has_compiler: bool,
    changes: dict[str, object],
    mode: str | None,
    traced: list[object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("halikit.training.defaults.has_compiler", lambda device: has_compiler)

    class Enough(Exception):
        pass

    def stop(record: object) -> None:
        raise Enough

    settings = {"levels": 1, "steps": steps, "log_every": 1, "evaluate_every": steps} | changes
    data = 2 * torch.rand(40, *settings.get("shape", DENSE)) - 1
    trainer = hk.Trainer(small(**settings), data, out=tmp_path / "run", on_record=stop)
    with pytest.raises(Enough):
        trainer.fit()
    assert len(traced) == (mode is not None)
    assert trainer.config.hardware.compile == mode
    assert bool(trainer.compile_reason) == ("compile" not in changes)
    # What was chosen stands in the run, and a training that goes on keeps it.
    assert read_toml(tmp_path / "run" / "config.toml").hardware.compile == mode
    monkeypatch.setattr("halikit.training.defaults.has_compiler", lambda device: not has_compiler)
    with warnings.catch_warnings(action="error"):
        again = hk.Trainer(small(**settings), data, out=tmp_path / "run", resume=True)
    assert again.config.hardware.compile == mode


def test_steps_of_ones_own_are_compiled_on_request_alone(traced: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halikit.training.defaults.has_compiler", lambda device: True)
    for compile_, number in (("auto", 0), ("default", 1)):
        hk.Trainer(small(levels=1, compile=compile_)).step(batch())
        assert len(traced) == number


@pytest.mark.parametrize(
    "changes",
    [{"compile": "default", "recompute": True}, {"compile": "fast"}, {"compile": "default", "method": "elbo"}],
)
def test_what_cannot_be_compiled_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="compile"):
        override(Config(), changes)


# --- micro-batches ----------------------------------------------------------------------------------------------------


def without_chance(model: hk.Model, monkeypatch: pytest.MonkeyPatch) -> hk.Model:
    """In float64; what kernels would draw depends on what they are given alone."""

    def sample(self: hk.GaussianKernel, given: Tensor, *, generator: object = None) -> Tensor:
        mean, scale = self.moments(given)
        return mean + scale * (100 * mean.detach()).sin()

    monkeypatch.setattr(hk.GaussianKernel, "sample", sample)
    for part in model.parts.values():
        part.double()
    return model


def placed(model: hk.Model, n: int = 12) -> hk.Model:
    """What the prior draws depends on a sample's place in the whole batch alone."""
    rows = torch.randn(n, *model.hierarchy.spaces[-1].shape, generator=torch.Generator().manual_seed(2)).double()
    left = rows

    def drawn(n: int, *, generator: object = None) -> Tensor:
        nonlocal left
        taken, left = left[:n], left[n:] if len(left) > n else rows
        return taken

    model.hierarchy.prior.sample = drawn
    return model


SILENT = {"discriminator.dropout": 0.0, "input_noise": 0.0}


@shapes
@pytest.mark.parametrize("objective", ["jensen_shannon", "least_squares", "relativistic"])
def test_accumulated_gradients_are_those_of_the_mean_loss_of_the_micro_batches(
    shape: tuple[int, ...], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SILENT | {"objective": objective, "sleep_weights": 1.0}
    x = batch(shape, dtype=torch.float64)
    reference = placed(without_chance(small(shape, **options), monkeypatch))
    losses = []
    for part in x.chunk(3):
        step = play(reference.hierarchy, reference.discriminator, part, OBJECTIVES[objective])
        add_discriminator_gradients(step, reference.discriminator)
        add_generator_gradients(step, reference.hierarchy)
        sleep_loss(reference.hierarchy, step.decoder_states, (1.0, 1.0)).backward()
        losses.append(step.discriminator_loss)
    trainer = hk.Trainer(without_chance(small(shape, **options, accumulate=3), monkeypatch))
    placed(trainer.model)
    found = trainer.step(x)
    expected = [None if g is None else g / 3 for g in of_both(reference)]
    assert relative_error(of_both(trainer.model), expected) < EXACT
    torch.testing.assert_close(found["d_loss"], torch.stack(losses).mean())
    for name, buffer in trainer.model.hierarchy.named_buffers():
        torch.testing.assert_close(buffer, reference.hierarchy.get_buffer(name), msg=name)


@shapes
@pytest.mark.parametrize("single_pass", [True, False])
def test_accumulated_gradients_are_those_of_the_whole_batch_where_nothing_couples_samples(
    shape: tuple[int, ...], single_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    options = SILENT | {"objective": "jensen_shannon" if single_pass else "least_squares"}
    for parts in (1, 3):
        trainer = hk.Trainer(without_chance(small(shape, **options, accumulate=parts), monkeypatch))
        placed(trainer.model).hierarchy.eval()
        trainer.step(batch(shape, dtype=torch.float64))
        assert trainer.method.single_pass == single_pass
        found.append(of_both(trainer.model))
    assert relative_error(*found) < EXACT


def test_micro_batches_draw_different_noise() -> None:
    """A batch whose two halves are equal: with the same noise for both, half of it alone would do."""
    half = batch(n=6)
    twice = stepped(small(accumulate=2), torch.cat([half, half]))
    once = stepped(small(), half)
    assert relative_error(of_both(twice.model), of_both(once.model)) > 0.01


def test_one_bad_micro_batch_skips_the_step() -> None:
    trainer = hk.Trainer(small(accumulate=3))
    trainer.step(batch())
    before = weights(trainer)
    x = batch()
    x[0] = torch.nan
    trainer.step(x)
    after = weights(trainer)
    names = [name for name in before if not name.startswith("averaged") and before[name].is_floating_point()]
    assert all(torch.equal(before[name], after[name]) for name in names)
    trainer.step(batch())
    assert any(not torch.equal(before[name], weights(trainer)[name]) for name in names)


def test_accumulation_resumes(tmp_path: Path) -> None:
    whole = hk.Trainer(small(accumulate=3), "digits", out=tmp_path / "whole")
    whole.fit()
    assert_same(broken_off(small(accumulate=3), small(accumulate=3), tmp_path / "parts"), whole)


def test_batches_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(InputError, match="multiple"):
        hk.Trainer(small(accumulate=5), "digits")
    with pytest.raises(InputError, match="as many equal parts"):
        hk.Trainer(small(accumulate=5)).step(batch())
    with pytest.raises(ConfigError, match="not divided"):
        override(Config(), {"accumulate": 2, "labels.number": 10})


# --- activations computed again ---------------------------------------------------------------------------------------


def with_spectral_norm(model: hk.Model) -> hk.Model:
    """Every forward in training moves its buffers, which the weights depend on."""
    stage = nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(64, 16)))
    discriminator = hk.build_discriminator(model.hierarchy, width=16, stages={0: stage})
    return hk.Model(model.hierarchy, discriminator, model.config)


@pytest.mark.parametrize("kind", ["dense", "conv", "spectral norm"])
@pytest.mark.parametrize("changes", [{}, {"objective": "least_squares", "gradient_penalty": 0.1}], ids=["one", "two"])
def test_recomputing_changes_neither_gradients_nor_statistics(kind: str, changes: dict[str, object]) -> None:
    shape = CONV if kind == "conv" else DENSE
    trainers = []
    for recompute in (False, True):
        model = small(shape, **changes, recompute=recompute)
        trainers.append(stepped(with_spectral_norm(model) if kind == "spectral norm" else model, batch(shape), 2))
    kept, again = trainers
    assert relative_error(of_both(again.model), of_both(kept.model)) < 1e-5
    assert_same(again, kept, rtol=1e-4, atol=1e-6)
    counters = [buffer for name, buffer in again.model.hierarchy.named_buffers() if name.endswith("tracked")]
    assert counters
    assert all(int(counter) == 2 for counter in counters)


# A sleep phase has to keep the samples that it reads.
@pytest.mark.parametrize(("sleep", "share"), [(0.0, 0.6), (1.0, 0.75)])
def test_recomputing_keeps_less(sleep: float, share: float) -> None:
    sizes = []
    for recompute in (False, True):
        model = small(CONV, recompute=recompute, sleep_weights=sleep)
        trainer = hk.Trainer(model)
        sizes.append(kept_bytes(trainer, batch(CONV)))
    assert sizes[1] < share * sizes[0], sizes


def kept_bytes(trainer: hk.Trainer, x: Tensor) -> int:
    """Of what a step keeps for its backward pass: what autograd saves, and what networks and stages are given."""
    own = {p.untyped_storage().data_ptr() for part in trainer.model.parts.values() for p in part.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor
        return tensor

    networks = [module.network for module in trainer.model.hierarchy.modules() if hasattr(module, "network")]
    hooks = [
        module.register_forward_pre_hook(lambda module, given: [keep(x) for x in given] and None)
        for module in (*networks, *trainer.model.discriminator.stages)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.step(x)
    for hook in hooks:
        hook.remove()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# --- memory format and precision --------------------------------------------------------------------------------------


def test_channels_last_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for layout in ("contiguous", "channels_last"):
        model = without_chance(small(CONV, **SILENT, memory_format=layout), monkeypatch)
        trainer = hk.Trainer(model)
        placed(model)
        trainer.step(batch(CONV, dtype=torch.float64))
        convolutions = [m for m in trainer.model.hierarchy.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
        assert all(
            m.weight.is_contiguous(memory_format=getattr(torch, layout.replace("ous", "ous_format")))
            for m in convolutions
        )
        found.append(of_both(trainer.model))
    assert relative_error(*found) < EXACT


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_on_a_cpu_give_one_layout_whatever_the_channels(channels: int) -> None:
    torch.manual_seed(0)
    layer = Convolution(channels, 8, 3, 2, 1)
    x = torch.randn(5, channels, 12, 10, requires_grad=True)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(y, expected)
    given, wanted = (torch.autograd.grad(out.square().sum(), [x, layer.weight]) for out in (y, expected))
    torch.testing.assert_close(given, wanted)


@pytest.mark.filterwarnings("ignore:this CPU has no units")
@pytest.mark.parametrize("options", [{"memory_format": "channels_last"}, {"precision": "bf16"}], ids=["32", "bf16"])
def test_channels_last_resumes(options: dict[str, object], tmp_path: Path) -> None:
    x = torch.rand(60, *CONV, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = hk.Trainer(small(CONV, **options), x)
    whole.fit(4)
    hk.Trainer(small(CONV, **options), x, out=tmp_path / "run").fit(2)
    rest = hk.Trainer(small(CONV, **options), x, out=tmp_path / "run", resume=True, on_notice=lambda said: None)
    rest.fit(2)
    assert_same(rest, whole)


@pytest.mark.filterwarnings("ignore:this CPU has no units")
@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        (CONV, {}, "contiguous_format"),
        (CONV, {"memory_format": "channels_last"}, "channels_last"),
        (CONV, {"precision": "bf16"}, "channels_last"),
        (CONV, {"precision": "bf16", "memory_format": "contiguous"}, "contiguous_format"),
        (DENSE, {"precision": "bf16"}, "contiguous_format"),
    ],
)
def test_convolutions_in_bfloat16_are_laid_out_by_channels_last(
    shape: tuple[int, ...], options: dict[str, object], expected: str
) -> None:
    trainer = hk.Trainer(small(shape, **options))
    assert trainer.hardware.memory_format == getattr(torch, expected)
    weights = [m.weight for m in trainer.model.hierarchy.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
    assert all(weight.is_contiguous(memory_format=getattr(torch, expected)) for weight in weights)


@pytest.mark.filterwarnings("ignore:this CPU has no units")
@shapes
def test_half_precision_keeps_losses_ratios_and_the_gauge(shape: tuple[int, ...]) -> None:
    """Under autocast: logits, losses and weights stay in single precision, and gradients point the same way."""
    trainers = [stepped(small(shape, **SILENT, precision=precision), batch(shape, 96)) for precision in ("32", "bf16")]
    single, half = (torch.cat([g.flatten() for g in of_both(t.model) if g is not None]) for t in trainers)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(single, half, 0) > 0.98
    model = small(shape, **SILENT)
    seen: list[torch.dtype] = []

    def objective(s_q: Tensor, s_p: Tensor) -> Losses:
        seen.append(s_q.dtype)
        return jensen_shannon(s_q, s_p)

    with torch.autocast("cpu", torch.bfloat16):
        step = play(model.hierarchy, model.discriminator, batch(shape), objective=objective)
        states = model.hierarchy.encode(batch(shape, 512), sample=True)
    assert set(seen) == {torch.float32}
    assert step.discriminator_loss.dtype == step.rho.dtype == torch.float32
    for name, z in states.items():
        z = z.detach()
        if name != "x":
            assert z.float().std() == pytest.approx(1, abs=0.03)
            assert abs(z.float().mean()) < 0.05


# --- batches made ready -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pack") / "digits.pack"
    hk.data.pack("digits", path)
    return f"pack:{path}"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "halikit batches"]


def test_a_pack_is_read_ahead_and_gives_the_same_training(pack: str) -> None:
    data = hk.data.load(pack)
    assert data.train.takes_time
    assert not hk.data.load("digits").train.takes_time
    during: list[list[str]] = []
    trainers = []
    for prefetch in (0, 1, "auto", 5):
        trainer = hk.Trainer(
            small(prefetch=prefetch),
            data,
            augmentation=hk.data.Augmentation(shift=1),
            on_record=lambda record: during.append(threads()),
        )
        trainer.fit()
        assert threads() == []
        trainers.append(trainer)
    assert during[0] == []
    assert all(during[4:])
    for trainer in trainers[1:]:
        assert_same(trainer, trainers[0])


def test_the_order_is_that_of_the_iterator() -> None:
    made = [torch.full((2,), float(number)) for number in range(50)]
    with Prefetched(iter(made), 3, torch.device("cpu")) as batches:
        found = list(batches)
        with pytest.raises(StopIteration):
            next(batches)
    assert torch.equal(torch.stack(found), torch.stack(made))


def test_what_goes_wrong_in_the_thread_surfaces_in_the_step(pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = hk.data.Split.batch
    calls: list[int] = []

    def failing(self: hk.data.Split, index: Tensor) -> Tensor:
        if threading.current_thread().name == "halikit batches":
            calls.append(len(index))
            if len(calls) == 4:
                raise OSError("the disk is gone")
        return original(self, index)

    monkeypatch.setattr(hk.data.Split, "batch", failing)
    trainer = hk.Trainer(small(), hk.data.load(pack))
    with pytest.raises(OSError, match="the disk is gone") as caught:
        trainer.fit()
    assert trainer.steps == 3
    assert "failing" in [entry.name for entry in caught.traceback]
    assert threads() == []


def test_a_thread_that_is_gone_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = threading.Event()

    def never() -> Iterator[Tensor]:
        wait.wait()
        yield torch.zeros(1)

    with Prefetched(never(), 1, torch.device("cpu")) as batches:
        monkeypatch.setattr(threading.Thread, "is_alive", lambda self: False)
        with pytest.raises(RuntimeError, match="is gone"):
            next(batches)
        monkeypatch.undo()
        wait.set()
