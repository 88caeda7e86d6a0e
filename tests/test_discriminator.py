"""Discriminators of any stack: shapes, views, parts of the user's, noise, coupling."""

import copy
import math
import re
from itertools import pairwise

import pytest
import torch
from conftest import configured, gaussian, tiny_ladder
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import halikit as hk
from halikit.discriminator import couples_samples
from halikit.errors import InputError
from halikit.networks.blocks import DenseResidualBlock, LayerOptions
from halikit.networks.context import ContextEmbedding

STACKS = {
    "image to image to vector": [(3, 16, 16), (2, 8, 8), (4, 4, 4), (5,)],
    "stride of 4": [(1, 32, 32), (2, 8, 8)],
    "no stride": [(1, 8, 8), (2, 8, 8)],
    "odd and oblong": [(1, 9, 14), (2, 3, 7), (3,)],
    "finer above": [(1, 4, 4), (2, 8, 8)],
    "image to vector": [(1, 32, 32), (7,)],
    "small image to vector": [(1, 8, 8), (7,), (3,)],
    "vectors": [(6,), (5,), (4,), (3,), (2,)],
    "vector to image": [(6,), (2, 4, 4), (3,)],
    "scalar and matrix": [(2, 3), (), (3,)],
    "scalar data": [(), (2,)],
}
stacks = pytest.mark.parametrize("shapes", STACKS.values(), ids=STACKS)
forms = pytest.mark.parametrize("games", ["joint", "pairwise"])


def stack(shapes):
    spaces = [hk.Space("x", shapes[0]), *(hk.Space(f"z{level}", s) for level, s in enumerate(shapes[1:], 1))]
    return hk.Hierarchy(hk.Link(gaussian(a, b), gaussian(b, a)) for a, b in pairwise(spaces))


def build(shapes, **options):
    return hk.build_discriminator(stack(shapes), **{"width": 16, **options})


def states_for(discriminator, n=4):
    spaces = {space for game in discriminator.games for space in game.spaces}
    return {space.name: torch.randn(n, *space.shape) for space in sorted(spaces, key=lambda space: space.name)}


class MinibatchFeature(nn.Module):
    """A user's module that tells each sample how far it is from the others."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.cdist(x, x).mean(1, keepdim=True)], 1)


class Successor(nn.Module):
    """Adds to each sample the next one of the batch; the first reaches nobody."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([x[1:], torch.zeros_like(x[:1])])


class Largest(nn.Module):
    """Adds the largest features of the batch: a sample that is not among them reaches nobody."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.max(0).values


class Recorder(nn.Module):
    """A stage that keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x.flatten(1)


# --- logits and features ----------------------------------------------------------------------------------------------


@stacks
@pytest.mark.parametrize("n", [1, 5])
def test_any_stack_gives_one_logit_per_sample(shapes, n):
    d = build(shapes)
    assert isinstance(d, hk.JointDiscriminator)
    assert d(states_for(d, n)).shape == (n,)
    assert d.games == (d,)


@stacks
def test_features_are_what_the_logits_layer_reads(shapes):
    d = build(shapes).eval()
    states = states_for(d)
    features = d.features(states)
    assert features.shape == (4, 16)
    assert torch.equal(d.head[-1](features).squeeze(1), d(states))


@stacks
@forms
def test_every_state_matters_to_the_logit(shapes, games):
    d = build(shapes, games=games).eval()
    states = states_for(d)
    logits = d(states)
    for name, state in states.items():
        assert not torch.equal(d({**states, name: state + 1}), logits)


