"""Which mirror and key the base image comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.lab.lxc.aptsources import DEFAULT_KEYRING, DEFAULT_MIRROR, Source, choose, host, parse_deb822, parse_list

STANZAS = """\
Types: deb deb-src
# http://snapshot.debian.example/archive
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: https://packages.example/one https://packages.example/two
Suites: ./
Enabled: no

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
"""
KEY = """\
types: deb
uris: http://inline.example/debian
suites: trixie
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_deb822() -> None:
    assert parse_deb822(STANZAS) == [
        Source("http://mirror.example/debian", ("bookworm", "bookworm-updates"), ("main", "contrib"), DEFAULT_KEYRING),
        Source("http://mirror.example/debian-security", ("bookworm-security",), ("main",)),
    ]
    (inline,) = parse_deb822(KEY)
    assert inline.signed_by == "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQINBF\n-----END PGP PUBLIC KEY BLOCK-----"
    assert parse_deb822("") == parse_deb822("nonsense\n\n: \n") == []


def test_lists() -> None:
    text = """
# deb http://off.example/debian bookworm main
deb http://a.example/debian bookworm main contrib # comment
deb-src http://a.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg trusted=yes] https://b.example/debian/ stable main
deb cdrom:[Debian]/ bookworm main
  deb http://c.example ./
"""
    found = parse_list(text)
    assert found[0] == Source("http://a.example/debian", ("bookworm",), ("main", "contrib"))
    assert found[1] == Source("https://b.example/debian/", ("stable",), ("main",), "/k.gpg", True)
    assert found[-1] == Source("http://c.example", ("./",))


@pytest.mark.parametrize(
    ("sources", "uri"),
    [
        ([], DEFAULT_MIRROR),
        ([Source("http://s/debian-security", ("bookworm-security",), ("main",)), Source("http://m/d", ("bookworm",), ("main",))], "http://m/d"),
        ([Source("http://t/debian", ("trixie",), ("main",)), Source("http://m/debian", ("bookworm",), ("main",))], "http://m/debian"),
        ([Source("http://t/debian", ("trixie",), ("main",))], "http://t/debian"),
        ([Source("http://u/ubuntu", ("noble",), ("main", "universe"))], DEFAULT_MIRROR),
        ([Source("https://deb.example/node_20.x", ("nodistro",), ("main",))], DEFAULT_MIRROR),
        ([Source("http://b/debian", ("bookworm-backports",), ("main",))], DEFAULT_MIRROR),
        ([Source("http://n/debian", ("bookworm",), ("contrib",))], DEFAULT_MIRROR),
        ([Source("cdrom:[x]", ("bookworm",), ("main",)), Source("mirror+file:/m", ("bookworm",), ("main",))], DEFAULT_MIRROR),
        ([Source("file:/srv/debian", ("bookworm",), ("main",))], "file:/srv/debian"),
    ],
)
def test_choice(sources: list[Source], uri: str) -> None:
    assert choose(sources, "bookworm").uri == uri


def test_host(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://list.example/debian bookworm main\n")
    (tmp_path / "sources.list.d/x.sources").write_text(STANZAS)
    (tmp_path / "sources.list.d/x.list").write_text("deb http://more.example/debian sid main\n")
    (tmp_path / "sources.list.d/x.sources.disabled").write_text(STANZAS)
    assert [source.uri for source in host(tmp_path)] == [
        "http://mirror.example/debian",
        "http://mirror.example/debian-security",
        "http://list.example/debian",
        "http://more.example/debian",
    ]
    assert host(tmp_path / "none") == []
