"""``lookup('zlh_given', 'deploy_agent.yml', server_id=…)``: what a flow would give to that playbook for that server. Holds secrets: ``no_log``."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: zlh_given
author: zlh-autopilot contributors
short_description: Variables of a playbook for one server
description: Derives them as the flows do, from the controller's settings, database, vault and catalog. They hold secrets.
options:
  _terms:
    description: The playbook's name.
    required: true
  server_id:
    description: Id of the server.
    type: str
    required: true
  certificate:
    description: Certificate that the agent has, PEM; it is kept while it is good.
    type: str
    default: ""
  key:
    description: Its key, PEM.
    type: str
    default: ""
  env_file:
    description: File of ZLH_*=value lines; without it the environment and what ZLH_ENV_FILE names.
    type: str
    default: ""
"""


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[dict[str, object]]:
        self.set_options(var_options=variables, direct=kwargs)
        options = {name: self.get_option(name) or "" for name in ("server_id", "certificate", "key", "env_file")}
        try:
            from flows import given
            from flows.errors import AutomationError
        except ImportError as error:
            raise AnsibleLookupError(f"the controller's code is not there: run the ansible-playbook of its own environment ({error})") from error
        try:
            return [given.variables(term, **options) for term in terms]
        except AutomationError as error:
            raise AnsibleLookupError(str(error)) from error
