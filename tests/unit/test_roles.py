"""What roles and flows agree on."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from flows.act import playbook_variables


def test_no_role_has_a_default_for_what_flows_give() -> None:
    """By hand the controller's values come after the inventory's, and Ansible counts a role's defaults among those: they would win. So an
    agent's packet filter was once lifted by a play that should have changed nothing."""
    given = set(re.findall(r'"((?:base|zlh_agent|fabric_server|dev_environment)_\w+)"', Path(playbook_variables.__file__).read_text()))
    assert len(given) > 15
    for file in Path("roles").glob("*/defaults/main.yml"):
        assert not given & set(yaml.safe_load(file.read_text())), file
