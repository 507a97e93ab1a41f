"""What becomes of debootstrap's result, and the stand-in for Java."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from flows.lab.lxc import clean, recipe


@pytest.fixture
def root(tmp_path: Path) -> Path:
    units = tmp_path / "etc/systemd/system"
    for directory in ("etc/apt/sources.list.d", "etc/ssh", "var/lib/dbus", "var/cache/apt/archives", "var/lib/apt/lists/partial", "usr/bin"):
        (tmp_path / directory).mkdir(parents=True)
    for wants, unit in (("timers.target.wants", "apt-daily.timer"), ("multi-user.target.wants", "unattended-upgrades.service")):
        (units / wants).mkdir(parents=True)
        (units / wants / unit).symlink_to(f"/nowhere/{unit}")  # its target exists only inside the image
    (units / "multi-user.target.wants/ssh.service").symlink_to("/nowhere/ssh.service")
    (tmp_path / "etc/resolv.conf").symlink_to("/nowhere/resolv.conf")
    (tmp_path / "var/lib/dbus/machine-id").symlink_to("/nowhere/machine-id")
    for name in ("etc/ssh/ssh_host_rsa_key", "etc/ssh/sshd_config", "etc/hostname", "etc/apt/sources.list", "etc/apt/sources.list.d/m.sources"):
        (tmp_path / name).write_text("http://user:password@mirror.example\n")
    recipe.furnish(tmp_path)
    return tmp_path


def test_furnish(root: Path) -> None:
    units = root / "etc/systemd/system"
    assert [link.name for link in units.glob("*.wants/*") if link.is_symlink()] == ["ssh.service"]
    assert (units / "systemd-udevd.service").readlink() == Path("/dev/null")
    assert sorted(path.name for path in (root / "etc/ssh").iterdir()) == ["sshd_config"]
    assert not (root / "etc/hostname").exists() and not (root / "var/lib/dbus/machine-id").is_symlink()
    assert not (root / "etc/resolv.conf").is_symlink() and (root / "etc/machine-id").read_text() == ""
    text = "".join(path.read_text() for path in (root / "etc/apt").rglob("*") if path.is_file())
    assert "mirror.example" not in text, "the host's mirror, and what it may be called by, stays the host's"
    recipe.furnish(root)  # harmless twice


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    first = recipe.digest()
    assert first == recipe.digest() and len(first) == 16
    monkeypatch.setattr(recipe, "PACKAGES", (*recipe.PACKAGES, "curl"))
    assert recipe.digest() != first


def test_java(root: Path, tmp_path: Path) -> None:
    java = root / "usr/bin/java"
    assert stat.S_IMODE(java.stat().st_mode) == 0o755
    jar = tmp_path / "a server.jar"
    jar.write_text("x")
    text = java.read_text().replace("/usr/bin/node", "printf '%s|'").replace("exec ", "")
    script = tmp_path / "java"
    script.write_text(text)

    def run(*argv: str) -> tuple[int, str]:
        ended = subprocess.run(["sh", str(script), *argv], capture_output=True, text=True)
        return ended.returncode, ended.stdout + ended.stderr

    assert run("-Xms128M", "-Xmx2G", "-XX:+UseG1GC", "-jar", str(jar), "nogui", "-jar")[1].startswith(f"--max-old-space-size=2048|{jar}|nogui|-jar|")
    assert run("-Xmx768m", "-jar", str(jar))[1].startswith(f"--max-old-space-size=768|{jar}|")
    assert run("-jar", str(jar))[1].startswith(f"{jar}|")
    assert run("-jar", "/nowhere.jar") == (1, "Error: Unable to access jarfile /nowhere.jar\n")
    assert run("-jar")[0] == run()[0] == run("-cp", "Main")[0] == 1
    assert run("-version") == (0, 'openjdk version "21-lab"\n')


def test_clean_where_there_is_nothing(tmp_path: Path) -> None:
    assert clean(tmp_path) == clean(tmp_path / "none") == []
    assert list(tmp_path.iterdir()) == []
