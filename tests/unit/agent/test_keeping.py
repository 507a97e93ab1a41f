"""What is kept on disk: whole or not at all, and what cannot be read guesses nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from zlh_agent import durable, record
from zlh_agent.fence import Fence, Stale, Unreadable
from zlh_agent.jobs import KEPT, Jobs
from zlh_agent.record import Operation, Record


def test_the_fence_refuses_what_is_lower_and_admits_the_same_again(tmp_path: Path) -> None:
    fence = Fence("lease token", tmp_path / "lease")
    fence.admit(7)
    fence.admit(7)
    with pytest.raises(Stale, match="lease token 6 is older than 7"):
        fence.admit(6)
    assert Fence("lease token", tmp_path / "lease").highest == 7
    assert (tmp_path / "lease").stat().st_mode & 0o777 == 0o600


def test_who_removes_the_file_lets_everybody_in_again(tmp_path: Path) -> None:
    fence = Fence("lease token", tmp_path / "lease")
    fence.admit(7)
    (tmp_path / "lease").unlink()
    fence.admit(1)
    assert fence.highest == 1


@pytest.mark.parametrize("content", [b"", b"-1", b"seven", b"\xff", b"9" * 20])
def test_a_fence_that_says_nothing_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease").write_bytes(content)
    with pytest.raises(Unreadable):
        Fence("lease token", tmp_path / "lease").admit(2**62)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.write(tmp_path / "x", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.write(tmp_path / "x", "old")
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_: os._exit(9))
        if (child := os.fork()) == 0:
            durable.write(tmp_path / "x", "new")
        os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2
    durable.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_jobs_outlive_the_agent_and_what_ran_is_interrupted(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs.json")
    done, cut = jobs.add("start", "api"), jobs.add("stop", "api")
    jobs.finish(done, "succeeded")
    later = Jobs(tmp_path / "jobs.json")
    assert [(job.id, job.state) for job in later.all()] == [(done.id, "succeeded"), (cut.id, "interrupted")]


def test_the_last_two_hundred_jobs_are_kept(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs.json")
    for _ in range(KEPT + 5):
        last = jobs.add("start", "api")
    kept = json.loads((tmp_path / "jobs.json").read_text())
    assert len(kept) == KEPT and kept[-1]["id"] == last.id and len(jobs.all()) == KEPT


def test_a_job_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path / "jobs.json")

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(OSError, match="No space"):
        jobs.add("start", "api")
    assert jobs.all() == []


def test_a_history_that_cannot_be_read_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "jobs.json").write_text('[{"id": 1')
    assert Jobs(tmp_path / "jobs.json").all() == []
    assert (tmp_path / "jobs.bad").exists()


def test_what_a_newer_release_wrote_beside_is_passed_over(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "jobs.json")
    job = jobs.add("start", "api")
    kept = json.loads((tmp_path / "jobs.json").read_text())
    (tmp_path / "jobs.json").write_text(json.dumps([kept[0] | {"retry_of": "job-0"}]))
    assert [found.id for found in Jobs(tmp_path / "jobs.json").all()] == [job.id]
    record.save(tmp_path / "game.json", Record("running", Operation("job-1", "restart", "asked")))
    wrote = json.loads((tmp_path / "game.json").read_text())
    wrote["operation"]["newer"] = wrote["newer"] = 1
    (tmp_path / "game.json").write_text(json.dumps(wrote))
    assert record.load(tmp_path / "game.json") == Record("running", Operation("job-1", "restart", "asked"))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = Record("running", Operation("job-1", "restart", "asked"), "b", "r", 1.5, 2, 3, 4, 5.5, True, {"class": "oom"})
    record.save(tmp_path / "game.json", kept)
    assert record.load(tmp_path / "game.json") == kept


@pytest.mark.parametrize("content", ["", "[]", '{"operation": {"job": 1}}'])
def test_a_record_that_cannot_be_read_is_put_aside(tmp_path: Path, content: str) -> None:
    (tmp_path / "game.json").write_text(content)
    assert record.load(tmp_path / "game.json") == Record()
    assert (tmp_path / "game.bad").exists()