@stacks
@forms
def test_every_parameter_gets_a_gradient(shapes, games):
    """In the first step, or in the second: residual blocks are the identity until their last layers have moved."""
    d, learned = build(shapes, games=games), set()
    for _ in range(2):
        d.zero_grad()
        d(states_for(d, 16)).square().sum().backward()
        learned |= {name for name, p in d.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        torch.optim.SGD(d.parameters(), 0.1).step()
    assert learned == {name for name, _ in d.named_parameters()}


@pytest.mark.parametrize("norm", [None, "weight"])
def test_a_dense_residual_block_is_the_identity_at_the_start(norm):
    block, x = DenseResidualBlock(6, LayerOptions(norm, dropout=0.5)), torch.randn(4, 6)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    torch.optim.SGD(block.parameters(), 0.1).step()
    assert not torch.equal(block(x), x)


def test_stages_of_vectors_are_residual_where_the_data_are_convolved():
    """Such a stage starts as a linear map of the features before it and of the latent."""
    d = build([(3, 32, 32), (4, 8, 8), (7,)]).eval()
    blocks = [sum(isinstance(m, DenseResidualBlock) for m in stage.modules()) for stage in d.stages]
    assert blocks == [0, 0, 2]
    with torch.no_grad():
        x = torch.randn(5, d.stages[2][0].in_features)
        torch.testing.assert_close(d.stages[2](x), x @ d.stages[2][0].weight.T + d.stages[2][0].bias)
    assert not any(isinstance(m, DenseResidualBlock) for m in build([(1, 8, 8), (7,)]).modules())


@pytest.mark.parametrize(("size", "above"), [((33, 33), (9, 9)), ((50, 38), (13, 10)), ((7, 100), (4, 50))])
def test_odd_sides_are_halved_by_convolutions_down_to_the_maps_above(size, above):
    d = build([(3, *size), (4, *above), (5,)])
    assert not any(isinstance(m, nn.AdaptiveAvgPool2d) for m in d.modules())
    assert d(states_for(d, 4)).shape == (4,)


def test_a_missing_state_is_named():
    d = build([(6,), (5,), (4,)])
    with pytest.raises(KeyError, match="missing: z1, z2"):
        d({"x": torch.zeros(2, 6)})


def test_states_beyond_those_it_reads_do_not_disturb():
    d = build([(6,), (5,)]).eval()
    states = states_for(d)
    assert torch.equal(d({**states, "y": torch.zeros(4, 2)}), d(states))


# --- views ------------------------------------------------------------------------------------------------------------


@stacks
def test_a_slice_reads_the_first_levels_under_the_same_head(shapes):
    """Where the features there are a vector, as below a vector and at the top; maps are refused."""
    d = build(shapes).eval()
    states = states_for(d)
    for level in range(1, len(shapes)):
        if any(len(above) == 3 for above in shapes[level + 1 : level + 2]):
            with pytest.raises(ValueError, match=rf"cannot stop at z{level}: .* \(\d+×\d+×\d+\), .* reads .* \(16\)"):
                d[:level]
            continue
        view = d[:level]
        assert [space.name for space in view.spaces] == ["x", *(f"z{i}" for i in range(1, level + 1))]
        assert view.head is d.head
        assert all(a is b for a, b in zip(view.stages, d.stages, strict=False))
        assert {id(p) for p in view.parameters()} <= {id(p) for p in d.parameters()}
        own, every = view.state_dict(keep_vars=True), d.state_dict(keep_vars=True)
        assert all(own[key] is every[key] for key in own)
        below = {space.name: states[space.name] for space in view.spaces}
        assert view(below).shape == (4,)
        assert torch.equal(view(below), view(states))
        assert view.features(below).shape == (4, 16)
        assert not view.training
    assert d[: len(shapes) - 1] is d
    assert d[:] is d


def test_a_slice_keeps_mode_and_noise():
    d = build([(6,), (5,), (4,)], dropout=0.0, input_noise=0.3)
    assert d[:1].training
    assert d[:1].noise is d.noise


def made_of(widths):
    """Of linear stages, the features after each as wide as said, under a head that reads the last width."""
    spaces = [hk.Space(name, (3,)) for name in ("x", "z1", "z2")[: len(widths)]]
    given = [0, *widths]
    stages = [nn.Linear(below + 3, width) for below, width in zip(given, widths, strict=False)]
    return hk.JointDiscriminator(spaces, stages, nn.Sequential(nn.ReLU(), nn.Linear(widths[-1], 1)))


def test_a_users_own_stages_can_be_sliced_where_the_widths_agree():
    d = made_of([7, 4, 4])
    assert d[:1].features(states_for(d)).shape == (4, 4)
    with pytest.raises(ValueError, match=r"cannot stop at z1: .* \(5\), and its head reads .* \(4\)"):
        made_of([7, 5, 4])[:1]


def test_slicing_leaves_no_trace():
    stage = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16))
    d = build([(6,), (5,), (4,)], stages={0: stage})
    before, random = copy.deepcopy(d.state_dict()), torch.get_rng_state()
    d[:1]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[key], value) for key, value in d.state_dict().items())
    assert stage.training


@forms
@pytest.mark.parametrize(
    ("index", "error"), [(0, TypeError), (slice(1, 2), TypeError), (slice(0), IndexError)], ids=str
)
def test_slices_start_at_the_data_and_keep_a_level(games, index, error):
    with pytest.raises(error):
        build([(6,), (5,), (4,)], games=games)[index]


