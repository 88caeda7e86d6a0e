"""The schema: TOML in and out, and what is refused."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halikit.config import Config, ConfigError, TrainingConfig, override, parse_assignments, read_toml, to_toml
from halikit.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(name: str) -> None:
    config = PRESETS[name]()
    assert Config.parse(tomllib.loads(to_toml(config))) == config


@given(
    st.integers(1, 9),
    st.floats(1e-8, 1, exclude_min=True),
    st.text(max_size=20),
    st.one_of(st.none(), st.lists(st.integers(1, 99), min_size=1, max_size=4)),
)
def test_any_config_survives_toml(levels: int, rate: float, spec: str, widths: list[int] | None) -> None:
    changes = {"levels": levels, "learning_rate": rate, "data.spec": spec, "widths": widths, "gauge": None}
    if spec == "none":
        return  # stands for no value, by design
    config = override(Config(), changes)
    assert Config.parse(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"bath_size": 3}}, r"no setting 'training.bath_size'; did you mean 'training.batch_size'"),
        ({"trainning": {}}, r"no setting 'trainning'"),
        ({"training": {"batch_size": "many"}}, r"training.batch_size = 'many'"),
        ({"model": {"gauge": "standard"}}, r"model.gauge = 'standard'"),
        ({"model": {"levels": 0}}, r"model.levels = 0"),
        ({"training": {"learning_rate": float("nan")}}, r"training.learning_rate"),
        ({"discriminator": {"dropout": 1.0}}, r"discriminator.dropout"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(values)


def test_assignments_read_as_toml_or_text() -> None:
    changes = parse_assignments(["steps=7", "objective = relativistic", "widths=[4, 2]", "gauge=none"])
    config = override(Config(), changes)
    assert config.training.steps == 7
    assert config.training.objective == "relativistic"
    assert config.model.widths == (4, 2)
    assert config.model.gauge is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slope", "ambiguous: model.slope or discriminator.slope"),
        ("lerning_rate", "did you mean 'training.learning_rate'"),
    ],
)
def test_names_of_settings_are_resolved(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(Config(), {name: 1})


def test_files_that_are_no_config(tmp_path: pytest.TempPathFactory) -> None:
    path = tmp_path / "c.toml"
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(path)
    path.write_text("[training\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(path)


@pytest.mark.parametrize(
    ("grow_every", "levels", "expected"),
    [
        ("auto", 1, ()),
        ("auto", 2, ()),
        ("auto", 4, (100, 300, 600)),
        ("plateau", 1, ()),
        ("plateau", 4, (100, 300, 600)),
        (None, 5, ()),
        (10, 3, (10, 20)),
        (10, 2, (10,)),
    ],
)
def test_growth_counts_steps(grow_every: object, levels: int, expected: tuple[int, ...]) -> None:
    assert TrainingConfig(grow_every=grow_every, steps=1000).growth(levels) == expected


def test_growth_of_few_steps_adds_each_level_at_a_step_of_its_own() -> None:
    assert TrainingConfig(steps=10).growth(6) == (1, 2, 3, 4, 7)


def test_growth_is_the_default_from_three_levels_on() -> None:
    growth = TrainingConfig(steps=1000).growth(4)
    assert len(growth) == 3
    assert 0 < growth[0] < growth[1] < growth[2] < 1000


def test_messages_stay_short() -> None:
    with pytest.raises(ConfigError) as error:
        Config.parse({"training": {"steps": "a" * 10**6, "b" * 10**6: 1}, "c" * 10**6: 1})
    assert len(str(error.value).splitlines()) == 3
    assert len(str(error.value)) < 1000
