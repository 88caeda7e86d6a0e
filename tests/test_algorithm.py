"""Algorithm 1: single-pass against two-pass against the textbook, players, first levels, penalties, extreme logits."""

import copy
import math
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from conftest import Network, gaussian, gradients, linear_hierarchy, relative_error, tiny_ladder
from torch import nn
from torch.nn.functional import logsigmoid

import halikit as hk
import halikit.discriminator
from halikit.algorithm import (
    add_both_gradients,
    add_discriminator_gradients,
    add_generator_gradients,
    gradient_penalty,
    interpolated_penalty,
    play,
    supports_single_pass,
)
from halikit.algorithm import add_gradients as add_exact_gradients
from halikit.errors import InputError
from halikit.objectives import (
    OBJECTIVES,
    Losses,
    hinge,
    is_never_flat,
    jensen_shannon,
    least_squares,
    never_flat,
    relativistic,
)

EXACT = 1e-10
SEED = 11

levels_1_to_4 = pytest.mark.parametrize("levels", range(1, 5))
families = pytest.mark.parametrize(
    ("shape", "options"), [((6,), {}), ((1, 16, 16), {"family": "conv"})], ids=["dense", "conv"]
)
forms = pytest.mark.parametrize("games", ["joint", "pairwise", "subsets"])
single_pass_objectives = pytest.mark.parametrize("objective", [jensen_shannon, relativistic])


def game(levels, shape, options=None, *, n=6, **discriminator):
    """A hierarchy, its discriminator with dropout and input noise on, and data, in float64."""
    h = tiny_ladder(levels, shape, **(options or {}))
    if discriminator.get("games") == "subsets":
        # A space that one game reads and the other does not, and one that both read.
        names = [space.name for space in h.spaces]
        discriminator["games"] = [names, ["x", f"z{max(1, levels - 1)}"]]
    d = hk.build_discriminator(h, **{"width": 16, **discriminator})
    return h.double(), d.double(), torch.randn(n, *shape, dtype=torch.float64)


def add_gradients(step, h, d, *, single_pass):
    """Both players' gradients, in one backward pass or in two."""
    if single_pass:
        add_both_gradients(step)
    else:
        add_discriminator_gradients(step, d)
        add_generator_gradients(step, h)


def played(h, d, x, *, single_pass=True, **options):
    """One step on copies under a seed: the step and both players' gradients."""
    h, d = copy.deepcopy((h, d))
    torch.manual_seed(SEED)
    step = play(h, d, x, **options)
    add_gradients(step, h, d, single_pass=single_pass)
    return step, gradients(h), gradients(d)


def reported(step):
    """``L_d``, ``L_g``, ``ρ_q`` and ``ρ_p`` of a step."""
    return torch.stack([step.discriminator_loss, step.generator_loss, *step.rho])


def textbook(h, d, x, discriminator_loss, generator_loss):
    """Both players' gradients by plain autograd of the two losses of ``ρ``, under the same random numbers."""
    h, d = copy.deepcopy((h, d))
    torch.manual_seed(SEED)
    q = h.encode(x, sample=True)
    p = h.sample_states(len(x))
    loss_d = loss_g = torch.zeros((), dtype=torch.float64)
    for one in d.games:
        s = one({space.name: torch.cat([q[space.name], p[space.name]]) for space in one.spaces})
        s_q, s_p = s[: len(x)], s[len(x) :]
        loss_d = loss_d + discriminator_loss(s_q, s_p)
        loss_g = loss_g + generator_loss(s_q, s_p)
    return tuple(
        torch.autograd.grad(loss, list(player.parameters()), retain_graph=True, allow_unused=True)
        for loss, player in ((loss_g, h), (loss_d, d))
    )


# The losses as the papers print them, ``log ρ = logsigmoid(s)`` and ``log(1 − ρ) = logsigmoid(−s)``.
TEXTBOOK = {
    jensen_shannon: (
        lambda s_q, s_p: -logsigmoid(s_q).mean() - logsigmoid(-s_p).mean(),
        lambda s_q, s_p: -logsigmoid(-s_q).mean() - logsigmoid(s_p).mean(),
    ),
    relativistic: (
        lambda s_q, s_p: -logsigmoid(s_q - s_p).mean(),
        lambda s_q, s_p: -logsigmoid(s_p - s_q).mean(),
    ),
    least_squares: (
        lambda s_q, s_p: ((s_q - 1) ** 2).mean() / 2 + (s_p**2).mean() / 2,
        lambda s_q, s_p: (s_q**2).mean() / 2 + ((s_p - 1) ** 2).mean() / 2,
    ),
}


