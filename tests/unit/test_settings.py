"""Settings: which layer wins, and what is refused, by the variable's name and with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flows.environment import read_env_file
from flows.errors import MisconfiguredSetting
from flows.settings import Settings, fields, load


def layers(tmp_path: Path, *, env_file: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    path = tmp_path / "zlh.env"
    path.write_text("".join(f"{key}={value}\n" for key, value in env_file.items()))
    assert read_env_file(path) == dict(env_file)
    return {"ZLH_ENV_FILE": str(path), **environment}


def refusal(**variables: str) -> MisconfiguredSetting:
    with pytest.raises(MisconfiguredSetting) as caught:
        load({f"ZLH_{name}": value for name, value in variables.items()})
    return caught.value


def test_the_defaults_are_settings() -> None:
    assert load({}) == Settings()


def test_every_setting_has_a_default_and_says_what_it_is() -> None:
    for variable, path, field in fields():
        assert not field.is_required() and field.description, (variable, path)


TOKEN = "ZLH_API__ADMIN_TOKEN"


@pytest.mark.parametrize(
    ("env_file", "environment", "expected"),
    [
        ((), (), ""),
        (("plain",), (), "plain of env_file"),
        (("file",), (), "file of env_file"),
        ((), ("file",), "file of environment"),
        (("plain",), ("plain",), "plain of environment"),
        (("plain",), ("file",), "file of environment"),
        (("file",), ("plain",), "plain of environment"),
        (("file",), ("file",), "file of environment"),
    ],
)
def test_the_environment_comes_before_the_env_file_however_it_says_it(
    tmp_path: Path, env_file: tuple[str, ...], environment: tuple[str, ...], expected: str
) -> None:
    def layer(name: str, kinds: tuple[str, ...]) -> dict[str, str]:
        secret = tmp_path / name
        secret.write_text(f"file of {name}\n")
        return {TOKEN if kind == "plain" else f"{TOKEN}_FILE": f"plain of {name}" if kind == "plain" else str(secret) for kind in kinds}

    given = layers(tmp_path, env_file=layer("env_file", env_file), environment=layer("environment", environment))
    assert load(given).api.admin_token.get_secret_value() == expected


@pytest.mark.parametrize("where", ["env_file", "environment"])
def test_a_secret_said_twice_in_one_place_is_refused(tmp_path: Path, where: str) -> None:
    twice = {TOKEN: "a", f"{TOKEN}_FILE": str(tmp_path / "secret")}
    with pytest.raises(MisconfiguredSetting, match=f"{TOKEN}.*both") as caught:
        load(layers(tmp_path, **{"env_file": {}, "environment": {}, where: twice}))
    assert "remove one" in str(caught.value)


def test_a_secrets_file_that_is_overridden_is_not_read(tmp_path: Path) -> None:
    given = layers(tmp_path, env_file={f"{TOKEN}_FILE": "/nowhere"}, environment={TOKEN: "fromenv"})
    assert load(given).api.admin_token.get_secret_value() == "fromenv"
    with pytest.raises(MisconfiguredSetting, match=f"{TOKEN}_FILE"):
        load({f"{TOKEN}_FILE": "/nowhere"})


@pytest.mark.parametrize(
    ("variable", "near"), [("ZLH_API__ADMIN_TOKN", TOKEN), ("ZLH_DNS__ZONE_FILE", "ZLH_DNS__ZONE"), ("ZLH_X", "docs/settings.md")]
)
def test_an_unknown_variable_is_refused_by_name(tmp_path: Path, variable: str, near: str) -> None:
    for given in ({variable: "x"}, layers(tmp_path, env_file={variable: "x"}, environment={})):
        with pytest.raises(MisconfiguredSetting, match=variable) as caught:
            load(given)
        assert near in str(caught.value)
