"""``lookup('zlh_setting', 'proxmox.url')``: a setting of the controller, for the inventories. With ``env_file`` of that file alone.

``proxmox.url`` also sets REQUESTS_CA_BUNDLE to ZLH_PROXMOX__CA_FILE, where that is set, for this process: ``community.proxmox`` has no option
for a CA, and one that the environment names for other sites would not know the cluster's.
"""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: zlh_setting
author: zlh-autopilot contributors
short_description: A setting of the controller
description: Reads the settings of zlh-autopilot, from the environment or an env file.
options:
  _terms:
    description: Names like proxmox.url.
    required: true
  env_file:
    description: File of ZLH_*=value lines; without it the environment and what ZLH_ENV_FILE names.
    type: str
    default: ""
"""


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[str]:
        self.set_options(var_options=variables, direct=kwargs)
        env_file = self.get_option("env_file")
        try:
            from flows import given
            from flows.errors import AutomationError
        except ImportError as error:
            raise AnsibleLookupError(f"the controller's code is not there: run the ansible-playbook of its own environment ({error})") from error
        try:
            if "proxmox.url" in terms and (bundle := given.setting("proxmox.ca_file", env_file)):
                os.environ["REQUESTS_CA_BUNDLE"] = bundle
            return [given.setting(term, env_file) for term in terms]
        except AutomationError as error:
            raise AnsibleLookupError(str(error)) from error
