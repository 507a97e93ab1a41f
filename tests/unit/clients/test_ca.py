"""The project's certificate authority, its files, and what TLS makes of them."""

from __future__ import annotations

import datetime as dt
import fcntl
import ipaddress
import multiprocessing
import ssl
import stat
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from flows.clients.ca import CertificateAuthority, load_bundle
from flows.errors import BadInput, MisconfiguredSetting


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    made = CertificateAuthority(tmp_path / "ca")
    made.ensure()
    return made


def shakes_hands(tmp_path: Path, leaf: tuple[str, str], ca_pem: str, name: str) -> bool:
    """A TLS handshake in memory, as a client that trusts ``ca_pem`` and called ``name``."""
    file = tmp_path / "leaf.pem"
    file.write_text("".join(leaf))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata=ca_pem)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server, server_hostname=name), server.wrap_bio(to_server, to_client, server_side=True)]
    done: set[int] = set()
    while len(done) < 2:
        for index, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(index)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def test_a_leaf_names_address_and_server_and_lasts_a_year(authority: CertificateAuthority, tmp_path: Path) -> None:
    certificate, key = authority.issue("srv-1", "10.20.0.11")
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.20.0.11")]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:zlh:server:srv-1"]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = leaf.not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=364) < left <= dt.timedelta(days=365)
    assert "PRIVATE KEY" in key
    assert shakes_hands(tmp_path, (certificate, key), authority.ca_pem, "10.20.0.11")


def test_a_leaf_is_good_for_its_address_and_its_authority_alone(authority: CertificateAuthority, tmp_path: Path) -> None:
    leaf = authority.issue("srv-1", "10.20.0.11")
    assert not shakes_hands(tmp_path, leaf, authority.ca_pem, "10.20.0.12")
    other = CertificateAuthority(tmp_path / "other")
    other.ensure()
    assert not shakes_hands(tmp_path, leaf, other.ca_pem, "10.20.0.11")


def test_ensure_makes_it_once_and_keeps_the_key_private(authority: CertificateAuthority, tmp_path: Path) -> None:
    before = authority.ca_pem
    authority.ensure()
    assert authority.ca_pem == before
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert {p.name for p in (tmp_path / "ca").iterdir()} == {".lock", "ca.key", "ca.pem"}


def test_a_rotation_trusts_old_leaves_and_signs_new_ones(authority: CertificateAuthority, tmp_path: Path) -> None:
    old_leaf, old_bundle = authority.issue("srv-1", "10.20.0.11"), authority.ca_pem
    authority.rotate()
    new_leaf = authority.issue("srv-1", "10.20.0.11")
    assert shakes_hands(tmp_path, old_leaf, authority.ca_pem, "10.20.0.11")
    assert shakes_hands(tmp_path, new_leaf, authority.ca_pem, "10.20.0.11")
    assert not shakes_hands(tmp_path, new_leaf, old_bundle, "10.20.0.11")
    assert len(load_bundle(tmp_path / "ca")) == 2


def test_killed_between_key_and_certificate_the_same_authority_appears(authority: CertificateAuthority, tmp_path: Path) -> None:
    leaf = authority.issue("srv-1", "10.20.0.11")
    (tmp_path / "ca" / "ca.pem").unlink()
    authority.ensure()
    assert shakes_hands(tmp_path, leaf, authority.ca_pem, "10.20.0.11")


def test_killed_between_the_two_halves_of_a_rotation_everything_works(authority: CertificateAuthority, tmp_path: Path) -> None:
    key = (tmp_path / "ca" / "ca.key").read_bytes()
    authority.rotate()
    (tmp_path / "ca" / "ca.key").write_bytes(key)  # the new key never came
    leaf = authority.issue("srv-1", "10.20.0.11")
    assert shakes_hands(tmp_path, leaf, authority.ca_pem, "10.20.0.11")
    authority.rotate()
    assert shakes_hands(tmp_path, leaf, authority.ca_pem, "10.20.0.11")


