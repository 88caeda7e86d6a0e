"""The presets, and Table 4 row by row."""

from __future__ import annotations

import tomllib

import pytest
import torch

import halikit as hk
from halikit.algorithm import supports_single_pass
from halikit.analysis.summary import Row, Summary, summarise
from halikit.cli.train import check_together, chosen_config
from halikit.config import Config, ConfigError, ModelSettings, override, to_toml
from halikit.errors import InputError
from halikit.model import resolved
from halikit.networks.paper import paper_discriminator
from halikit.objectives import jensen_shannon
from halikit.presets import PRESETS, comments
from halikit.presets.families import fitting

PAPER = [name for name in PRESETS if PRESETS[name]().model.family == "paper"]
LEAKY = "Leaky ReLU 0.02"

# Operation, kernel, strides, maps, BN/WN, dropout, nonlinearity: as printed, but for what is noted beside it.
# Then what comes out, and by hand: (inputs · kernel² [+ 1 bias]) · maps [+ 2 maps of BN, + maps of WN] parameters,
# inputs · kernel² · maps · positions multiply-adds.
TABLE_4 = {
    "G_z1(x)": [
        ("Convolution", "3×3", "1×1", 32, "×", 0.0, LEAKY, (32, 128, 128), 28 * 32, 27 * 32 * 128**2),
        ("Convolution", "3×3", "2×2", 64, "BN", 0.0, LEAKY, (64, 64, 64), 290 * 64, 288 * 64 * 64**2),
        ("ResNet block", "3×3", "1×1", 64, "BN", 0.0, LEAKY, (64, 64, 64), 2 * 578 * 64, 2 * 576 * 64 * 64**2),
        ("ResNet block", "3×3", "1×1", 64, "BN", 0.0, LEAKY, (64, 64, 64), 2 * 578 * 64, 2 * 576 * 64 * 64**2),
        ("Convolution", "3×3", "2×2", 128, "BN", 0.0, LEAKY, (128, 32, 32), 578 * 128, 576 * 128 * 32**2),
        ("ResNet block", "3×3", "1×1", 128, "BN", 0.0, LEAKY, (128, 32, 32), 2 * 1154 * 128, 2 * 1152 * 128 * 32**2),
        ("Convolution", "3×3", "1×1", 128, "×", 0.0, LEAKY, (128, 32, 32), 1153 * 128, 1152 * 128 * 32**2),
        ("Gaussian layer", "", "", None, "", None, "", (64, 32, 32), 0, 0),
    ],
    "G_z2(z1)": [
        ("Convolution", "3×3", "2×2", 256, "BN", 0.0, LEAKY, (256, 16, 16), 578 * 256, 576 * 256 * 16**2),
        ("Convolution", "3×3", "2×2", 256, "BN", 0.0, LEAKY, (256, 8, 8), 2306 * 256, 2304 * 256 * 8**2),
        ("Convolution", "3×3", "2×2", 512, "BN", 0.0, LEAKY, (512, 4, 4), 2306 * 512, 2304 * 512 * 4**2),
        ("ResNet block", "3×3", "1×1", 512, "BN", 0.0, LEAKY, (512, 4, 4), 2 * 4610 * 512, 2 * 4608 * 512 * 4**2),
        ("Convolution", "4×4", "valid", 512, "BN", 0.0, LEAKY, (512, 1, 1), 8194 * 512, 8192 * 512),
        ("Convolution", "1×1", "1×1", 512, "×", 0.0, "Linear", (512, 1, 1), 513 * 512, 512 * 512),
        # Not printed; 512 linear maps cannot be 256 elements otherwise.
        ("Gaussian layer", "", "", None, "", None, "", (256,), 0, 0),
    ],
    "G_z1(z2)": [
        # The input is printed as 128×1×1; z_2 has 256 elements everywhere else.
        ("Convolution", "1×1", "1×1", 4 * 4 * 256, "BN", 0.0, LEAKY, (4096, 1, 1), 258 * 4096, 256 * 4096),
        ("Bilinear upsampling", "", "", None, "", None, "", (256, 8, 8), 0, 0),
        ("ResNet block", "3×3", "1×1", 256, "BN", 0.0, LEAKY, (256, 8, 8), 2 * 2306 * 256, 2 * 2304 * 256 * 8**2),
        ("Bilinear upsampling", "", "", None, "", None, "", (256, 16, 16), 0, 0),
        ("Convolution", "3×3", "1×1", 256, "BN", 0.0, LEAKY, (256, 16, 16), 2306 * 256, 2304 * 256 * 16**2),
        ("Convolution", "3×3", "1×1", 128, "BN", 0.0, LEAKY, (128, 16, 16), 2306 * 128, 2304 * 128 * 16**2),
        ("Bilinear upsampling", "", "", None, "", None, "", (128, 32, 32), 0, 0),
        ("Convolution", "3×3", "1×1", 128, "×", 0.0, LEAKY, (128, 32, 32), 1153 * 128, 1152 * 128 * 32**2),
        ("Gaussian layer", "", "", None, "", None, "", (64, 32, 32), 0, 0),
    ],
    "G_x(z1)": [
        ("Convolution", "1×1", "1×1", 64, "BN", 0.0, LEAKY, (64, 32, 32), 66 * 64, 64 * 64 * 32**2),
        ("ResNet block", "3×3", "1×1", 64, "BN", 0.0, LEAKY, (64, 32, 32), 2 * 578 * 64, 2 * 576 * 64 * 32**2),
        ("Bilinear upsampling", "", "", None, "", None, "", (64, 64, 64), 0, 0),
        ("ResNet block", "3×3", "1×1", 64, "BN", 0.0, LEAKY, (64, 64, 64), 2 * 578 * 64, 2 * 576 * 64 * 64**2),
        ("Bilinear upsampling", "", "", None, "", None, "", (64, 128, 128), 0, 0),
        ("Convolution", "3×3", "1×1", 64, "BN", 0.0, LEAKY, (64, 128, 128), 578 * 64, 576 * 64 * 128**2),
        ("Convolution", "3×3", "1×1", 32, "BN", 0.0, LEAKY, (32, 128, 128), 578 * 32, 576 * 32 * 128**2),
        ("Convolution", "1×1", "1×1", 3, "×", 0.0, "Tanh", (3, 128, 128), 33 * 3, 32 * 3 * 128**2),
    ],
    "D(x)": [
        ("Convolution", "3×3", "1×1", 32, "WN", 0.2, LEAKY, (32, 128, 128), 29 * 32, 27 * 32 * 128**2),
        ("Convolution", "3×3", "2×2", 64, "WN", 0.5, LEAKY, (64, 64, 64), 290 * 64, 288 * 64 * 64**2),
        ("Convolution", "3×3", "2×2", 64, "WN", 0.5, LEAKY, (64, 32, 32), 578 * 64, 576 * 64 * 32**2),
        ("Convolution", "3×3", "1×1", 64, "WN", 0.5, LEAKY, (64, 32, 32), 578 * 64, 576 * 64 * 32**2),
    ],
    "D(x, z1)": [
        ("Convolution", "3×3", "1×1", 128, "WN", 0.2, LEAKY, (128, 32, 32), 1154 * 128, 1152 * 128 * 32**2),
        ("Convolution", "3×3", "2×2", 256, "WN", 0.5, LEAKY, (256, 16, 16), 1154 * 256, 1152 * 256 * 16**2),
        ("Convolution", "3×3", "2×2", 256, "WN", 0.5, LEAKY, (256, 8, 8), 2306 * 256, 2304 * 256 * 8**2),
        ("Convolution", "3×3", "2×2", 512, "WN", 0.5, LEAKY, (512, 4, 4), 2306 * 512, 2304 * 512 * 4**2),
        ("Convolution", "4×4", "valid", 512, "WN", 0.2, LEAKY, (512, 1, 1), 8194 * 512, 8192 * 512),
    ],
    "D(x, z1, z2)": [
        # The input is printed as 512×1×1, which is before z_2 is concatenated.
        ("Convolution", "1×1", "1×1", 1024, "×", 0.5, LEAKY, (1024, 1, 1), 769 * 1024, 768 * 1024),
        ("Convolution", "1×1", "1×1", 1024, "×", 0.5, LEAKY, (1024, 1, 1), 1025 * 1024, 1024 * 1024),
        # The sigmoid that is printed belongs to the losses, which take logits.
        ("Convolution", "1×1", "1×1", 1, "×", 0.5, "Linear", (1, 1, 1), 1025, 1024),
    ],
}

