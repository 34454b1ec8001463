"""Joining a hub over TLS: with a good invite, and with all the others, which get nothing."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from backend.frames import framed, receive_frame
from pipeline_ext.hub_door import REFUSAL
from pipeline_ext.hub_messages import AskToJoin, Hello, Joined, NotJoined, NotWelcome, to_peer, to_stranger
from pipeline_ext.identity import client_context, joining_context, server_name, signing_request
from pipeline_ext.invites import InviteError, InviteLine
from pipeline_ext.joining import join
from pipeline_ext.own_version import own_version
from tests.pipeline_ext.hubs import RunningHub, plain_machine, running_hub

encode = msgspec.msgpack.encode


def raw(hub: RunningHub, context: ssl.SSLContext, frame: bytes) -> bytes | None:
    """What comes back for these bytes; None where nothing does, or TLS refuses."""
    try:
        with (
            socket.create_connection(("127.0.0.1", hub.port), 5) as plain,
            context.wrap_socket(plain, server_hostname=server_name("")) as line,
        ):
            line.sendall(frame)
            return receive_frame(line)
    except (OSError, ValueError):
        return None


def stranger(hub: RunningHub) -> ssl.SSLContext:
    return joining_context(hub.head.authority.read_bytes())


def test_a_good_invite_makes_a_peer_once(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        invite = hub.invite()
        identity, name = join(invite, "first", tmp_path / "first")
        assert (name, len(identity.id)) == ("first", 12)
        assert identity.id in hub.hub.table
        # The key never left: the hub has no file with it.
        key = identity.key.read_bytes()
        assert all(key not in path.read_bytes() for path in (tmp_path / "head").iterdir())
        with pytest.raises(InviteError, match="did not accept"):
            join(invite, "second", tmp_path / "second")
        assert not (tmp_path / "second" / "certificate.pem").exists()


def test_two_machines_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        invite = hub.invite(uses=2)
        assert join(invite, "box", tmp_path / "first")[1] == "box"
        assert join(invite, "box", tmp_path / "second")[1] == "box-2"


def test_wrong_stale_and_revoked_invites_get_the_same_answer(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        revoked = hub.invite()
        hub.hub.invites.revoke()
        used = hub.invite()
        join(used, "first", tmp_path / "first")
        wrong = replace(used, token=b"w" * 16)
        answers = set()
        for place, invite in enumerate((revoked, used, wrong)):
            request = signing_request(tmp_path / f"other-{place}")
            answers.add(raw(hub, stranger(hub), framed(encode(AskToJoin(invite.token, request, "n", own_version())))))
        (answer,) = answers
        assert answer is not None
        assert to_stranger.decode(answer) == NotJoined(REFUSAL)


def test_a_broken_request_and_a_wrong_version_learn_nothing_without_a_token(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        request = signing_request(tmp_path / "peer")
        for asked in (AskToJoin(b"w" * 16, b"nonsense", "n", own_version()), AskToJoin(b"w", request, "n", "9.9")):
            answer = raw(hub, stranger(hub), framed(encode(asked)))
            assert answer is not None
            assert to_stranger.decode(answer) == NotJoined(REFUSAL)


def test_another_version_is_told_which_and_the_invite_stays_good(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        invite = hub.invite()
        request = signing_request(tmp_path / "peer")
        answer = raw(hub, stranger(hub), framed(encode(AskToJoin(invite.token, request, "n", "9.9"))))
        assert answer is not None
        refusal = to_stranger.decode(answer)
        assert isinstance(refusal, NotJoined)
        assert "9.9" in refusal.why
        with pytest.raises(InviteError, match="different versions"):
            join(replace(invite, version="9.9"), "peer", tmp_path / "peer")
        join(invite, "peer", tmp_path / "peer")


def test_many_failures_close_the_door_also_for_a_good_invite(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        invite = hub.invite()
        for _ in range(10):
            request = signing_request(tmp_path / "guesser")
            raw(hub, stranger(hub), framed(encode(AskToJoin(b"w" * 16, request, "n", own_version()))))
        with pytest.raises(InviteError, match="did not accept"):
            join(invite, "peer", tmp_path / "peer")


def test_the_token_is_not_sent_to_who_is_not_the_hub_of_the_invite(tmp_path: Path) -> None:
    """Another hub answers at the address: its authority has another fingerprint."""
    with running_hub(tmp_path / "wrong") as wrong:
        wrong.hub.invites.use = lambda token, key: pytest.fail("the token was sent")  # type: ignore[method-assign]
        wrong.hub.invites.accepts = lambda token, key: pytest.fail("the token was sent")  # type: ignore[method-assign]
        invite = replace(wrong.invite(), fingerprint=b"f" * 32)
        with pytest.raises(InviteError, match="not who made this invite"):
            join(invite, "peer", tmp_path / "peer")


def test_who_only_repeats_the_authoritys_certificate_is_not_believed(tmp_path: Path) -> None:
    """A man in between shows the right certificate and has no key for it: TLS with the pinned authority fails."""
    with running_hub(tmp_path / "real") as real, running_hub(tmp_path / "between") as between:
        between.hub._door._authority = real.hub._door._authority  # type: ignore[method-assign]
        between.hub.invites.accepts = lambda token, key: pytest.fail("the token was sent")  # type: ignore[method-assign]
        invite = replace(real.invite(), port=between.port)
        with pytest.raises(InviteError, match="cannot be believed"):
            join(invite, "peer", tmp_path / "peer")


def test_nobody_there_is_said_in_words(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        invite = InviteLine("127.0.0.1", free.getsockname()[1], b"f" * 32, b"t" * 16, own_version())
        with pytest.raises(InviteError, match="is not reached"):
            join(invite, "peer", tmp_path / "peer")


def test_a_machine_that_was_removed_is_not_welcome(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        identity, _ = join(hub.invite(), "peer", tmp_path / "peer")
        hub.hub.table.remove(identity.id)
        answer = raw(hub, client_context(identity), framed(encode(Hello(own_version(), plain_machine()))))
        assert answer is not None
        refusal = to_peer.decode(answer)
        assert isinstance(refusal, NotWelcome)
        assert refusal.final


def test_a_peer_with_another_version_is_not_welcome(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        identity, _ = join(hub.invite(), "peer", tmp_path / "peer")
        answer = raw(hub, client_context(identity), framed(encode(Hello("9.9", plain_machine()))))
        assert answer is not None
        refusal = to_peer.decode(answer)
        assert isinstance(refusal, NotWelcome)
        assert "9.9" in refusal.why


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        framed(b""),
        framed(b"\x91\xa7Nothing"),
        framed(b"\x91" * 10000),
        framed(encode(["AskToJoin", b"t" * 65, b"", "n", "v"])),
        framed(encode(["AskToJoin", b"t", b"r" * 5000, "n", "v"])),
        framed(encode(["AskToJoin", b"t", b"r", "n" * 65, "v"])),
        framed(encode(["Hello", "0", None])),
        framed(b"x" * 20000),
    ],
)
def test_bad_frames_of_strangers_and_peers_get_nothing_and_hurt_nobody(tmp_path: Path, frame: bytes) -> None:
    with running_hub(tmp_path) as hub:
        peer, _ = join(hub.invite(uses=2), "peer", tmp_path / "peer")
        assert raw(hub, stranger(hub), frame) is None
        assert raw(hub, client_context(peer), frame) is None
        request = signing_request(tmp_path / "second")
        invite = hub.invite()
        answer = raw(hub, stranger(hub), framed(encode(AskToJoin(invite.token, request, "n", own_version()))))
        assert answer is not None
        assert isinstance(to_stranger.decode(answer), Joined)


def test_another_clusters_machine_gets_no_line(tmp_path: Path) -> None:
    with running_hub(tmp_path / "one") as hub, running_hub(tmp_path / "other") as other:
        foreign, _ = join(other.invite(), "peer", tmp_path / "peer")
        context = client_context(foreign)
        context.load_verify_locations(cafile=hub.head.authority)
        assert raw(hub, context, framed(encode(Hello(own_version(), plain_machine())))) is None