def test_the_number_of_stages_must_fit():
    spaces, head = [hk.Space("x", (3,)), hk.Space("z1", (2,))], nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(ValueError, match="as many stages"):
        hk.JointDiscriminator(spaces, [nn.Identity()], head)


# --- parts of the user's ----------------------------------------------------------------------------------------------


def test_a_users_stage_takes_the_place_of_the_built_one():
    d = build([(3, 16, 16), (2, 8, 8), (5,)])
    features = d.stages[0](torch.zeros(1, 3, 16, 16)).shape[1]
    mine = nn.Sequential(nn.Conv2d(features + 2, 11, 3, padding=1), nn.Flatten())
    d = build([(3, 16, 16), (2, 8, 8), (5,)], stages={1: mine})
    assert d.stages[1] is mine
    states = states_for(d)
    d(states).sum().backward()
    assert mine[0].weight.grad.abs().sum() > 0
    assert d(states).shape == (4,)


def test_a_users_head_gives_the_embedding():
    head = nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 1))
    d = build([(6,), (5,)], head=head)
    # Behind a layer from whatever the last stage gives.
    assert list(d.head)[2:] == list(head)
    assert d.features(states_for(d)).shape == (4, 9)


def test_building_leaves_a_users_stage_as_it_was():
    mine = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    before = copy.deepcopy(mine.state_dict())
    build([(6,), (5,)], stages={0: mine})
    assert mine.training
    assert all(torch.equal(before[key], value) for key, value in mine.state_dict().items())


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="no stage 5"):
        build([(6,), (5,)], stages={5: nn.Identity()})
    with pytest.raises(
        ValueError, match="games are 'joint', 'pairwise', or lists of two spaces or more among x, z1; got 'triple'"
    ):
        build([(6,), (5,)], games="triple")
    for wrong in (["x", "z9"], ["x"], ["z1", "z1"]):
        with pytest.raises(ValueError, match=f"lists of two spaces or more among x, z1; got {re.escape(repr(wrong))}"):
            build([(6,), (5,)], games=[["x", "z1"], wrong])
    with pytest.raises(ValueError, match="at least one game"):
        build([(6,), (5,)], games=[])
    with pytest.raises(ValueError, match="joint game"):
        build([(6,), (5,)], games="pairwise", stages={0: nn.Identity()})


@pytest.mark.parametrize("use", [True, False])
def test_weight_norm_is_on_the_stages_and_a_switch(use):
    d = build([(1, 32, 32), (2, 8, 8), (5,)], weight_norm=use)
    normed = [any(hasattr(m, "parametrizations") for m in stage.modules()) for stage in d.stages]
    assert normed == [use] * 3
    assert not any(hasattr(m, "parametrizations") for m in d.head.modules())


# --- several games ----------------------------------------------------------------------------------------------------


@stacks
def test_the_pairwise_games_are_one_for_each_adjacent_pair(shapes):
    d = build(shapes, games="pairwise").eval()
    levels = len(shapes) - 1
    assert isinstance(d, hk.MultiGameDiscriminator)
    assert len(d.games) == levels
    for level, game in enumerate(d.games):
        assert [space.shape for space in game.spaces] == shapes[level : level + 2]
    states = states_for(d)
    logits = d(states)
    assert logits.shape == (4, levels)
    for level, game in enumerate(d.games):
        assert torch.equal(logits[:, level], game(states))
    assert d.features(states).shape == (4, 16 * levels)
    assert d[:1].games == d.games[:1]
    assert d[:1](states).shape == (4, 1)
    assert not d[:1].training


def test_a_pair_reads_its_own_levels_only():
    d = build([(6,), (5,), (4,)], games="pairwise").eval()
    states = states_for(d)
    logits = d(states)
    changed = d({**states, "z2": states["z2"] + 1})
    assert torch.equal(changed[:, 0], logits[:, 0])
    assert not torch.equal(changed[:, 1], logits[:, 1])


def test_games_read_the_spaces_that_they_name_and_no_others():
    d = build([(6,), (5,), (4,), (3,)], games=[["x", "z3"], ["z2", "x", "z1"], ["z1", "z2"]]).eval()
    assert [[space.name for space in game.spaces] for game in d.games] == [["x", "z3"], ["x", "z1", "z2"], ["z1", "z2"]]
    assert [space.name for space in d.spaces] == ["x", "z1", "z2", "z3"]
    states = states_for(d)
    logits = d(states)
    assert logits.shape == (4, 3)
    for name in states:
        changed = d({**states, name: states[name] + 1})
        reads = [name in [space.name for space in game.spaces] for game in d.games]
        assert [not torch.equal(changed[:, i], logits[:, i]) for i in range(3)] == reads