# Parameters and multiply-adds per image of encoder, decoder and discriminator.
COSTS = {
    "svhn": [(11_191_680, 411_140_096), (3_478_307, 492_929_024), (7_713_697, 96_568_320)],
    "cifar10": [(11_191_680, 411_140_096), (3_478_307, 492_929_024), (7_713_697, 96_568_320)],
    "celeba64": [(11_191_680, 413_794_304), (3_478_307, 663_093_248), (7_750_689, 122_815_488)],
    "celeba128": [(11_782_016, 1_396_441_088), (3_478_307, 1_743_257_600), (8_341_025, 454_296_576)],
    "imagenet128": [(11_782_016, 1_396_441_088), (3_478_307, 1_743_257_600), (8_341_025, 454_296_576)],
    "ali_svhn": [(11_117_888, 392_265_728), (3_404_515, 474_054_656), (7_639_969, 77_693_952)],
    "ali_cifar10": [(11_117_888, 392_265_728), (3_404_515, 474_054_656), (7_639_969, 77_693_952)],
    "ali_celeba64": [(11_117_888, 394_919_936), (3_404_515, 644_218_880), (7_676_961, 103_941_120)],
    "ali_celeba128": [(11_708_224, 1_320_943_616), (3_404_515, 1_667_760_128), (8_267_297, 378_799_104)],
    "ali_imagenet128": [(11_708_224, 1_320_943_616), (3_404_515, 1_667_760_128), (8_267_297, 378_799_104)],
}
# The kernels of autoencoders are those of the game, with a scale more, fitted, for p(x|z_1).
COSTS |= {
    f"{prefix}_{name}": [encoder, (parameters + 1, multiply_adds), (0, 0)]
    for prefix, model in (("vae", "ali_{}"), ("hvae", "{}"))
    for name in ("svhn", "cifar10", "celeba64", "celeba128", "imagenet128")
    for encoder, (parameters, multiply_adds), _ in [COSTS[model.format(name)]]
}


