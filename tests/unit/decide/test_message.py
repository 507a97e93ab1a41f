"""The text of messages: complete, within Discord's limit, and fit to be read."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.decide.message import LIMIT, clip, line, render, size
from flows.domain.event import Event, EventKind

WHOLE = Event(
    EventKind.EPISODE_ESCALATED,
    "k",
    what="agent of game-lotus is offline",
    where="ct 10217 on pve2",
    done="not repaired: level 2 is off",
    next="recalled daily while it lasts",
    command="zlh restart-agent game-lotus",
)


def test_it_says_what_where_done_next_and_the_command() -> None:
    assert render(WHOLE).splitlines() == [
        "**agent of game-lotus is offline**",
        "where: ct 10217 on pve2",
        "done: not repaired: level 2 is off",
        "next: recalled daily while it lasts",
        "run: `zlh restart-agent game-lotus`",
    ]


def test_a_notice_stands_at_its_end() -> None:
    assert render(WHOLE, notice="2 earlier messages never got through").endswith("\n2 earlier messages never got through")


def test_an_event_without_words_is_named() -> None:
    assert render(Event(EventKind.QUEUE_STALLED, "k", what="")).startswith("**queue_stalled**")


def test_mentions_are_left_to_the_notifier() -> None:
    assert "@everyone <@1> `x` **y** https://z" in render(Event(EventKind.HOST_DOWN, "k", what="@everyone <@1> `x` **y** https://z"))


def test_what_a_terminal_or_a_reader_would_be_fooled_by_is_gone() -> None:
    nasty = "a\x00b\x1b[31mc\x7fd\u202ee\u2066f\ud800g\r\nh\ti"
    text = render(Event(EventKind.HOST_DOWN, "k", what=nasty))
    assert text.splitlines()[0] == "**ab[31mcdefg"
    assert text.splitlines()[1] == "h\ti**"
    text.encode()  # no lone surrogate is left


@pytest.mark.parametrize("field", ["what", "where", "done", "next"])
def test_the_longest_part_is_cut_and_the_rest_stays(field: str) -> None:
    fields: dict[str, Any] = {"what": "w", "where": "x", "done": "y", "next": "z", "command": "zlh explain game-lotus"} | {field: "long " * 2_000}
    text = render(Event(EventKind.HOST_DOWN, "k", **fields), notice="a notice")
    assert size(text) <= LIMIT
    assert size(text) > LIMIT - 50
    assert "`zlh explain game-lotus`" in text
    assert text.endswith("a notice")
    assert "…" in text
    for label in ("where: ", "done: ", "next: "):
        assert label in text


def test_many_lines_are_cut_too() -> None:
    text = render(Event(EventKind.CONTROLLER_ACTION, "k", "60 controller actions", facts={"lines": ["x" * 190] * 60}), limit=1_000)
    assert size(text) <= 1_000
    assert text.startswith("**60 controller actions**")


def test_astral_characters_count_twice() -> None:
    assert size("a\U0001f600") == 3
    assert clip("\U0001f600" * 10, 9) == "\U0001f600" * 4 + "…"
    assert clip("abc", 3) == "abc"


def test_a_line_is_one_line() -> None:
    event = Event(EventKind.CONTROLLER_ACTION, "k", what="publish_dns:\nrepaired", where="game-1", done="x" * 300)
    assert "\n" not in line(event)
    assert line(event).startswith("publish_dns: repaired · game-1 · xxx")
    assert size(line(event)) == 200


TEXT = st.text(max_size=3_000)


@given(TEXT, TEXT, TEXT, TEXT, TEXT, st.lists(st.text(max_size=200), max_size=30), TEXT, st.integers(100, LIMIT), st.sampled_from(EventKind))
def test_whatever_comes_it_fits(
    what: str, where: str, done: str, next_: str, command: str, lines: list[str], notice: str, limit: int, kind: EventKind
) -> None:
    text = render(Event(kind, "k", what, where, done, next_, command, facts={"lines": lines}), limit=limit, notice=notice)
    assert 0 < size(text) <= limit
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") for c in text)