class MinibatchFeature(nn.Module):
    """Tells each sample how far it is from the others."""

    def forward(self, x):
        return torch.cat([x, torch.cdist(x, x).mean(1, keepdim=True)], 1)


def coupled_stage(kind):
    layer = nn.BatchNorm1d(8) if kind == "batch norm" else MinibatchFeature()
    return nn.Sequential(nn.Linear(6, 8), layer)


# --- one pass, two passes and the textbook ----------------------------------------------------------------------------


@levels_1_to_4
@families
@forms
@single_pass_objectives
def test_single_pass_two_pass_and_textbook_agree(levels, shape, options, games, objective):
    h, d, x = game(levels, shape, options, games=games)
    one, h_one, d_one = played(h, d, x, objective=objective, single_pass=True)
    two, h_two, d_two = played(h, d, x, objective=objective, single_pass=False)
    assert relative_error(h_one, h_two) < EXACT
    assert relative_error(d_one, d_two) < EXACT
    assert torch.equal(reported(one), reported(two))
    h_book, d_book = textbook(h, d, x, *TEXTBOOK[objective])
    assert relative_error(h_one, h_book) < EXACT
    assert relative_error(d_one, d_book) < EXACT


@forms
def test_the_textbook_with_an_evaluation_per_joint_agrees_too(games):
    """Without noise the discriminator may as well look at each joint by itself, with the samples cut off for L_d."""
    h, d, x = game(3, (6,), games=games, dropout=0.0, input_noise=0.0)
    _, h_one, d_one = played(h, d, x)
    torch.manual_seed(SEED)
    q = h.encode(x, sample=True)
    p = h.sample_states(len(x))
    loss_g = (-(1 - d(q).sigmoid()).log().mean(0) - d(p).sigmoid().log().mean(0)).sum()
    q, p = ({name: state.detach() for name, state in joint.items()} for joint in (q, p))
    loss_d = (-d(q).sigmoid().log().mean(0) - (1 - d(p).sigmoid()).log().mean(0)).sum()
    assert relative_error(h_one, torch.autograd.grad(loss_g, list(h.parameters()))) < EXACT
    expected = torch.autograd.grad(loss_d, list(d.parameters()), allow_unused=True)
    assert relative_error(d_one, expected) < EXACT


@pytest.mark.parametrize("objective", TEXTBOOK)
@pytest.mark.parametrize("kind", ["nothing", "batch norm", "minibatch feature"])
def test_two_passes_are_exact_for_any_objective_and_any_discriminator(objective, kind):
    stages = {} if kind == "nothing" else {0: coupled_stage(kind)}
    h, d, x = game(2, (6,), stages=stages)
    _, h_two, d_two = played(h, d, x, objective=objective, single_pass=False)
    h_book, d_book = textbook(h, d, x, *TEXTBOOK[objective])
    assert relative_error(h_two, h_book) < EXACT
    assert relative_error(d_two, d_book) < EXACT


@pytest.mark.parametrize("kind", ["batch norm", "minibatch feature"])
def test_a_single_pass_through_coupled_samples_would_be_wrong(kind):
    """So that the comparisons above are known to notice. It has to be forced."""
    h, d, x = game(2, (6,), stages={0: coupled_stage(kind)})
    h_book, d_book = textbook(h, d, x, *TEXTBOOK[jensen_shannon])
    torch.manual_seed(SEED)
    step = play(h, d, x)
    with pytest.raises(InputError, match="one backward pass is not exact for this step"):
        add_both_gradients(step)
    add_both_gradients(replace(step, single_pass=True))
    assert relative_error(gradients(h), h_book) > 1e-4
    assert relative_error(gradients(d), d_book) < EXACT


def test_single_pass_agrees_on_users_kernels_of_any_kind():
    """A linear-Gaussian hierarchy, and one with hard bits between, which pass no gradient."""
    x, z1, z2 = hk.Space("x", (3,)), hk.Space("z1", (4,)), hk.Space("z2", (2,))
    bits = hk.Hierarchy(
        [
            hk.Link(hk.BernoulliKernel(x, z1, Network(x, 4)), gaussian(z1, x)),
            hk.Link(gaussian(z1, z2), hk.BernoulliKernel(z2, z1, Network(z2, 4))),
        ]
    ).double()
    for h in (linear_hierarchy(3), bits):
        d = hk.build_discriminator(h, width=16).double()
        data = torch.randn(6, 3, dtype=torch.float64)
        _, h_one, d_one = played(h, d, data, single_pass=True)
        _, h_two, d_two = played(h, d, data, single_pass=False)
        assert relative_error(h_one, h_two) < EXACT
        assert relative_error(d_one, d_two) < EXACT