def test_a_slice_of_several_games_has_those_on_the_first_levels():
    """In the order of the levels, whatever the order of the games."""
    d = build([(6,), (5,), (4,), (3,)], games=[["x", "z3"], ["x", "z2"], ["z1", "z2"], ["x", "z1"]])
    assert d[:3].games == d.games
    assert d[:2].games == d.games[1:]
    assert d[:1].games == d.games[3:]
    assert d[:2][:1].games == d.games[3:]
    with pytest.raises(ValueError, match="no game of this discriminator reads x, z1 alone"):
        build([(6,), (5,), (4,)], games=[["x", "z2"], ["z1", "z2"]])[:1]


@pytest.mark.parametrize("games", ["joint", "pairwise"])
def test_joint_and_pairwise_are_two_cases_of_named_games(games):
    shapes = [(6,), (5,), (4,)]
    named = {"joint": [["x", "z1", "z2"]], "pairwise": [["x", "z1"], ["z1", "z2"]]}[games]
    torch.manual_seed(0)
    d = build(shapes, games=games).eval()
    torch.manual_seed(0)
    other = build(shapes, games=named).eval()
    states = states_for(d)
    assert torch.equal(d(states).reshape(4, -1), other(states))
    assert torch.equal(d.features(states), other.features(states))


def test_games_are_a_setting():
    games = (("x", "z1", "z2"), ("x", "z2"))
    model = hk.build(configured(data_shape=(6,), levels=2, hidden=8, discriminator__width=8, games=games))
    assert [tuple(space.name for space in game.spaces) for game in model.discriminator.games] == list(games)
    trainer = hk.Trainer(model, settings=configured(batch_size=8))
    assert trainer.step(torch.randn(8, 6))["d_loss"] == pytest.approx(4 * math.log(2), rel=0.2)
    with pytest.raises(InputError, match=r"discriminator: games are .* got .'x', 'z3'."):
        hk.build(configured(data_shape=(6,), levels=2, games=(("x", "z3"),)))


# --- discriminators of the user's -------------------------------------------------------------------------------------


class Columns(nn.Module):
    """A user's module from states to logits, which knows nothing of halikit."""

    def __init__(self, size=11, logits=1, keeps=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, logits))
        self.keeps = keeps

    def forward(self, states):
        logits = self.layers(torch.cat([states["x"], states["z1"]], 1))
        return logits if self.keeps else logits.squeeze(1)


class OwnDiscriminator(hk.Discriminator):
    """A user's discriminator with the interface of halikit, without features."""

    def __init__(self, spaces):
        super().__init__()
        self.spaces = tuple(spaces)
        self.network = Columns()

    def forward(self, states):
        return self.network(states)


@pytest.mark.parametrize("keeps", [False, True], ids=["(n,)", "(n, 1)"])
def test_any_module_from_states_to_logits_is_a_discriminator(keeps):
    module, h = Columns(keeps=keeps), stack([(6,), (5,)])
    d = hk.Model(h, module).discriminator
    assert isinstance(d, hk.Discriminator)
    assert d.spaces == h.spaces
    assert d.games == (d,)
    assert not d.has_features
    states = states_for(d)
    assert d(states).shape == (4,)
    assert torch.equal(d(states), module(states).reshape(4))
    assert {id(p) for p in d.parameters()} == {id(p) for p in module.parameters()}


def test_a_module_with_other_than_one_logit_is_refused_in_words():
    d = hk.Model(stack([(6,), (5,)]), Columns(logits=2, keeps=True)).discriminator
    with pytest.raises(ValueError, match=r"gives logits \(n,\); Columns gives \(4, 2\)"):
        d(states_for(d))


def test_a_discriminator_without_features_or_parts_says_so():
    h = stack([(6,), (5,), (4,)])
    d = OwnDiscriminator(h.spaces[:2])
    assert hk.Model(h, d).discriminator is d
    assert not d.has_features
    assert not hk.MultiGameDiscriminator([d, hk.build_discriminator(h, width=16)]).has_features
    assert hk.MultiGameDiscriminator([hk.build_discriminator(h, width=16)]).has_features
    with pytest.raises(NotImplementedError, match="OwnDiscriminator has no features"):
        d.features(states_for(d))
    with pytest.raises(ValueError, match="OwnDiscriminator has no part that reads fewer levels"):
        d[:1]


