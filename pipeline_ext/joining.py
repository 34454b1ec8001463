"""Joining: what the other machine does with an invite, before and until it has an identity. Blocking, with timeouts.

Nothing is sent to who has not shown the authority that the invite names: the token least of all.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import ssl
from pathlib import Path

import msgspec

from backend.frames import framed, receive_frame
from pipeline_ext.extra import require_extra
from pipeline_ext.hub_messages import (
    AskAuthority,
    AskToJoin,
    Authority,
    Joined,
    NotJoined,
    ToStranger,
    to_stranger,
)
from pipeline_ext.identity import (
    Identity,
    is_authority,
    joining_context,
    keep_certificate,
    peer_folder,
    server_name,
    signing_request,
)
from pipeline_ext.invites import InviteError, InviteLine
from pipeline_ext.own_version import own_version

_SECONDS = 10.0
_encoder = msgspec.msgpack.Encoder()
_NEW = "Ask for a new one: shardwise peers invite, on the other machine."


def join(invite: InviteLine, name: str | None = None, folder: Path | None = None) -> tuple[Identity, str]:
    """This machine's identity in the cluster that the invite is of, and its name there. Raises ShardwiseError."""
    require_extra()
    if invite.version != own_version():
        raise InviteError(
            "The two machines have different versions of shardwise",
            f"The head has {invite.version}, this machine {own_version()}.",
            f"Install the same here: pip install 'shardwise[peers]=={invite.version}'",
        )
    folder = folder or peer_folder()
    request = signing_request(folder)
    authority = _authority(invite)
    asked = AskToJoin(invite.token, request, (name or platform.node() or "peer")[:64], own_version())
    answer = _ask(invite, asked, joining_context(authority))
    if isinstance(answer, NotJoined):
        raise InviteError(
            "The hub did not accept this machine",
            f"{answer.why} An invite ends with its time, its uses, or when it is taken back.",
            _NEW,
        )
    if not isinstance(answer, Joined):
        raise InviteError("The hub's answer makes no sense", "", _NEW)
    return keep_certificate(answer.certificate, authority, folder), answer.name


def _authority(invite: InviteLine) -> bytes:
    """The authority's certificate, from whoever answers there, if it is the one that the invite names."""
    answer = _ask(invite, AskAuthority(), joining_context(None))
    if not isinstance(answer, Authority) or not is_authority(answer.certificate, invite.fingerprint):
        raise InviteError(
            f"Who answers at {invite.address}:{invite.port} is not who made this invite",
            "Its fingerprint is another one. Nothing was sent to it.",
            "Somebody may be in between, or the head was set up anew. " + _NEW,
        )
    return answer.certificate


def _ask(invite: InviteLine, message: AskAuthority | AskToJoin, context: ssl.SSLContext) -> ToStranger:
    where = f"{invite.address}:{invite.port}"
    try:
        with (
            socket.create_connection((invite.address, invite.port), _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=server_name("")) as line,
        ):
            line.sendall(framed(_encoder.encode(message)))
            body = receive_frame(line)
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
    except ssl.SSLCertVerificationError as error:
        raise InviteError(f"Who answers at {where} cannot be believed", f"{error.verify_message}.", _NEW) from None
    except (OSError, ValueError) as error:
        raise InviteError(
            f"The hub at {where} is not reached",
            f"{error}.",
            "Is the address reachable from here, and the port open in the firewall there?",
        ) from None
    if body is None:
        raise InviteError(f"The hub at {where} hung up", "It may be busy, or it is no hub.", "Try again in a minute.")
    try:
        return to_stranger.decode(body)
    except msgspec.MsgspecError:
        raise InviteError(f"Who answers at {where} is no hub of this version", "", _NEW) from None