def test_classes_by_index_are_states_as_well():
    """Integers travel through both chains, the discriminator and its penalty, and pass no gradient."""
    x, y = hk.Space("x", (3,)), hk.Space("z1", ())
    prior = dist.Categorical(torch.ones(5))
    h = hk.Hierarchy([hk.Link(hk.CategoricalKernel(x, y, Network(x, 5)), gaussian(y, x))], prior).double()
    d = hk.build_discriminator(h, width=16).double()
    data = torch.randn(6, 3, dtype=torch.float64)
    assert h.sample_states(6)["z1"].dtype == torch.int64
    assert supports_single_pass(d, jensen_shannon, h.encode(data, sample=True))[0]
    _, h_one, d_one = played(h, d, data, single_pass=True)
    _, h_two, d_two = played(h, d, data, single_pass=False)
    assert relative_error(h_one, h_two) < EXACT
    assert relative_error(d_one, d_two) < EXACT
    assert gradient_penalty(d, h.encode(data, sample=True)) > 0


@pytest.mark.parametrize("single_pass", [True, False])
@pytest.mark.parametrize("frozen", [0, 1], ids=["hierarchy", "discriminator"])
def test_a_frozen_player_lets_the_other_learn(single_pass, frozen):
    h, d, x = game(2, (6,))
    _, *expected = played(h, d, x)
    (h, d)[frozen].requires_grad_(False)
    _, *actual = played(h, d, x, single_pass=single_pass)
    assert all(g is None for g in actual[frozen])
    assert relative_error(actual[1 - frozen], expected[1 - frozen]) < EXACT


# --- when a single pass is right --------------------------------------------------------------------------------------


@forms
@families
@single_pass_objectives
def test_built_discriminators_support_a_single_pass(games, shape, options, objective):
    h, d, x = game(2, shape, options, games=games)
    assert supports_single_pass(d, objective, h.encode(x, sample=True)) == (True, "one backward pass for both players")


def test_objectives_with_a_pole_do_not():
    h, d, x = game(2, (6,))
    allowed, reason = supports_single_pass(d, least_squares, h.encode(x, sample=True))
    assert not allowed
    assert "least_squares" in reason


def test_objectives_of_the_users_do_not_unless_known():
    def hinge(s_q, s_p):
        return Losses((1 - s_q).relu().mean() + (1 + s_p).relu().mean(), s_q.mean() - s_p.mean())

    h, d, x = game(2, (6,))
    allowed, reason = supports_single_pass(d, hinge, h.encode(x, sample=True))
    assert not allowed
    assert "hinge" in reason
    _, h_two, d_two = played(h, d, x, objective=hinge, single_pass=False)
    h_book, d_book = textbook(h, d, x, lambda *s: hinge(*s).discriminator, lambda *s: hinge(*s).generator)
    assert relative_error(h_two, h_book) < EXACT
    assert relative_error(d_two, d_book) < EXACT


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_step_is_played_for_the_passes_that_are_exact(objective):
    """Against plain autograd of the objective itself: one pass where the objective is never flat, two elsewhere."""
    h, d, x = game(2, (6,), games="pairwise")
    h_book, d_book = textbook(h, d, x, lambda *s: objective(*s).discriminator, lambda *s: objective(*s).generator)
    torch.manual_seed(SEED)
    step = play(h, d, x, objective)
    assert step.single_pass == is_never_flat(objective)
    add_exact_gradients(step, h, d)
    assert relative_error(gradients(h), h_book) < EXACT
    assert relative_error(gradients(d), d_book) < EXACT


def test_a_single_pass_that_is_not_exact_is_refused():
    """A hinge is flat for samples beyond its margin: a single pass would divide by zero."""
    h, d, x = game(2, (6,))
    with torch.no_grad():
        d.head[-1].weight.mul_(100)
    with pytest.raises(InputError, match=r"single backward pass would be wrong here, this game needs two .*: hinge"):
        play(h, d, x, hinge, single_pass=True)
    step = play(h, d, x, hinge)
    assert any((game.discriminator_seed == 0).any() for game in step.games)
    with pytest.raises(InputError, match="add_gradients takes the passes that are"):
        add_both_gradients(step)
    add_exact_gradients(step, h, d)
    assert all(g is None or g.isfinite().all() for g in gradients(h) + gradients(d))