def shapes_of(config: Config) -> Summary:
    with torch.device("meta"):
        return summarise(hk.build(config))


def with_shape(config: Config) -> Config:
    return config if config.model.data_shape else override(config, {"model.data_shape": (1, 28, 28)})


def as_tuples(*groups: tuple[Row, ...]) -> list[tuple[object, ...]]:
    rows = [row for group in groups for row in group]
    return [
        (
            *(row.operation, row.kernel, row.strides, row.maps, row.norm),
            *(None if row.dropout is None else round(row.dropout, 2), row.nonlinearity),
            *(row.output, row.parameters, row.multiply_adds),
        )
        for row in rows
    ]


@pytest.mark.parametrize("name", ["imagenet128", "celeba128"])
def test_table_4(name: str) -> None:
    summary = shapes_of(PRESETS[name]())
    d_x, d_x_z1, d_x_z1_z2, logit = (part.rows for part in summary.discriminator)
    found = {
        "G_z1(x)": as_tuples(summary.encoder[0].rows),
        "G_z2(z1)": as_tuples(summary.encoder[1].rows),
        "G_z1(z2)": as_tuples(summary.decoder[1].rows),
        "G_x(z1)": as_tuples(summary.decoder[0].rows),
        "D(x)": as_tuples(d_x),
        "D(x, z1)": as_tuples(d_x_z1),
        "D(x, z1, z2)": as_tuples(d_x_z1_z2, logit),
    }
    assert found == TABLE_4


@pytest.mark.parametrize("name", PAPER)
def test_costs(name: str) -> None:
    groups = shapes_of(PRESETS[name]()).groups.values()
    found = [(sum(p.parameters for p in parts), sum(p.multiply_adds for p in parts)) for parts in groups]
    assert found == COSTS[name]


@pytest.mark.parametrize("name", PAPER)
def test_latents_have_the_shapes_of_section_4(name: str) -> None:
    config = PRESETS[name]()
    side = 32 if name.endswith("128") else 16
    latents = [(64, side, side), (256,)][-config.model.levels :]
    assert [space.shape for space in shapes_of(config).spaces] == [config.model.data_shape, *latents]


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "ali_cifar10"])
@torch.no_grad()
def test_states_and_features(name: str) -> None:
    config = PRESETS[name]()
    model = hk.build(config)
    h, d = model.hierarchy.eval(), model.discriminator.eval()
    x = torch.rand(2, *config.model.data_shape) * 2 - 1
    states = h.encode(x, sample=True)
    assert {name: tuple(z.shape) for name, z in states.items()} == {s.name: (2, *s.shape) for s in h.spaces}
    assert h.decode(states[h.spaces[-1].name])["x"].shape == x.shape
    assert d(states).shape == (2,)
    assert d.features(states).shape == (2, 1024)
    with pytest.raises(hk.NoDensityError):
        h.links[0].down(states["z1"])


