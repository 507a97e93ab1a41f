"""The playbook runner of the simulated fleet: the same playbooks and argument specs as Ansible, acted out on simulated containers.

``project`` reads playbooks and roles, ``effects`` changes a container, ``part`` serves ``POST /playbooks`` on the control listener.
"""

from flows.lab.runner.part import RunnerPart, start

__all__ = ["RunnerPart", "start"]