@pytest.mark.parametrize("kind", ["batch norm", "minibatch feature"])
def test_play_finds_coupling_by_itself(kind):
    h, d, x = game(2, (6,), stages={0: coupled_stage(kind)})
    h_book, d_book = textbook(h, d, x, *TEXTBOOK[jensen_shannon])
    with pytest.raises(InputError, match="this game needs two backward passes: the discriminator couples"):
        play(h, d, x, single_pass=True)
    torch.manual_seed(SEED)
    copied_h, copied_d = copy.deepcopy((h, d))
    step = play(copied_h, copied_d, x)
    assert not step.single_pass
    add_exact_gradients(step, copied_h, copied_d)
    assert relative_error(gradients(copied_h), h_book) < EXACT
    assert relative_error(gradients(copied_d), d_book) < EXACT


def test_a_discriminator_is_examined_once_and_again_when_it_has_changed(monkeypatch):
    looks = []
    original = halikit.discriminator.couples_samples
    monkeypatch.setattr("halikit.discriminator.couples_samples", lambda *given: looks.append(None) or original(*given))
    h, d, x = game(2, (6,))
    assert [play(h, d, x).single_pass for _ in range(3)] == [True] * 3
    assert len(looks) == 1
    d.stages[0] = coupled_stage("batch norm").double()
    d.stages[1] = nn.Sequential(nn.Linear(8 + h.spaces[1].size, 16)).double()
    assert [play(h, d, x).single_pass for _ in range(3)] == [False] * 3
    assert len(looks) == 2
    assert play(h, d, x, single_pass=False).single_pass is False
    assert len(looks) == 2


@pytest.mark.parametrize("is_declared", [True, False])
def test_an_objective_of_the_users_takes_one_pass_if_it_is_declared(is_declared):
    def mine(s_q, s_p):
        return s_p.mean() - s_q.mean(), s_q.exp().mean() - s_p.mean()

    objective = never_flat(mine) if is_declared else mine
    h, d, x = game(2, (6,))
    h_book, d_book = textbook(h, d, x, lambda *s: mine(*s)[0], lambda *s: mine(*s)[1])
    torch.manual_seed(SEED)
    step = play(h, d, x, objective)
    assert step.single_pass == is_declared
    add_exact_gradients(step, h, d)
    assert relative_error(gradients(h), h_book) < EXACT
    assert relative_error(gradients(d), d_book) < EXACT


@pytest.mark.parametrize("kind", ["batch norm", "minibatch feature"])
@single_pass_objectives
def test_discriminators_that_couple_samples_do_not(kind, objective):
    h, d, x = game(2, (6,), stages={0: coupled_stage(kind)})
    allowed, reason = supports_single_pass(d, objective, h.sample_states(len(x)))
    assert not allowed
    assert "couples" in reason


def test_asking_needs_any_batch_of_either_joint():
    h, d, x = game(2, (6,), n=2)
    assert supports_single_pass(d, jensen_shannon, h.encode(x, sample=True))[0]
    assert supports_single_pass(d, jensen_shannon, h.sample_states(2))[0]


# --- extreme logits ---------------------------------------------------------------------------------------------------


class TableKernel(hk.Kernel):
    """A function plus noise out of a table, so that single and double precision see the same samples."""

    def __init__(self, source, target, n, *, spread=1.0):
        super().__init__(source, target)
        self.network = Network(source, target.size)
        self.register_buffer("table", spread * torch.randn(n, target.size))

    def sample(self, given, *, generator=None):
        return self.network(given) + self.table[: len(given)]


def extreme_game(logit, n=64):
    """A game in float32 whose logits are about ``logit`` on the encoder's joint and ``-logit`` on the decoder's."""
    x_space, z1, z2 = hk.Space("x", (5,)), hk.Space("z1", (4,)), hk.Space("z2", (3,))
    h = hk.Hierarchy(
        [
            hk.Link(TableKernel(x_space, z1, n), TableKernel(z1, x_space, n)),
            hk.Link(TableKernel(z1, z2, n), TableKernel(z2, z1, n)),
        ],
        prior=dist.Delta(torch.zeros(3), event_dim=1),
    )
    x = torch.randn(n, 5) + 6
    d = hk.build_discriminator(h, width=16, dropout=0.0, input_noise=0.0)
    with torch.no_grad():
        s_q, s_p = d(h.encode(x, sample=True)), d(h.sample_states(n))
        scale = 2 * logit / (s_q.mean() - s_p.mean())
        d.head[-1].weight.mul_(scale)
        d.head[-1].bias.mul_(scale).sub_(scale * (s_q.mean() + s_p.mean()) / 2)
        s_q, s_p = d(h.encode(x, sample=True)), d(h.sample_states(n))
    assert s_q.mean().item() == pytest.approx(logit, rel=1e-3)
    assert s_p.mean().item() == pytest.approx(-logit, rel=1e-3)
    return h, d, x