def test_the_trainer_plays_a_step_in_a_single_pass() -> None:
    model = hk.build(override(hk.presets.cifar10(), {"device": "cpu"}))
    trainer = hk.Trainer(model)
    assert trainer.method.single_pass
    before = [p.detach().clone() for p in model.hierarchy.parameters()]
    assert trainer.step(torch.rand(2, 3, 32, 32))["d_loss"].isfinite()
    assert all((p != old).any() for p, old in zip(model.hierarchy.parameters(), before, strict=True))


def test_the_papers_discriminator_reads_all_levels_or_none() -> None:
    message = r"cannot stop at z1: .* \(512×1×1\), and its head reads .* \(1024\)"
    with pytest.raises(ValueError, match=message):
        hk.build(hk.presets.cifar10()).discriminator[:1]


@pytest.mark.parametrize("levels", [1, 2])
def test_no_size_of_discriminator_couples_samples(levels: int) -> None:
    model = hk.build(override(hk.presets.celeba64(), {"levels": levels, "data_shape": (1, 64, 64)}))
    states = {space.name: torch.randn(2, *space.shape) for space in model.hierarchy.spaces}
    assert supports_single_pass(model.discriminator, jensen_shannon, states)[0]


def test_weights_start_small_and_biases_at_zero() -> None:
    model = hk.build(hk.presets.cifar10())
    for module in (model.hierarchy, model.discriminator):
        weights = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        assert all(0.005 < m.weight.std() < 0.015 for m in weights if m.weight.numel() > 500)
        assert all(m.bias is None or not m.bias.any() for m in weights)


def test_the_map_before_a_gaussian_layer_may_stay_linear() -> None:
    summary = shapes_of(override(hk.presets.cifar10(), {"rectified": False}))
    up, down = summary.encoder[0].rows, summary.decoder[1].rows
    assert up[-2].nonlinearity == down[-2].nonlinearity == "Linear"
    assert [row.nonlinearity for row in up[:-2]] == [LEAKY] * 6


def test_the_paper_has_no_gauge_no_sleep_phase_and_noise_on_both_inputs() -> None:
    for name in PAPER:
        config = PRESETS[name]()
        assert config.preset == name
        assert config.model.gauge is config.model.max_scale is None
        if config.training.method == "adversarial":
            assert config.game.sleep_weights == 0
            assert config.training.encoder_noise == config.discriminator.input_noise == 0.2
    assert hk.presets.celeba128().training.steps == 123 * 1627


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("ali_")])
def test_ali_has_one_level_and_the_budget_of_the_hierarchy(name: str) -> None:
    ali, config = PRESETS[name](), PRESETS[name.removeprefix("ali_")]()
    assert ali.model.levels == 1
    assert ali.training == config.training
    assert ali.data == config.data


@pytest.mark.parametrize("name", [name for name in PRESETS if "vae_" in name])
def test_autoencoders_have_the_kernels_and_the_budget_of_the_game(name: str) -> None:
    vae, config = PRESETS[name](), PRESETS[name.replace("hvae_", "").replace("vae_", "ali_")]()
    assert vae.preset == name
    assert vae.data == config.data
    assert vae.training == config.training.model_copy(update={"method": "elbo", "encoder_noise": 0.0})
    assert vae.optimiser == config.optimiser.model_copy(update={"discriminator_learning_rate": None})
    with torch.device("meta"):
        parts = [hk.build(with_shape(c)).hierarchy.state_dict() for c in (vae, config)]
    shapes = [{key: tensor.shape for key, tensor in part.items() if "norm." not in key} for part in parts]
    assert shapes[0].pop("links.0.down.raw_scale") == ()
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["ali_digits", "ali_mnist"])
def test_ali_keeps_the_top_of_a_dense_hierarchy(name: str) -> None:
    shape = {"model.data_shape": (1, 8, 8) if name == "ali_digits" else (1, 28, 28)}
    joined = shapes_of(override(PRESETS[name](), shape))
    stack = shapes_of(override(PRESETS[name.removeprefix("ali_")](), shape))
    assert joined.spaces[-1].shape == stack.spaces[-1].shape
    hidden = [sum(row.norm == "BN" for part in s.encoder for row in part.rows) for s in (joined, stack)]
    assert hidden[0] == hidden[1]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)], ids=["dense", "conv"])
