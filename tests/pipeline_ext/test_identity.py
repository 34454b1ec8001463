"""Identities: who is believed over TLS, and who is not."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from pipeline_ext.identity import (
    Identity,
    IdentityError,
    client_context,
    connected_id,
    fingerprint,
    head_identity,
    id_of_request,
    is_authority,
    joining_context,
    joining_server_context,
    keep_certificate,
    read_identity,
    server_context,
    server_name,
    sign,
    signing_request,
)


def joined(head: Identity, folder: Path) -> Identity:
    return keep_certificate(sign(signing_request(folder), head), head.authority.read_bytes(), folder)


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str
) -> tuple[str | None, str | None] | ssl.SSLError | OSError:
    """Who the server sees and who the client sees, or why one of them refused."""
    near, far = socket.socketpair()
    near.settimeout(5)
    far.settimeout(5)
    seen: list[str | OSError | None] = []

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as line:
                seen.append(connected_id(line))
                line.sendall(b"!")
        except OSError as error:
            seen.append(error)
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=name) as line:
            # In TLS 1.3 a client learns only afterwards that its certificate was refused.
            if line.recv(1) != b"!":
                return OSError("closed")
            who = connected_id(line)
    except OSError as error:
        near.close()
        thread.join()
        return error
    thread.join()
    (other,) = seen
    return other if isinstance(other, OSError) else (other, who)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return head_identity(tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def peer(head: Identity, tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return joined(head, tmp_path_factory.mktemp("peer"))


def test_head_and_peer_know_each_other(head: Identity, peer: Identity) -> None:
    assert handshake(server_context(head), client_context(peer), server_name("")) == (peer.id, "")
    assert handshake(server_context(peer), client_context(head), server_name(peer.id)) == ("", peer.id)


def test_the_line_is_tls_1_3_only(head: Identity, peer: Identity) -> None:
    old = client_context(peer)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert isinstance(handshake(server_context(head), old, server_name("")), OSError)


def test_a_stranger_without_certificate_is_refused(head: Identity) -> None:
    assert isinstance(
        handshake(server_context(head), joining_context(head.authority.read_bytes()), server_name("")), OSError
    )


def test_the_hubs_door_lets_in_who_has_no_certificate_and_sees_nobody(head: Identity) -> None:
    pinned = joining_context(head.authority.read_bytes())
    assert handshake(joining_server_context(head), pinned, server_name("")) == (None, "")


def test_a_certificate_of_another_authority_is_refused_everywhere(
    head: Identity, peer: Identity, tmp_path: Path
) -> None:
    other_head = head_identity(tmp_path / "other")
    stranger = joined(other_head, tmp_path / "stranger")
    assert isinstance(handshake(server_context(head), client_context(stranger), server_name("")), OSError)
    assert isinstance(handshake(joining_server_context(head), client_context(stranger), server_name("")), OSError)
    # Also one who believes us and is not to be believed, and the other way round.
    believing = client_context(stranger)
    believing.load_verify_locations(cafile=head.authority)
    assert isinstance(handshake(server_context(head), believing, server_name("")), OSError)
    assert isinstance(handshake(server_context(other_head), client_context(peer), server_name("")), OSError)


def test_a_peer_cannot_stand_in_for_the_head_or_another_peer(head: Identity, peer: Identity, tmp_path: Path) -> None:
    second = joined(head, tmp_path / "second")
    for expected in ("", second.id):
        assert isinstance(handshake(server_context(peer), client_context(second), server_name(expected)), OSError)


def test_identities_last_and_their_keys_are_private(head: Identity, peer: Identity) -> None:
    before = fingerprint(head.authority.read_bytes())
    assert head_identity(head.folder) == head
    assert fingerprint(head.authority.read_bytes()) == before
    assert read_identity(peer.folder) == peer
    assert id_of_request(signing_request(peer.folder)) == peer.id
    for path in (head.key, head.folder / "authority-key.pem", peer.key):
        assert path.stat().st_mode & 0o777 == 0o600


def test_folders_are_made_for_their_owner_only(tmp_path: Path) -> None:
    head_identity(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    head = head_identity(tmp_path / "a")
    head.key.chmod(0o644)
    with pytest.raises(IdentityError, match="open to others"):
        read_identity(head.folder)
    with pytest.raises(IdentityError, match="open to others"):
        server_context(head)


def test_the_fingerprint_tells_authorities_apart(head: Identity, tmp_path: Path) -> None:
    other = head_identity(tmp_path / "other").authority.read_bytes()
    expected = fingerprint(head.authority.read_bytes())
    assert is_authority(head.authority.read_bytes(), expected)
    assert not is_authority(other, expected)
    assert not is_authority(b"nonsense", expected)


@pytest.mark.parametrize(
    "request_bytes", [b"", b"nonsense", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"x" * 9999]
)
def test_a_broken_signing_request_is_refused(head: Identity, request_bytes: bytes) -> None:
    with pytest.raises(IdentityError):
        sign(request_bytes, head)


def test_a_changed_signing_request_is_refused(head: Identity, tmp_path: Path) -> None:
    import base64

    request = signing_request(tmp_path)
    body = base64.b64decode(b"".join(request.splitlines()[1:-1]))
    spoiled = body[:-1] + bytes([body[-1] ^ 1])
    text = b"\n".join(
        [b"-----BEGIN CERTIFICATE REQUEST-----", base64.encodebytes(spoiled), b"-----END CERTIFICATE REQUEST-----"]
    )
    with pytest.raises(IdentityError):
        sign(text, head)


def test_a_certificate_for_another_key_is_not_kept(head: Identity, peer: Identity, tmp_path: Path) -> None:
    signing_request(tmp_path)
    with pytest.raises(IdentityError, match="not for this machine"):
        keep_certificate(peer.certificate.read_bytes(), head.authority.read_bytes(), tmp_path)
