"""Identity: a machine's key and certificate, the cluster's certificate authority, and TLS contexts made of them.

Who may get a certificate is the hub's to decide; a secret of the engine process, shown inside, is the lines' business.

    folder/key.pem          this machine's private key (0600): made here, never sent
    folder/certificate.pem  signed by the authority; names the machine "ID.shardwise", the head "head.shardwise"
    folder/authority.pem    the authority's certificate, the only one that is trusted
    folder/authority-key.pem    on the head only (0600)
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import ssl
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from backend.errors import ShardwiseError
from pipeline_ext.extra import require_extra

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HEAD = "head"
_SUFFIX = ".shardwise"
_ID_DIGITS = 12
MOST_REQUEST_BYTES = 4096
# Clocks of machines differ, and jump: who is refused is decided by the hub's list, not by dates.
_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


class IdentityError(ShardwiseError):
    """A key or certificate cannot be kept, read or trusted."""

    code = "identity"
    exit_status = 2


@dataclass(frozen=True, slots=True)
class Identity:
    """The files of one machine's identity; `id` is empty for the head."""

    folder: Path
    id: str

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"


def head_folder() -> Path:
    """Where the identity of this user's head lies, authority included."""
    return platformdirs.user_data_path("shardwise") / "head"


def peer_folder() -> Path:
    """Where the identity lies with which this user's machine joined another."""
    return platformdirs.user_data_path("shardwise") / "peer"


def read_identity(folder: Path) -> Identity | None:
    """What lies there; None where nothing does. Raises IdentityError where others may read the key, or it is broken."""
    identity = Identity(folder, "")
    if not all(path.is_file() for path in (identity.key, identity.certificate, identity.authority)):
        return None
    _check_private(identity.key)
    name = _name_of(_certificate(_read(identity.certificate)))
    return Identity(folder, "" if name == HEAD else name)


def head_identity(folder: Path | None = None) -> Identity:
    """The head's identity; it and the authority are made where they lack. Raises IdentityError."""
    require_extra()
    folder = folder or head_folder()
    if (found := read_identity(folder)) is not None and (folder / "authority-key.pem").is_file():
        return found
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    authority_key, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    authority = _issue("shardwise authority", authority_key.public_key(), authority_key, None)
    certificate = _issue(HEAD, key.public_key(), authority_key, authority)
    _keep(folder / "authority-key.pem", _private_pem(authority_key))
    _keep(folder / "authority.pem", _pem(authority))
    _keep(folder / "key.pem", _private_pem(key))
    _keep(folder / "certificate.pem", _pem(certificate))
    return Identity(folder, "")


def signing_request(folder: Path | None = None) -> bytes:
    """A request (PEM) to sign this machine's key, which is made where it lacks and stays here. Raises IdentityError."""
    require_extra()
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = (folder or peer_folder()) / "key.pem"
    if not path.is_file():
        _keep(path, _private_pem(Ed25519PrivateKey.generate()))
    _check_private(path)
    key = serialization.load_pem_private_key(_read(path), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise _broken(path)
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject("peer")).sign(key, None)
    return request.public_bytes(serialization.Encoding.PEM)


def keep_certificate(certificate: bytes, authority: bytes, folder: Path | None = None) -> Identity:
    """Keeps what the hub signed, with the authority that it names. Raises IdentityError where it is not for our key."""
    from cryptography.exceptions import InvalidSignature

    folder = folder or peer_folder()
    signed, signer = _certificate(certificate), _certificate(authority)
    try:
        signed.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise IdentityError("The certificate is not signed by its authority", f"{error}.") from None
    if _name_of(signed) != id_of_request(signing_request(folder)):
        raise IdentityError("The certificate is not for this machine's key")
    _keep(folder / "authority.pem", authority)
    _keep(folder / "certificate.pem", certificate)
    return Identity(folder, _name_of(signed))


def sign(request: bytes, head: Identity) -> bytes:
    """A certificate (PEM) for who sent this request, named by its key. Raises IdentityError for a broken one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = head.folder / "authority-key.pem"
    _check_private(path)
    key = serialization.load_pem_private_key(_read(path), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise _broken(path)
    public = _key_of_request(request)
    return _pem(_issue(_id_of(public), public, key, _certificate(_read(head.authority))))


def id_of_request(request: bytes) -> str:
    """The id of who holds the key of this request. Raises IdentityError."""
    return _id_of(_key_of_request(request))


def fingerprint(authority: bytes) -> bytes:
    """32 bytes by which an authority's certificate (PEM) is recognized. Raises IdentityError."""
    from cryptography.hazmat.primitives import serialization

    return hashlib.sha256(_certificate(authority).public_bytes(serialization.Encoding.DER)).digest()