@pytest.mark.parametrize("logit", [200.0, -200.0, 2000.0], ids=["winning", "losing", "far beyond"])
@single_pass_objectives
def test_extreme_logits_give_finite_and_correct_gradients(logit, objective):
    """In float32, single-pass, against float64, two-pass, and against the unclamped textbook.

    To 1e-3 of the norm of the gradient; where the textbook's is next to nothing, so is this one.
    """
    h, d, x = extreme_game(logit)
    step, h_one, d_one = played(h, d, x, objective=objective)
    assert reported(step).isfinite().all()
    assert all(g is None or g.isfinite().all() for g in h_one + d_one)

    h, d, x = h.double(), d.double(), x.double()
    _, h_two, d_two = played(h, d, x, objective=objective, single_pass=False)
    assert relative_error(h_one, h_two) < 1e-3
    assert relative_error(d_one, d_two) < 1e-3

    for actual, exact in zip((h_one, d_one), textbook(h, d, x, *TEXTBOOK[objective]), strict=True):
        norm = math.sqrt(sum(g.square().sum().item() for g in exact if g is not None))
        if norm > 1:
            assert relative_error(actual, exact) < 1e-3
        else:
            assert all(g.abs().max() < 1e-10 for g in actual if g is not None)


def test_logits_that_drift_together_keep_the_relativistic_game():
    """A common offset of 1,000 changes nothing that the paired form sees."""
    h, d, x = game(2, (6,))
    _, h_here, d_here = played(h, d, x, objective=relativistic)
    with torch.no_grad():
        d.head[-1].bias.add_(1000)
    _, h_there, d_there = played(h, d, x, objective=relativistic)
    assert relative_error(h_there, h_here) < EXACT
    assert relative_error(d_there, d_here) < EXACT


@pytest.mark.parametrize("size", [45.0, 200.0, 1e6, 1e9, 1e30])
def test_any_finite_logit_counts_as_forty(size):
    """The step's losses show the logits that the objective was given."""
    space_x, space_z = hk.Space("x", (1,)), hk.Space("z1", (1,))
    h = hk.Hierarchy([hk.Link(gaussian(space_x, space_z), gaussian(space_z, space_x))])

    class Constant(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 1), size) + 0 * x[:, :1]

    d = hk.JointDiscriminator(h.spaces, [nn.Identity(), Constant()], nn.Sequential(nn.Identity()))
    step = play(h, d, torch.zeros(4, 1))
    assert step.discriminator_loss.item() == pytest.approx(40)
    assert step.generator_loss.item() == pytest.approx(40)


# --- players ----------------------------------------------------------------------------------------------------------


@forms
def test_one_player_leaves_the_gradients_of_the_other_alone(games):
    h, d, x = game(2, (6,), games=games)
    _, h_both, d_both = played(h, d, x)
    for player, mine, other, expected in (("discriminator", d, h, d_both), ("generators", h, d, h_both)):
        for parameter in other.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)
        torch.manual_seed(SEED)
        if player == "discriminator":
            with torch.no_grad():
                step = play(h, d, x)
            add_discriminator_gradients(step, d)
        else:
            add_generator_gradients(play(h, d, x), h)
        assert all((parameter.grad == 7).all() for parameter in other.parameters())
        assert relative_error(gradients(mine), expected) < EXACT
        h.zero_grad()
        d.zero_grad()


@pytest.mark.parametrize("single_pass", [True, False])
def test_gradients_add_up(single_pass):
    h, d, x = game(2, (6,))
    _, h_once, d_once = played(h, d, x, single_pass=single_pass)
    for _ in range(2):
        torch.manual_seed(SEED)
        add_gradients(play(h, d, x), h, d, single_pass=single_pass)
    assert relative_error(gradients(h), [2 * g for g in h_once]) < EXACT
    assert relative_error(gradients(d), [None if g is None else 2 * g for g in d_once]) < EXACT


