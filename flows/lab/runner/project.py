"""What a playbook names: its roles and the tasks a run would show. Read anew for each run, as Ansible does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.lab.argspecs import ProjectError, load_yaml

_PLAYBOOK = re.compile(r"[a-z0-9][a-z0-9_-]*\.ya?ml")
_ROLE_ACTIONS = ("include_role", "import_role", "ansible.builtin.include_role", "ansible.builtin.import_role")
_FILE_ACTIONS = ("include_tasks", "import_tasks", "ansible.builtin.include_tasks", "ansible.builtin.import_tasks")
_BLOCKS = ("block", "rescue", "always")


@dataclass(frozen=True)
class Playbook:
    """``roles`` in order of appearance, ``tasks`` as ``role : name``."""

    name: str
    roles: tuple[str, ...]
    tasks: tuple[str, ...]


def read(project: Path, name: str) -> Playbook:
    """Raises ProjectError where the playbook or a role it names does not exist or cannot be read."""
    path = project / "playbooks" / name
    if not _PLAYBOOK.fullmatch(name) or not path.is_file():
        raise ProjectError(f"the playbook: {name} could not be found")
    plays = load_yaml(path)
    if not isinstance(plays, list) or not all(isinstance(play, dict) for play in plays):
        raise ProjectError(f"{name} must be a list of plays")
    reader = _Reader(project / "roles")
    for play in plays:
        reader.play(play)
    return Playbook(name, tuple(dict.fromkeys(reader.roles)), tuple(reader.tasks))


class _Reader:
    def __init__(self, roles_dir: Path) -> None:
        self._roles_dir = roles_dir
        self.roles: list[str] = []
        self.tasks: list[str] = []

    def play(self, play: dict[str, Any]) -> None:
        self._list(play.get("pre_tasks"), self._roles_dir, "")
        for role in play.get("roles") or []:
            self._role(role if isinstance(role, str) else role.get("role") or role.get("name"))
        self._list(play.get("tasks"), self._roles_dir, "")
        self._list(play.get("post_tasks"), self._roles_dir, "")

    def _role(self, name: Any) -> None:
        if not isinstance(name, str) or not (self._roles_dir / name).is_dir():
            raise ProjectError(f"the role '{name}' was not found in roles")
        if name in self.roles:
            return
        self.roles.append(name)
        main = self._roles_dir / name / "tasks" / "main.yml"
        if main.is_file():
            self._file(main, name)

    def _file(self, path: Path, role: str) -> None:
        self._list(load_yaml(path), path.parent, role)

    def _list(self, tasks: Any, folder: Path, role: str) -> None:
        for task in tasks or []:
            for inner in self._inside(task):
                self._list(inner, folder, role)
            if name := task.get("name"):
                self.tasks.append(f"{role} : {name}" if role else str(name))
            for action in _ROLE_ACTIONS:
                if action in task:
                    self._role(_argument(task[action], "name"))
            for action in _FILE_ACTIONS:
                file = _argument(task.get(action), "file")
                if isinstance(file, str) and "{{" not in file and role:
                    if not (folder / file).is_file():
                        raise ProjectError(f"roles/{role}/tasks/{file} could not be found")
                    self._file(folder / file, role)

    @staticmethod
    def _inside(task: dict[str, Any]) -> Iterator[Any]:
        yield from (task[key] for key in _BLOCKS if key in task)


def _argument(action: Any, key: str) -> Any:
    return action.get(key) if isinstance(action, dict) else action
