"""What ends the agent for good, and what systemd shall try again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from zlh_agent import durable
from zlh_agent.__main__ import EX_CONFIG, main


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOENT, EX_CONFIG), (errno.EACCES, EX_CONFIG), (errno.ENOTDIR, EX_CONFIG), (errno.ENOSPC, 1), (errno.EIO, 1), (errno.EMFILE, 1)],
)
def test_only_what_cannot_mend_itself_is_the_configurations_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'server_id = "s"\nkind = "dev"\nbind = "127.0.0.1"\ntoken = "{"t" * 43}"\nstate_dir = "{tmp_path}/state"\n')
    config.chmod(0o600)

    def fails(directory: Path) -> None:
        raise OSError(number, "it says why", str(directory))

    monkeypatch.setattr(durable, "tidy", fails)
    assert main(["--config", str(config)]) == code
    assert f"state_dir: {tmp_path}/state: it says why" in capsys.readouterr().err