def is_authority(authority: bytes, expected: bytes) -> bool:
    """Whether this certificate (PEM), which anyone may have sent, is the one with the fingerprint `expected`."""
    try:
        return hmac.compare_digest(fingerprint(authority), expected)
    except IdentityError:
        return False


def server_context(identity: Identity) -> ssl.SSLContext:
    """For who listens: TLS 1.3, a certificate of this authority required of both sides."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    # Nobody resumes a session here, and a ticket that nobody reads turns a close into a reset.
    context.num_tickets = 0
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """For who connects: as above; `server_hostname=server_name(ID)` says who has to be there."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


def joining_server_context(head: Identity) -> ssl.SSLContext:
    """For the hub's door: as `server_context`, but who has no certificate yet may come and show an invite."""
    context = server_context(head)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def joining_context(authority: bytes | None) -> ssl.SSLContext:
    """For who has no certificate yet. Without an authority nobody is believed: only to be told the authority, which
    `is_authority` then compares with the invite; nothing else is sent that way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
    return context


def server_name(peer: str) -> str:
    """The name that the certificate of a peer (empty: the head) is for."""
    return (peer or HEAD) + _SUFFIX


def connected_id(line: ssl.SSLSocket | ssl.SSLObject) -> str | None:
    """Who is at the other end, from its verified certificate: a peer's id, empty for the head, None without one."""
    found = line.getpeercert()
    if not found:
        return None
    names = [str(value) for kind, value in found.get("subjectAltName", ()) if kind == "DNS"]  # pyright: ignore
    if len(names) != 1 or not names[0].endswith(_SUFFIX):
        return None
    name = names[0].removesuffix(_SUFFIX)
    return "" if name == HEAD else name


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    _check_private(identity.key)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(identity.certificate, identity.key)
        context.load_verify_locations(cafile=identity.authority)
    except (OSError, ssl.SSLError) as error:
        raise IdentityError(
            "This machine's identity cannot be used",
            f"{identity.folder}: {error}.",
            "Remove the folder and join again.",
        ) from None
    return context


def _issue(
    name: str, public: Ed25519PublicKey, signer: Ed25519PrivateKey, authority: x509.Certificate | None
) -> x509.Certificate:
    """A certificate for `name`; of an authority itself where there is none yet."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = authority.subject if authority else _subject(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(authority is None, 0 if authority is None else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_usage(signs=authority is None), critical=True)
    )
    if authority is not None:
        names = x509.SubjectAlternativeName([x509.DNSName(name + _SUFFIX)])
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(names, critical=False).add_extension(both, critical=False)
    return builder.sign(signer, None)


def _usage(signs: bool) -> x509.KeyUsage:
    from cryptography import x509

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


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_of_request(request: bytes) -> Ed25519PublicKey:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        if len(request) > MOST_REQUEST_BYTES:
            raise ValueError("it is too long")
        parsed = x509.load_pem_x509_csr(request)
        public = parsed.public_key()
        if not parsed.is_signature_valid or not isinstance(public, Ed25519PublicKey):
            raise ValueError("its signature or its kind of key is wrong")
    except Exception as error:  # noqa: BLE001 - what a stranger sent; the library has many ways to refuse it
        raise IdentityError("The signing request is not valid", f"{error}.") from None
    return public


def _id_of(public: Ed25519PublicKey) -> str:
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:_ID_DIGITS]


def _certificate(pem: bytes) -> x509.Certificate:
    require_extra()
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IdentityError("A certificate is broken", f"{error}.", "Join again with a new invite.") from None


def _name_of(certificate: x509.Certificate) -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _keep(path: Path, content: bytes) -> None:
    """Writes it for its owner only; whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # readable by its owner only
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise IdentityError("This machine's identity cannot be kept", f"{path}: {error.strerror}.") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError("This machine's identity cannot be read", f"{path}: {error.strerror}.") from None


def _check_private(path: Path) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise IdentityError("This machine's identity cannot be read", f"{path}: {error.strerror}.") from None
    mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
    if not mine or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise IdentityError(
            "A private key is open to others", f"{path} must be a file that only its owner may read.", "chmod 600 it."
        )


def _broken(path: Path) -> IdentityError:
    return IdentityError("A private key is not one of ours", f"{path}.", "Remove its folder, and a new one is made.")
