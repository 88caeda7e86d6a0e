"""What is there for speed alone changes no number: layers, the optimiser, and the loop that steps are measured by."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import gradients, relative_error
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import halikit as hk
from halikit.algorithm import add_discriminator_gradients, add_generator_gradients, gradient_penalty, play
from halikit.benchmark.steps import peak_memory, time_steps
from halikit.benchmark.yardstick import Yardstick, in_stock_parts
from halikit.config import Config, override
from halikit.networks.blocks import Convolution, Dropout
from halikit.objectives import OBJECTIVES
from halikit.optimisation.optimisers import make_optimiser
from halikit.training.sleep import sleep_loss

EXACT = 1e-10
QUIET = {"discriminator.dropout": 0.0, "discriminator.input_noise": 0.0}


def built(shape: tuple[int, ...], **changes: object) -> hk.Model:
    torch.manual_seed(0)
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    small = {"model.levels": 2, "model.data_shape": shape, "model.hidden": 8, "discriminator.width": 16}
    return hk.build(override(Config(), small | changes))


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "weight norm"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(8, 3, 1, 1), (8, 3, 2, 1), (4, 4, 1, 0), (1, 1, 1, 0), (6, 4, 1, 0)]
)
def test_a_convolution_is_torchs(size: int, kernel: int, stride: int, padding: int, normed: bool) -> None:
    own = Convolution(5, 7, kernel, stride, padding).double()
    stock = nn.Conv2d(5, 7, kernel, stride, padding).double()
    stock.load_state_dict(own.state_dict())
    if normed:
        own, stock = weight_norm(own), weight_norm(stock)
    x = torch.randn(3, 5, size, size, dtype=torch.float64)
    found = []
    for layer in (own, stock):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        # With a gradient's gradient, which a penalty takes.
        inputs = [leaf, *layer.parameters()]
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
        found.append([out, *first, *second])
    assert relative_error(*found) < EXACT


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((6,), {}),
        ((1, 16, 16), {"model__family": "conv"}),
        ((3, 32, 32), {"model__family": "conv", "model__levels": 3, "model__depth": 2}),
    ],
    ids=["dense", "conv", "residual"],
)
def test_networks_are_those_of_stock_parts(shape: tuple[int, ...], changes: dict[str, object]) -> None:
    model = built(shape, **changes, **{name.replace(".", "__"): value for name, value in QUIET.items()})
    x = torch.randn(6, *shape, dtype=torch.float64)
    found = []
    for parts in (lambda part: part, in_stock_parts):
        h, d = (parts(copy.deepcopy(part)).double().train() for part in model.parts.values())
        states = h.encode(x)
        (d(states).sum() + h.decode(states[h.spaces[-1].name])["x"].square().sum()).backward()
        found.append([*gradients(h), *gradients(d), *(b.double() for b in h.buffers())])
    assert relative_error(*found) < EXACT


def test_stock_parts_are_torchs_alone() -> None:
    model = built((1, 16, 16), model__family="conv")
    kinds = {type(layer) for part in model.parts.values() for layer in in_stock_parts(part).modules()}
    assert not kinds & {Convolution, Dropout}
    assert nn.Dropout in kinds
    assert {Convolution, Dropout} <= {type(layer) for part in model.parts.values() for layer in part.modules()}


@pytest.mark.parametrize("shape", [(64, 33), (8, 4, 6, 6)])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels last", "strided"])
def test_dropout_drops_and_scales_in_any_memory_format(shape: tuple[int, ...], memory_format: str) -> None:
    x = torch.full(shape, 3.0)
    if memory_format == "channels last" and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    elif memory_format == "strided":
        x = x.transpose(0, 1)
    out = Dropout(0.5)(x)
    assert set(out.unique().tolist()) == {0.0, 6.0}
    assert 0.4 < float((out == 0).float().mean()) < 0.6


# --- the optimiser ----------------------------------------------------------------------------------------------------


def test_the_optimiser_is_torchs_adam() -> None:
    """Also where a parameter gets its first gradient late, and where the guard skips a step."""
    model = built((6,))
    settings, parameters = model.config.optimiser, list(model.hierarchy.parameters())
    own = make_optimiser(model.hierarchy, settings.learning_rate, settings.betas)
    twins = [p.detach().clone().requires_grad_() for p in parameters]
    stock = torch.optim.Adam(twins, settings.learning_rate, settings.betas)
    for step in range(6):
        for index, (parameter, twin) in enumerate(zip(parameters, twins, strict=True)):
            given = None if index == 0 and step < 3 else torch.randn_like(parameter)
            parameter.grad, twin.grad = given, given
        own.found_inf = torch.tensor(float(step == 4))
        own.step()
        if step != 4:
            stock.step()
    assert relative_error(parameters, twins) < 1e-6
    assert [own.state[p]["step"].item() for p in parameters] == [stock.state[p]["step"].item() for p in twins]


# --- the yardstick ----------------------------------------------------------------------------------------------------


GAMES = {
    "cross-entropy": {"gauge": "variance_preserving"},
    "standardised": {"gauge": "standardised"},
    "no gauge": {"gauge": None, "max_scale": None},
    "one penalty": {"gradient_penalty": 0.3, "penalty_every": 2},
    "two penalties": {"objective": "relativistic", "gradient_penalty": 0.3, "penalised_joint": "both"},
}


@pytest.mark.parametrize("changes", GAMES.values(), ids=GAMES)
def test_the_yardstick_plays_the_same_game(changes: dict[str, object]) -> None:
    """Its steps see the chains' first and second draws; those of Algorithm 1, twice from the same seed, as well."""
    model = built((6,), **{name.replace(".", "__"): value for name, value in (changes | QUIET).items()})
    # So slow that the generators' step finds the discriminator where it was.
    model = hk.Model(model.hierarchy, model.discriminator, override(model.config, {"learning_rate": 1e-12}))
    game = model.config.game.resolved
    yardstick = Yardstick(model, is_careful=True)
    x = torch.randn(16, 6)
    torch.manual_seed(5)
    losses = yardstick.step(x)

    h, d = model.hierarchy.train(), model.discriminator.train()
    torch.manual_seed(5)
    first = play(h, d, x, OBJECTIVES[game.objective])
    add_discriminator_gradients(first, d)
    if game.gradient_penalty:
        joints = {"both": [first.encoder_states, first.decoder_states]}.get(
            game.penalised_joint, [first.encoder_states]
        )
        (game.penalty_every * game.gradient_penalty * gradient_penalty(d, *joints) / 2).backward(
            inputs=list(d.parameters())
        )
    second = play(h, d, x, OBJECTIVES[game.objective])
    add_generator_gradients(second, h)
    sleep_loss(h, second.decoder_states, (1.0, 1.0)).backward()
    torch.testing.assert_close(torch.stack(losses), torch.stack([first.discriminator_loss, second.generator_loss]))
    assert relative_error(gradients(yardstick.hierarchy), gradients(h)) < 1e-4
    assert relative_error(gradients(yardstick.games[0]), gradients(d)) < 1e-4