def test_any_settings_have_their_baselines(shape: tuple[int, ...]) -> None:
    config = resolved(override(fitting(3, shape), {"model.data_shape": shape, "training.steps": 77}))
    stack = hk.build(config).hierarchy
    for name, levels in (("ali", 1), ("vae", 1), ("hvae", 3)):
        baseline = hk.presets.BASELINES[name](config)
        hierarchy = hk.build(baseline).hierarchy
        assert len(hierarchy) == levels
        assert hierarchy.spaces[-1].shape == stack.spaces[-1].shape
        assert baseline.training.steps == 77
        assert baseline.training.method == ("adversarial" if name == "ali" else "elbo")
        assert baseline.preset is None


def test_fewer_levels_than_recommended_train_with_noise_that_falls() -> None:
    shape = (3, 32, 32)
    recommended, fewer = fitting(None, shape), fitting(2, shape)
    assert (recommended.model.levels, fitting(4, shape)) == (4, recommended)
    assert (recommended.game.latent_noise_until, fewer.game.latent_noise_until) == (None, 0.6)
    assert (recommended.game.sleep_statistics, fewer.game.sleep_statistics) == ("batch", "running")
    top = [hk.build(override(c, {"model.data_shape": shape})).hierarchy.spaces[-1].size for c in (recommended, fewer)]
    assert top == [64, 128]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_print_with_comments_that_toml_ignores(name: str) -> None:
    config = PRESETS[name]()
    text = to_toml(config, comments(name))
    assert text.startswith("# ")
    assert Config.parse(tomllib.loads(text)) == config


@pytest.mark.parametrize("name", PAPER)
def test_every_setting_of_the_paper_presets_has_a_source(name: str) -> None:
    config = PRESETS[name]()
    lines = to_toml(config, comments(name)).splitlines()
    settings = [line for line in lines if "=" in line and not line.startswith(("#", "preset"))]
    assert len(settings) > (35 if config.training.method == "adversarial" else 25)
    assert all("  # paper" in line or "  # ours" in line for line in settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.levels": 3}, "2 levels, or 1 for ALI, got 3"),
        ({"model.data_shape": (3, 48, 48)}, "128×128, 64×64, 32×32"),
        ({"model.data_shape": (3, 32, 64)}, "128×128, 64×64, 32×32"),
        ({"model.data_shape": (784,)}, "128×128, 64×64, 32×32"),
        ({"model.family": "conv"}, r"the paper's discriminator reads .*z1 \(64×16×16\)"),
    ],
)
def test_networks_that_the_paper_does_not_have(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hk.build(override(hk.presets.cifar10(), changes))


def test_the_papers_discriminator_fits_its_own_spaces_only() -> None:
    with pytest.raises(ValueError, match=r"reads x \(1×32×32\), z1 \(256\), got x \(1×32×32\), z1 \(7\)"):
        paper_discriminator((hk.Space("x", (1, 32, 32)), hk.Space("z1", (7,))))


@pytest.mark.parametrize(
    "changes",
    [{"hidden": 64}, {"widths": (4, 4)}, {"maps": 1}, {"model.depth": 3}, {"dropout": 0.1}, {"games": "pairwise"}],
)
def test_settings_of_other_families_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="has no effect here: the paper's"):
        override(hk.presets.cifar10(), changes)


def test_switches_of_the_paper_are_refused_elsewhere() -> None:
    with pytest.raises(ValueError, match="it is for family = 'paper'"):
        ModelSettings(rectified=False)


def test_the_papers_hierarchy_plays_against_another_discriminator() -> None:
    config = override(
        hk.presets.cifar10(),
        {"discriminator.family": "conv", "discriminator.width": 16, "gauge": "standardised"},
    )
    assert len(hk.build(config).discriminator[:1].spaces) == 2


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_refuse_other_levels(name: str) -> None:
    with pytest.raises(InputError, match=r"levels and its networks are made for them; for 3 levels leave it out"):
        check_together(chosen_config(preset=name, levels=3))