@pytest.mark.parametrize("single_pass", [True, False])
def test_several_games_are_the_sum_of_single_ones(single_pass):
    """A discriminator's part has the gradient of its game alone; the generators have the sum over the games."""
    names = [["x", "z1", "z2"], ["x", "z2"], ["z1", "z2"]]
    h, d, x = game(2, (6,), games=names, dropout=0.0, input_noise=0.0)
    step, h_all, _ = played(h, d, x, single_pass=single_pass)
    alone = [played(h, one, x, single_pass=single_pass) for one in d.games]
    total = [sum(g for g in each if g is not None) for each in zip(*(of_h for _, of_h, _ in alone), strict=True)]
    assert relative_error(h_all, total) < EXACT
    torch.testing.assert_close(reported(step)[:2], sum(reported(each)[:2] for each, *_ in alone))
    torch.testing.assert_close(step.rho, sum(each.rho for each, *_ in alone) / 3)
    h, d = copy.deepcopy((h, d))
    torch.manual_seed(SEED)
    add_gradients(play(h, d, x), h, d, single_pass=single_pass)
    for one, (_, _, expected) in zip(d.games, alone, strict=True):
        assert relative_error(gradients(one), expected) < EXACT


def test_descending_the_gradients_lowers_each_players_loss():
    h, d, x = game(2, (6,), n=256, dropout=0.0, input_noise=0.0)
    for player, index in ((d, 0), (h, 1)):
        before, *_ = played(h, d, x)
        moved_h, moved_d = copy.deepcopy((h, d))
        torch.manual_seed(SEED)
        add_both_gradients(play(moved_h, moved_d, x))
        mover = moved_d if player is d else moved_h
        with torch.no_grad():
            for parameter in mover.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.01 * parameter.grad)
        after, *_ = played(*((h, moved_d) if player is d else (moved_h, d)), x)
        assert reported(after)[index] < reported(before)[index]


# --- what a step reports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("games", "number"), [("joint", 1), ("pairwise", 3), ([["x", "z1", "z3"], ["z2", "z3"]], 2)], ids=str
)
def test_an_undecided_discriminator_loses_two_log_two_per_game(games, number):
    h, d, x = game(3, (6,), games=games)
    for one in d.games:
        nn.init.zeros_(one.head[-1].weight)
        nn.init.zeros_(one.head[-1].bias)
    step = play(h, d, x)
    assert step.discriminator_loss.item() == pytest.approx(2 * math.log(2) * number)
    assert step.generator_loss.item() == pytest.approx(2 * math.log(2) * number)
    assert step.rho.tolist() == [0.5, 0.5]
    assert not reported(step).requires_grad


def test_the_joints_are_told_apart_in_the_right_direction():
    """A discriminator that calls what is large real, data that are large: ρ_q is high and ρ_p is not."""
    h, d, x = game(1, (6,), dropout=0.0, input_noise=0.0)
    x = x.abs() + 5
    optimiser = torch.optim.Adam(d.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        with torch.no_grad():
            step = play(h, d, x)
        add_discriminator_gradients(step, d)
        optimiser.step()
    rho_q, rho_p = step.rho
    assert rho_q > 0.9
    assert rho_p < 0.1


# --- the chains -------------------------------------------------------------------------------------------------------


def test_the_joint_holds_the_data_and_the_encoder_sees_noise():
    h, d, x = game(2, (6,))
    h.eval()
    torch.manual_seed(SEED)
    clean = play(h, d, x).encoder_states
    torch.manual_seed(SEED)
    assert torch.equal(h.encode(x, sample=True)["z2"], clean["z2"])
    torch.manual_seed(SEED)
    noisy = play(h, d, x, encoder_noise=0.3).encoder_states
    assert noisy["x"] is x
    assert list(noisy) == ["x", "z1", "z2"]
    torch.manual_seed(SEED)
    states = h.encode(x + 0.3 * torch.randn_like(x), sample=True)
    torch.testing.assert_close(noisy["z2"], states["z2"])


def test_the_encoders_noise_changes_the_game_and_single_pass_stays_exact():
    h, d, x = game(2, (6,))
    _, h_one, d_one = played(h, d, x, encoder_noise=0.5)
    _, h_two, d_two = played(h, d, x, encoder_noise=0.5, single_pass=False)
    _, h_clean, _ = played(h, d, x)
    assert relative_error(h_one, h_two) < EXACT
    assert relative_error(d_one, d_two) < EXACT
    assert relative_error(h_one, h_clean) > 1e-3


def test_both_chains_pass_gradients_to_their_own_kernels():
    h, d, x = game(3, (6,))
    play(h, d, x).encoder_states["z3"].sum().backward()
    assert all(p.grad is not None for link in h for p in link.up.parameters())
    assert all(p.grad is None for link in h for p in link.down.parameters())
    h.zero_grad()
    play(h, d, x).decoder_states["x"].sum().backward()
    assert all(p.grad is None for link in h for p in link.up.parameters())
    assert all(p.grad is not None for link in h for p in link.down.parameters())


# --- the first levels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("games", "shape", "options"),
    [
        ("joint", (6,), {}),
        ("joint", (1, 8, 8), {"family": "dense"}),
        ("pairwise", (6,), {}),
        ([["x", "z1"], ["x", "z2"], ["z1", "z3"], ["x", "z2", "z4"]], (6,), {}),
        ("pairwise", (1, 16, 16), {"family": "conv"}),
    ],
    ids=["joint, vectors", "joint, image", "pairs, vectors", "subsets, vectors", "pairs, maps"],
)
@pytest.mark.parametrize("single_pass", [True, False])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_first_levels_play_and_no_other(games, shape, options, single_pass, level):
    h, d, x = game(4, shape, options, games=games)
    add_gradients(play(h[:level], d[:level], x), h[:level], d[:level], single_pass=single_pass)
    for index, link in enumerate(h, 1):
        assert all((g is not None) == (index <= level) for g in gradients(link))
    if games != "joint":
        within = set(h.spaces[: level + 1])
        for one in d.games:
            assert all((g is not None) == within.issuperset(one.spaces) for g in gradients(one))
        return
    for index, module in enumerate(d.stages):
        assert all((g is not None) == (index <= level) for g in gradients(module))
    assert all(g is not None for g in gradients(d.head))


