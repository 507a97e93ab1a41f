"""The project's own certificate authority: one leaf per agent, the address and the server's id in it.

``ensure`` and ``rotate`` may run in several processes at once. Every state that a killed process can leave is one that works:
``ca.pem`` is a bundle of all certificates that are trusted, ``ca.key`` the key that signs, and the certificate that signs is the one in the
bundle that belongs to that key. Used by ``bootstrap`` (agents' identities), ``zlh ca init|rotate`` and, reading, by the agent client.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import ipaddress
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flows.errors import BadInput, MisconfiguredSetting

SETTING = "ZLH_AGENT__CA_DIR"
CA_DAYS, LEAF_DAYS = 3650, 365
#: A leaf that lasts no longer is replaced when somebody comes by.
RENEW_DAYS = 30
#: Certificates begin this much earlier than they are made: clocks differ.
BACKDATE = dt.timedelta(hours=1)
_PEM = serialization.Encoding.PEM


def server_uri(server_id: str) -> str:
    """The URI in a leaf's subject alternative names."""
    return f"urn:zlh:server:{server_id}"


def load_bundle(ca_dir: Path) -> list[x509.Certificate]:
    """The certificates to trust, the newest first. Raises MisconfiguredSetting."""
    try:
        bundle = x509.load_pem_x509_certificates((ca_dir / "ca.pem").read_bytes())
    except FileNotFoundError as error:
        raise MisconfiguredSetting(SETTING, why=f"{ca_dir} holds no ca.pem", remedy="run `zlh ca init`, or name the directory that has it") from error
    except (OSError, ValueError) as error:
        raise MisconfiguredSetting(SETTING, why=f"{ca_dir / 'ca.pem'}: {type(error).__name__}", remedy="restore it from a backup") from error
    return bundle


class CertificateAuthority:
    """All methods block for milliseconds."""

    def __init__(self, ca_dir: Path) -> None:
        self._dir = ca_dir

    def ensure(self) -> None:
        """Makes the CA where there is none. Raises MisconfiguredSetting for a directory that cannot be used or a key that others can read."""
        with self._locked():
            if not self._key_path.exists():
                if self._pem_path.exists():
                    raise MisconfiguredSetting(
                        SETTING,
                        why=f"{self._pem_path} is there, its key is not",
                        remedy="restore ca.key from a backup, or remove ca.pem to begin anew",
                    )
                self._write(self._key_path, _key_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
            if not self._pem_path.exists():  # killed in between, or lost: the same key signs the same name again
                self._write(self._pem_path, _self_signed(self._key()).public_bytes(_PEM), 0o644)
            self._signer()

    def rotate(self) -> None:
        """A new key. The old certificate stays in the bundle until it expires, so that agents are trusted until they get new leaves."""
        self.ensure()
        with self._locked():
            now = dt.datetime.now(dt.UTC)
            old = [c for c in load_bundle(self._dir) if c.not_valid_after_utc > now]
            key = ec.generate_private_key(ec.SECP256R1())
            bundle = b"".join(c.public_bytes(_PEM) for c in (_self_signed(key), *old))
            self._write(self._pem_path, bundle, 0o644)  # first everybody trusts the new one …
            self._write(self._key_path, _key_pem(key), 0o600)  # … then it signs

    @property
    def ca_pem(self) -> str:
        """The bundle to trust."""
        return "".join(c.public_bytes(_PEM).decode() for c in load_bundle(self._dir))

    def issue(self, server_id: str, address: str) -> tuple[str, str]:
        """``(certificate, key)`` as PEM for one agent, for a year. Raises BadInput for no address, MisconfiguredSetting."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError as error:
            raise BadInput("address", address, why="is not an IP address") from error
        if not server_id:
            raise BadInput("server_id", server_id, why="a certificate belongs to exactly one server")
        issuer, issuer_key = self._signer()
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ip), x509.UniformResourceIdentifier(server_uri(server_id))]
        leaf = (
            _builder(key.public_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server_id[:64])]), issuer.subject, LEAF_DAYS)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        return leaf.public_bytes(_PEM).decode(), _key_pem(key).decode()

    def still_good(self, certificate: str, key: str, server_id: str, address: str) -> bool:
        """Whether that agent need not get another: it is its own, signed by the key that signs now, and lasts for a month. Raises
        MisconfiguredSetting."""
        issuer, _ = self._signer()
        try:
            leaf = x509.load_pem_x509_certificate(certificate.encode())
            leaf.verify_directly_issued_by(issuer)
            fits = leaf.public_key() == serialization.load_pem_private_key(key.encode(), None).public_key()
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
            return False
        own = [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [str(ipaddress.ip_address(address))]
        own = own and names.get_values_for_type(x509.UniformResourceIdentifier) == [server_uri(server_id)]
        return fits and own and leaf.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=RENEW_DAYS)

    @property
    def _pem_path(self) -> Path:
        return self._dir / "ca.pem"

    @property
    def _key_path(self) -> Path:
        return self._dir / "ca.key"

    def _key(self) -> ec.EllipticCurvePrivateKey:
        try:
            if stat.S_IMODE(self._key_path.stat().st_mode) & 0o077:
                raise MisconfiguredSetting(
                    SETTING, why=f"{self._key_path} can be read by others", remedy=f"chmod 600 {self._key_path}, and `zlh ca rotate` if they did"
                )
            key = serialization.load_pem_private_key(self._key_path.read_bytes(), None)
        except FileNotFoundError as error:
            raise MisconfiguredSetting(
                SETTING, why=f"{self._dir} holds no ca.key", remedy="run `zlh ca init`, or restore it from a backup"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise MisconfiguredSetting(SETTING, why=f"{self._key_path}: {type(error).__name__}", remedy="restore it from a backup") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise MisconfiguredSetting(SETTING, why=f"{self._key_path} is not an elliptic-curve key", remedy="restore it from a backup")
        return key

    def _signer(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """The certificate of the bundle that belongs to the key."""
        key = self._key()
        bundle = load_bundle(self._dir)
        issuer = next((c for c in bundle if c.public_key() == key.public_key()), None)
        if issuer is None:  # a rotation came between the two reads
            key = self._key()
            issuer = next((c for c in load_bundle(self._dir) if c.public_key() == key.public_key()), None)
        if issuer is None:
            raise MisconfiguredSetting(SETTING, why="ca.key belongs to no certificate in ca.pem", remedy="restore both from the same backup")
        if issuer.not_valid_after_utc < dt.datetime.now(dt.UTC) + dt.timedelta(days=LEAF_DAYS):
            raise MisconfiguredSetting(
                SETTING, why=f"the CA ends on {issuer.not_valid_after_utc:%Y-%m-%d}, before a new leaf would", remedy="run `zlh ca rotate`"
            )
        return issuer, key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise MisconfiguredSetting(SETTING, why=f"{self._dir}: {error.strerror}", remedy="name a directory that this user can write") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        """Whole or not at all, and on the disk."""
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=self._dir)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        directory = os.open(self._dir, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """The name follows from the key, so that the same key makes the same CA again."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"zlh-autopilot CA {identifier.digest.hex()[:16]}")])
    return (
        _builder(key.public_key(), name, name, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