@pytest.mark.parametrize("kind", ["module", "discriminator", "among several games"])
def test_a_users_discriminator_trains_and_is_saved(kind, tmp_path):
    def model():
        torch.manual_seed(0)
        h = tiny_ladder(1, (6,))
        if kind == "module":
            return hk.Model(h, Columns(h.spaces[0].size + h.spaces[1].size))
        own = OwnDiscriminator(h.spaces)
        own.network = Columns(h.spaces[0].size + h.spaces[1].size)
        return hk.Model(
            h, own if kind == "discriminator" else hk.MultiGameDiscriminator([own, hk.build_discriminator(h)])
        )

    settings = configured(steps=4, batch_size=8, log_every=2, checkpoint_every=2)
    trained = model()
    before = copy.deepcopy(trained.discriminator.state_dict())
    trainer = hk.Trainer(trained, torch.randn(60, 6), settings=settings, out=tmp_path / "run")
    trainer.fit()
    assert trainer.method.single_pass
    after = trained.discriminator.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    loaded = hk.load(tmp_path / "run", weights="raw", build=model)
    assert all(torch.equal(after[name], value) for name, value in loaded.discriminator.state_dict().items())


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"input_noise": 0.2, "dropout": 0.0}, {"input_noise": 0.0, "dropout": 0.2}], ids=str
)
@forms
def test_noise_and_dropout_act_in_training_only(games, options):
    d = build([(6,), (5,), (4,)], games=games, **options)
    states = states_for(d)
    assert not torch.equal(d(states), d(states))
    d.eval()
    assert torch.equal(d(states), d(states))


def test_without_noise_and_dropout_training_is_evaluation():
    d = build([(6,), (5,), (4,)], dropout=0.0, input_noise=0.0)
    states = states_for(d)
    assert torch.equal(d.train()(states), d.eval()(states))


def test_input_noise_has_its_scale_and_is_on_the_data_alone():
    recorders = {0: Recorder(), 1: Recorder()}
    d = build([(6,), (5,)], stages=recorders, input_noise=0.3)
    states = states_for(d, 5000)
    d(states)
    noise = recorders[0].seen[-1] - states["x"]
    assert abs(noise.std().item() - 0.3) < 0.01
    assert abs(noise.mean().item()) < 0.01
    assert torch.equal(recorders[1].seen[-1][:, 6:], states["z1"])
    d.eval()(states)
    assert torch.equal(recorders[0].seen[-1], states["x"])


# --- coupling ---------------------------------------------------------------------------------------------------------


@stacks
@forms
def test_what_is_built_couples_no_samples(shapes, games):
    d = build(shapes, games=games)
    states = states_for(d)
    assert not couples_samples(d, states)
    d.eval()
    alone = torch.cat([d({name: state[i : i + 1] for name, state in states.items()}) for i in range(4)])
    torch.testing.assert_close(alone, d(states))


@pytest.mark.parametrize(
    "stage",
    [
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)),
        nn.Sequential(nn.Linear(6, 8), MinibatchFeature()),
        nn.Sequential(nn.Linear(6, 8), Successor()),
        nn.Sequential(nn.Linear(6, 8), Largest()),
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), MinibatchFeature(), nn.Linear(9, 8)),
    ],
    ids=["batch norm", "minibatch feature", "next sample", "maximum", "minibatch feature inside"],
)
def test_coupling_is_found_wherever_it_comes_from(stage):
    d = build([(6,), (5,), (4,)], stages={0: stage})
    assert all(couples_samples(d, states_for(d)) for _ in range(5))
    assert couples_samples(d.eval(), states_for(d))
    assert couples_samples(d[:1], states_for(d))


def test_coupling_is_found_in_the_head_and_in_upper_stages():
    head = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
    assert couples_samples(build([(6,), (5,)], head=head), states_for(build([(6,), (5,)])))
    d = build([(6,), (5,)], stages={1: nn.Sequential(nn.Linear(21, 4), MinibatchFeature())})
    assert couples_samples(d, states_for(d))


@pytest.mark.parametrize(
    "stage",
    [
        nn.Sequential(spectral_norm(nn.Linear(6, 8)), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)),
    ],
    ids=["spectral norm and dropout", "layer norm"],
)
def test_layers_that_keep_samples_apart_are_let_pass(stage):
    d = build([(6,), (5,)], stages={0: stage})
    assert not couples_samples(d, states_for(d))


