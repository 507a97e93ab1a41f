"""Argument specs as Ansible would judge them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.lab.argspecs import ProjectError, problems

SPEC = """
argument_specs:
  main:
    short_description: a role
    options:
      app_name: {type: str, required: true}
      app_port: {type: int, required: true}
      app_kind: {type: str, choices: [game, dev], default: game}
      app_on: {type: bool}
      app_mods:
        type: list
        elements: dict
        options:
          name: {type: str, required: true}
          url: {type: str}
"""


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    (tmp_path / "app" / "meta").mkdir(parents=True)
    (tmp_path / "app" / "meta" / "argument_specs.yml").write_text(SPEC)
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "wrong"),
    [
        ({"app_name": "a", "app_port": 1}, []),
        ({"app_name": "a", "app_port": "25565", "app_on": "yes", "app_kind": "dev"}, []),
        ({"app_name": "a", "app_port": 1, "other_thing": 1}, []),
        ({"app_port": 1}, ["missing required arguments: app_name"]),
        ({"app_name": "a", "app_port": "many"}, ["app_port"]),
        ({"app_name": "a", "app_port": 1, "app_kind": "web"}, ["app_kind must be one of: game, dev"]),
        ({"app_name": "a", "app_port": 1, "app_on": "perhaps"}, ["app_on"]),
        ({"app_name": "a", "app_port": 1, "app_mods": "x"}, ["dictionary requested", "app_mods"]),
        ({"app_name": "a", "app_port": 1, "app_mods": [{"name": "m", "url": "u"}]}, []),
        ({"app_name": "a", "app_port": 1, "app_mods": [{"url": "u"}]}, ["name found in app_mods"]),
        ({"app_name": "a", "app_port": 1, "app_mods": [{"name": "m", "link": "u"}]}, ["app_mods.link"]),
        ({"app_name": "a", "app_port": 1, "app_prot": 2}, ["app_prot is not among its arguments"]),
        ({"app_name": None, "app_port": 1}, []),  # null is a value to Ansible; the role's own assertions refuse it
    ],
)
def test_variables_are_judged(roles: Path, variables: dict[str, Any], wrong: list[str]) -> None:
    found = problems(roles, ["app"], variables)
    assert len(found) == len(wrong)
    for text, part in zip(found, wrong, strict=True):
        assert text.startswith("app: ") and part in text


def test_what_the_role_defaults_need_not_be_given(roles: Path) -> None:
    (roles / "app" / "defaults").mkdir()
    (roles / "app" / "defaults" / "main.yml").write_text("app_name: a\napp_port: '{{ app_base + 1 }}'\n")
    assert problems(roles, ["app"], {}) == []
    assert len(problems(roles, ["app"], {"app_port": "many"})) == 1


def test_several_roles_are_judged_together(roles: Path) -> None:
    (roles / "base" / "meta").mkdir(parents=True)
    (roles / "base" / "meta" / "argument_specs.yml").write_text("argument_specs: {main: {options: {base_key: {type: str, required: true}}}}")
    assert problems(roles, ["base", "app"], {"base_key": "k", "app_name": "a", "app_port": 1}) == []
    assert problems(roles, ["base", "app"], {"app_name": "a", "app_port": 1}) == ["base: missing required arguments: base_key"]


@pytest.mark.parametrize("text", ["- a", "argument_specs: {}", "argument_specs: {main: 7}", "a: [", None])
def test_a_role_without_a_readable_spec_is_refused(roles: Path, text: str | None) -> None:
    path = roles / "app" / "meta" / "argument_specs.yml"
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(ProjectError, match=r"app|argument_specs"):
        problems(roles, ["app"], {})