@forms
def test_the_first_levels_play_the_game_of_the_shorter_stack(games):
    """The same gradients as a hierarchy and a discriminator cut to that size by hand."""
    h, d, x = game(3, (6,), games=games)
    _, h_view, d_view = played(h[:2], d[:2], x)
    short = hk.Hierarchy(copy.deepcopy(list(h))[:2]).double()
    if games == "joint":
        d_cut = hk.JointDiscriminator(d.spaces[:3], d.stages[:3], d.head, input_noise=d.noise.scale)
    else:
        d_cut = hk.MultiGameDiscriminator(g for g in d.games if d.spaces[3] not in g.spaces)
    _, h_short, d_short = played(short, copy.deepcopy(d_cut), x)
    assert relative_error(h_view, h_short) < EXACT
    assert relative_error(d_view, d_short) < EXACT


# --- the gradient penalty ---------------------------------------------------------------------------------------------


def linear_discriminator(h):
    """``s = w · (x, z_1, …, z_L) + b``, and its ``w``."""
    sizes = [space.size for space in h.spaces]
    head = nn.Sequential(nn.Linear(sum(sizes), 1))
    return hk.JointDiscriminator(h.spaces, [nn.Flatten() for _ in sizes], head).double(), head[0].weight


def test_the_penalty_of_a_linear_discriminator_is_its_squared_norm():
    h, _, x = game(2, (6,))
    d, _ = linear_discriminator(h)
    weight = d.head[0].weight
    penalty = gradient_penalty(d, h.encode(x, sample=True))
    torch.testing.assert_close(penalty, weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_the_penalty_of_a_quadratic_discriminator_depends_on_the_samples():
    """For ``s = Σ x²/2`` it is the mean of ``‖x‖²``."""
    h, _, x = game(1, (6,))

    class HalfSquare(nn.Module):
        def forward(self, states):
            return states.square().sum(1, keepdim=True) / 2

    d = hk.JointDiscriminator(h.spaces, [nn.Identity(), HalfSquare()], nn.Sequential(nn.Identity()))
    states = h.encode(x, sample=True)
    expected = sum(state.detach().square().sum(1).mean() for state in states.values())
    torch.testing.assert_close(gradient_penalty(d, states), expected)


@forms
@families
def test_the_penalty_is_the_discriminators_alone(games, shape, options):
    h, d, x = game(2, shape, options, games=games)
    for states in (h.encode(x, sample=True), h.sample_states(len(x))):
        assert any(state.requires_grad for state in states.values())
        gradient_penalty(d, states).backward()
        assert all(g is None for g in gradients(h))
        assert any(g is not None and g.abs().sum() > 0 for g in gradients(d))
        assert all(state.grad is None for state in states.values() if state.is_leaf)
        d.zero_grad()


def test_the_penalty_adds_to_a_step_without_touching_the_generators():
    h, d, x = game(2, (6,), dropout=0.0, input_noise=0.0)
    _, h_plain, d_plain = played(h, d, x)
    torch.manual_seed(SEED)
    add_both_gradients(play(h, d, x))
    gradient_penalty(d, h.encode(x, sample=True)).backward()
    assert relative_error(gradients(h), h_plain) < EXACT
    assert relative_error(gradients(d), d_plain) > 1e-6


@pytest.mark.parametrize("games", ["pairwise", "subsets"])
def test_penalties_of_several_games_add_up(games):
    h, d, x = game(2, (6,), games=games, dropout=0.0, input_noise=0.0)
    states = h.encode(x, sample=True)
    total = sum(gradient_penalty(pair, {s.name: states[s.name] for s in pair.spaces}) for pair in d.games)
    torch.testing.assert_close(gradient_penalty(d, states), total)


def test_penalties_at_both_joints_add_up():
    h, d, x = game(2, (6,), dropout=0.0, input_noise=0.0)
    joints = h.encode(x, sample=True), h.sample_states(len(x))
    torch.testing.assert_close(gradient_penalty(d, *joints), sum(gradient_penalty(d, joint) for joint in joints))


# --- the penalty between samples --------------------------------------------------------------------------------------


class HalfSquares(hk.Discriminator):
    """``s = ½ Σ ‖state‖²``, whose gradient is the joint state itself."""

    def __init__(self, spaces):
        super().__init__()
        self.spaces = tuple(spaces)

    def forward(self, states):
        return sum(states[space.name].flatten(1).square().sum(1) for space in self.spaces) / 2


def test_the_penalty_between_samples_of_a_linear_discriminator():
    """``(‖w‖ − 1)²`` wherever it is taken, with the gradient ``2 (‖w‖ − 1) w/‖w‖``."""
    h, _, x = game(2, (6,))
    d, _ = linear_discriminator(h)
    w = d.head[0].weight
    penalty = interpolated_penalty(d, h.encode(x, sample=True), h.sample_states(len(x)))
    norm = w.detach().norm()
    torch.testing.assert_close(penalty, (norm - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(w.grad, 2 * (norm - 1) * w.detach() / norm)
    assert all(g is None for g in gradients(h))


def test_a_flat_discriminator_has_a_finite_penalty():
    h, _, x = game(2, (6,))
    d, _ = linear_discriminator(h)
    nn.init.zeros_(d.head[0].weight)
    penalty = interpolated_penalty(d, h.encode(x, sample=True), h.sample_states(len(x)))
    penalty.backward()
    assert penalty == 1
    assert d.head[0].weight.grad.isfinite().all()


def test_the_points_lie_evenly_between_paired_samples_with_one_share_for_all_states():
    """``E(u r − 1)² = r²/3 − r + 1`` from the origin to a state of norm r; to 0.01 from 40,000 draws.

    At r = 1, in two halves. A share of its own for each half would give 0.25 instead of 1/3.
    """
    spaces = [hk.Space("x", (1,)), hk.Space("z1", (1,))]
    far = {space.name: torch.full((40_000, 1), 0.5**0.5) for space in spaces}
    origin = {name: torch.zeros_like(state) for name, state in far.items()}
    for pair in ((far, origin), (origin, far)):
        assert interpolated_penalty(HalfSquares(spaces), *pair).item() == pytest.approx(1 / 3, abs=0.01)


def test_penalties_between_samples_of_several_games_add_up():
    h, d, x = game(2, (6,), games="pairwise", dropout=0.0, input_noise=0.0)
    q, p = h.encode(x, sample=True), h.sample_states(len(x))
    torch.manual_seed(SEED)
    total = interpolated_penalty(d, q, p)
    parts = []
    for one in d.games:
        torch.manual_seed(SEED)
        parts.append(interpolated_penalty(one, q, p))
    torch.testing.assert_close(total, sum(parts))


@pytest.mark.parametrize("support", ["bits", "one_hot", "index", None])
def test_nothing_lies_between_discrete_states(support):
    spaces = [hk.Space("x", (2,)), hk.Space("z1", (3,), support=support)]
    states = {"x": torch.randn(4, 2), "z1": torch.randint(2, (4, 3))}
    if support is not None:
        states["z1"] = states["z1"].float()
    with pytest.raises(InputError, match=r"no penalty between samples of z1 \(3\), which is discrete"):
        interpolated_penalty(HalfSquares(spaces), states, states)
    assert gradient_penalty(HalfSquares(spaces), states) > 0


def test_a_penalty_goes_with_a_discriminator_that_ignores_a_state():
    h, _, x = game(2, (6,))
    q, p = h.encode(x, sample=True), h.sample_states(len(x))

    class Norm(nn.Module):
        def forward(self, states):
            return states["x"].square().sum(1)

    d = hk.Model(h, Norm()).discriminator
    torch.testing.assert_close(gradient_penalty(d, q), 4 * x.square().sum(1).mean())
    assert interpolated_penalty(d, q, p).isfinite()