def test_looking_for_coupling_leaves_no_trace():
    d = build([(6,), (5,)], stages={0: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))}).eval()
    states = states_for(d)
    before, random = copy.deepcopy(d.state_dict()), torch.get_rng_state()
    assert couples_samples(d, states)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[key], value) for key, value in d.state_dict().items())
    assert not d.training
    assert all(p.grad is None for p in d.parameters())


def test_an_empty_stage_of_the_users_is_used():
    hierarchy = tiny_ladder(1, (6,))
    identity = nn.Sequential()
    assert hk.build_discriminator(hierarchy, width=8, stages={0: identity}).stages[0] is identity


@pytest.mark.parametrize("option", ["width", "depth"])
def test_sizes_must_be_positive(option):
    with pytest.raises(ValueError, match=f"{option}=0"):
        hk.build_discriminator(tiny_ladder(1, (6,)), **{option: 0})


# --- spectral normalisation -------------------------------------------------------------------------------------------


@stacks
def test_every_layer_that_is_built_is_spectrally_normalised(shapes):
    """Its largest singular value, of the weights as a matrix (outputs, …), is 1 to 3 % after some evaluations."""
    d = build(shapes, weight_norm=False, spectral_norm=True, context=3)
    states = states_for(d) | {"context": torch.tensor([0, 1, 2, 0])}
    for _ in range(200):
        d(states)
    layers = [m for m in d.modules() if isinstance(m, nn.Linear | nn.Conv2d | ContextEmbedding)]
    assert len(layers) >= 2 + len(shapes)
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=0.03)
    assert not couples_samples(d, states)


def test_spectral_norm_moves_in_training_alone():
    d = build([(6,), (5,)], weight_norm=False, spectral_norm=True, dropout=0.0, input_noise=0.0)
    states = states_for(d)
    assert not torch.equal(d(states), d(states))
    d.eval()
    assert torch.equal(d(states), d(states))


def test_two_norms_are_refused():
    with pytest.raises(ValueError, match="for spectral_norm, set weight_norm to false"):
        build([(6,), (5,)], spectral_norm=True)


# --- the context ------------------------------------------------------------------------------------------------------


@forms
def test_the_projection_is_the_product_with_the_features(games):
    """``head(features) + ⟨embedding(c), features⟩`` in each game; a class is the attribute vector that is 1 there."""
    d = build([(6,), (5,), (4,)], games=games, context=3).eval()
    states, classes = states_for(d), torch.tensor([2, 0, 1, 2])
    logits = d({**states, "context": classes}).reshape(4, -1)
    for i, game in enumerate(d.games):
        features = game.features(states)
        expected = game.head[-1](features).squeeze(1) + (game.projection.weight[classes] * features).sum(1)
        torch.testing.assert_close(logits[:, i], expected)
    one_hot = torch.nn.functional.one_hot(classes, 3).float()
    torch.testing.assert_close(d({**states, "context": one_hot}).reshape(4, -1), logits)
    assert not couples_samples(d, {**states, "context": one_hot})


def test_a_part_and_a_users_head_have_the_projection():
    head = nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 1))
    d = build([(6,), (5,), (4,)], head=head, context=3)
    assert d.projection.weight.shape == (3, 9)
    assert d[:1].projection is d.projection
    states = states_for(d)
    assert d[:1]({**states, "context": torch.arange(4) % 3}).shape == (4,)


@pytest.mark.parametrize(
    ("context", "says"),
    [
        (None, "reads a context: give it among the states, under the name 'context'"),
        (torch.rand(4, 2), r"int64 of 3 classes, or \(n, 3\) numbers; got \(4, 2\) of torch.float32"),
        (torch.rand(4), r"got \(4,\) of torch.float32"),
        (torch.arange(4), "a class of the context lies between 0 and 2, got 0 to 3"),
    ],
    ids=["none", "attributes", "floats", "class"],
)
def test_a_context_that_does_not_fit_is_refused_in_one_line(context, says):
    d = build([(6,), (5,)], context=3)
    states = states_for(d) | ({} if context is None else {"context": context})
    with pytest.raises(InputError, match=says) as error:
        d(states)
    assert "\n" not in str(error.value)


def test_a_context_has_a_size():
    with pytest.raises(ValueError, match="got context=0"):
        build([(6,), (5,)], context=0)
