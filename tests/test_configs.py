"""configs/base.py and the settings' defaults are one list, written twice and compared here."""

import dataclasses
import importlib
import pathlib

import pytest

from configs import base
from medcare_jax.settings import Settings, make_settings
from medcare_jax.study.settings import make_study

CONFIGS = sorted(
    path.stem
    for path in pathlib.Path(base.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "base")
)

# Where base.py says something else than the dataclass, which serves both stages.
OTHER_THAN_DEFAULT = {"da.epochs": 3}


def defaults_of(kind, prefix="") -> dict[str, object]:
    """Every field of a dataclass and of those in it by its dotted key."""
    found = {}
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        if dataclasses.is_dataclass(field.type):
            found |= defaults_of(field.type, f"{name}.")
        elif field.default_factory is not dataclasses.MISSING:
            found[name] = field.default_factory()
        else:
            found[name] = None if field.default is dataclasses.MISSING else field.default
    return found


def values_of(config, sections, prefix="") -> dict[str, object]:
    """Every value of a config by its dotted key, down to what the settings call a section."""
    found = {}
    for key, value in config.items():
        is_section = any(name.startswith(f"{prefix}{key}.") for name in sections)
        part = (
            values_of(value, sections, f"{prefix}{key}.") if is_section else {prefix + key: value}
        )
        found |= part
    return found


def test_every_field_has_its_key_and_default_in_base():
    defaults = defaults_of(Settings)
    values = values_of(base.get_config().to_dict(), defaults)
    assert set(values) == set(defaults)
    assert values == defaults | OTHER_THAN_DEFAULT
    assert len(values) > 50


def test_base_is_complete_but_for_the_base_model():
    config = base.get_config()
    config.base.path = "some/folder"
    settings = make_settings(config)
    assert settings.base.path == "some/folder"
    assert settings.da.epochs == 3
    assert settings.adapters.scale == 2.0


def test_base_is_locked():
    config = base.get_config()
    with pytest.raises(AttributeError, match="lerning_rate"):
        config.mka.lerning_rate = 1.0
    with pytest.raises(KeyError, match="learning_rate"):
        config.mka["lerning_rate"] = 1.0


def test_two_configs_share_nothing():
    one, other = base.get_config(), base.get_config()
    one.mka.epochs = 9
    assert (one.da.epochs, other.mka.epochs) == (3, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_other_config_makes_settings_and_says_how_it_is_run(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert config.is_locked
    if "drawn" in config:
        config.drawn.folder = "some/folder"
    if "run" in config:  # a study of many runs
        make_study(config)
    else:
        config.base.path = config.base.path or "some/folder"
        make_settings(config)
    assert f"--config=configs/{name}.py" in module.__doc__