def _ensure(path: str) -> str:
    authority = CertificateAuthority(Path(path))
    authority.ensure()
    return authority.ca_pem


def test_many_processes_make_one_authority(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        assert len(set(pool.map(_ensure, [str(tmp_path / "ca")] * 6))) == 1


def test_while_one_makes_it_the_others_wait(tmp_path: Path) -> None:
    directory = tmp_path / "ca"
    directory.mkdir()
    with (directory / ".lock").open("w") as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = pool.submit(CertificateAuthority(directory).ensure)
        with pytest.raises(TimeoutError):
            made.result(0.3)
        assert not (directory / "ca.key").exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
        made.result(5)
    assert (directory / "ca.pem").exists()


def test_what_is_missing_or_wrong_names_the_setting(authority: CertificateAuthority, tmp_path: Path) -> None:
    key = tmp_path / "ca" / "ca.key"
    good = key.read_bytes()
    key.chmod(0o644)
    with pytest.raises(MisconfiguredSetting, match="read by others"):
        authority.issue("srv-1", "10.20.0.11")
    key.chmod(0o600)
    key.write_text("nonsense")
    with pytest.raises(MisconfiguredSetting, match="ZLH_AGENT__CA_DIR"):
        authority.issue("srv-1", "10.20.0.11")
    key.unlink()
    with pytest.raises(MisconfiguredSetting, match="key is not"):
        authority.ensure()
    other = CertificateAuthority(tmp_path / "other")
    other.ensure()
    key.write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    key.chmod(0o600)
    with pytest.raises(MisconfiguredSetting, match="belongs to no certificate"):
        authority.issue("srv-1", "10.20.0.11")
    key.write_bytes(good)
    authority.issue("srv-1", "10.20.0.11")
    with pytest.raises(MisconfiguredSetting, match="zlh ca init"):
        load_bundle(tmp_path / "nowhere")
    (tmp_path / "ca" / "ca.pem").write_text("nonsense")
    with pytest.raises(MisconfiguredSetting, match=r"ca\.pem"):
        load_bundle(tmp_path / "ca")


def test_a_directory_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MisconfiguredSetting, match="ZLH_AGENT__CA_DIR"):
        CertificateAuthority(tmp_path / "file" / "ca").ensure()


@pytest.mark.parametrize(("server", "address"), [("srv-1", "host.example"), ("", "10.0.0.1")])
def test_a_leaf_for_nobody_is_refused(authority: CertificateAuthority, server: str, address: str) -> None:
    with pytest.raises(BadInput):
        authority.issue(server, address)


def test_a_leaf_that_is_its_own_and_lasts_need_not_be_replaced(authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = authority.issue("srv-1", "10.20.0.11")
    assert authority.still_good(certificate, key, "srv-1", "10.20.0.11")
    assert not authority.still_good(certificate, key, "srv-2", "10.20.0.11")
    assert not authority.still_good(certificate, key, "srv-1", "10.20.0.12")
    assert not authority.still_good(certificate, authority.issue("srv-1", "10.20.0.11")[1], "srv-1", "10.20.0.11")
    assert not authority.still_good("", "", "srv-1", "10.20.0.11")
    authority.rotate()
    assert not authority.still_good(certificate, key, "srv-1", "10.20.0.11")
    monkeypatch.setattr("flows.clients.ca.LEAF_DAYS", 29)
    short = authority.issue("srv-1", "10.20.0.11")
    assert not authority.still_good(*short, "srv-1", "10.20.0.11")


def test_a_leaf_of_a_stranger_with_our_names_is_replaced(authority: CertificateAuthority, tmp_path: Path) -> None:
    stranger = CertificateAuthority(tmp_path / "other")
    stranger.ensure()
    assert not authority.still_good(*stranger.issue("srv-1", "10.20.0.11"), "srv-1", "10.20.0.11")
