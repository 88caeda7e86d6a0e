"""The schema: TOML in and out, and what is refused."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halikit.config import Config, ConfigError, ModelSettings, override, parse_assignments, read_toml, sections, to_toml
from halikit.presets import PRESETS
from halikit.renamed import GONE, RENAMED


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(name: str) -> None:
    config = PRESETS[name]()
    assert Config.parse(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_toml_has_every_section(name: str) -> None:
    config = PRESETS[name]()
    tables = tomllib.loads(to_toml(config))
    assert set(tables) == set(Config.model_fields)
    for section in sections():
        if section != "labels" or config.labels is not None:
            assert set(tables[section]) == set(getattr(config, section).applicable)
    if config.labels is None:
        assert tables["labels"] == "none"


def test_a_section_that_is_left_out_has_its_defaults() -> None:
    assert Config.parse({}) == Config()
    assert Config.parse({"model": {"levels": 2}}) == Config(model=ModelSettings(levels=2))
    for name, kind in sections().items():
        # Without [labels] no labels are used, and there is no default for their number.
        assert getattr(Config.parse({}), name) == (None if name == "labels" else kind())


def test_labels_left_out_or_none_are_none() -> None:
    assert Config.parse({}).labels is None
    assert Config.parse({"labels": "none"}).labels is None
    assert override(Config(), {"labels": "none"}) == Config()
    labelled = override(Config(), {"labels.number": 20})
    assert labelled.labels.number == 20
    assert Config.parse(tomllib.loads(to_toml(labelled))) == labelled
    assert override(labelled, {"labels": "none"}) == Config()


def test_renamed_settings_exist_under_their_new_names_only() -> None:
    names = {f"{section}.{key}" for section, kind in sections().items() for key in kind.model_fields}
    assert set(RENAMED.values()) <= names
    assert not names & (RENAMED | GONE).keys()
    assert len(set(RENAMED.values())) == len(RENAMED)


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
        ({"training": {"learning_rate": float("nan")}}, r"optimiser.learning_rate"),
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
    assert config.game.objective == "relativistic"
    assert config.model.widths == (4, 2)
    assert config.model.gauge is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slope", "ambiguous: model.slope or discriminator.slope"),
        ("lerning_rate", "did you mean 'optimiser.learning_rate'"),
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


@pytest.mark.parametrize("name", ["grow_every", "training.grow_every", "settled_rate", "training.settled_rate"])
def test_settings_of_growth_are_gone_and_it_says_since_when(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no setting 'training\.\w+' any more: since 0.2.0 all levels train at once"):
        override(Config(), {name: 5})
    with pytest.raises(ConfigError, match=r"no setting 'training\.\w+' any more: since 0.2.0 all levels train at once"):
        Config.parse({"training": {name.removeprefix("training."): 5}}, "c.toml")


def test_messages_stay_short() -> None:
    with pytest.raises(ConfigError) as error:
        Config.parse({"training": {"steps": "a" * 10**6, "b" * 10**6: 1}, "c" * 10**6: 1})
    assert len(str(error.value).splitlines()) == 3
    assert len(str(error.value)) < 1000


def test_a_section_without_effect_names_the_settings_in_it() -> None:
    with pytest.raises(ConfigError, match=r"objective = 'relativistic' in \[game\] has no effect here"):
        override(Config(), {"method": "elbo", "objective": "relativistic"})


def test_a_number_of_labels_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"labels is a section; the number of examples is labels\.number"):
        override(Config(), {"labels": 100})
    assert override(Config(), {"labels": "none"}).labels is None