def test_the_plain_variant_has_neither_penalty_nor_sleep_phase() -> None:
    found = []
    for changes, is_plain in (({"gradient_penalty": 5.0, "objective": "relativistic"}, True), ({}, False)):
        model = built((6,), **changes, sleep_weights="auto" if is_plain else 0.0)
        yardstick = Yardstick(model, is_plain=is_plain)
        torch.manual_seed(5)
        found.append([*yardstick.step(torch.ones(8, 6)), *yardstick.hierarchy.parameters()])
    assert relative_error(*found) < 1e-6


def test_the_careful_variant_takes_the_same_steps() -> None:
    model = built((6,))
    found = []
    for is_careful in (False, True):
        yardstick = Yardstick(model, is_careful=is_careful)
        torch.manual_seed(5)
        losses = [torch.stack(yardstick.step(torch.ones(8, 6))) for _ in range(3)]
        found.append([*losses, *yardstick.hierarchy.parameters(), *yardstick.games[0].parameters()])
    assert relative_error(*found) < 1e-5


def test_a_benchmark_counts_what_is_run() -> None:
    """By hand for one dense layer each: C forward in a chain, D in the discriminator."""
    model = built((6,))
    found = time_steps(model, rounds=3)
    flop = {timing.name: timing.flop for timing in found.timings}
    once = sum(p.numel() for part in model.parts.values() for p in part.parameters() if p.dim() == 2)
    batch = model.config.training.batch_size
    assert 2 * batch * 2 * once < flop["halikit"] < 2 * batch * 6 * once
    assert found.bytes > 10 * 4 * once
    assert found.batch_size == batch
    assert {machine.threads for machine in found.machine} == {timing.threads for timing in found.timings}


def test_a_process_that_ends_early_is_explained() -> None:
    config = override(Config(), {"model.data_shape": (6,), "hardware.device": "cuda:99"})
    with pytest.raises(hk.errors.ResourceError, match=r"ended early: .*cuda:99"):
        peak_memory(config)
