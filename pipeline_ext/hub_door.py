"""HubDoor: the TLS listener of the hub, on the chosen address only: strangers with an invite, and peers.

A stranger gets the authority's certificate and one refusal, whatever is wrong with its invite.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import structlog

from pipeline_ext.hub_messages import (
    PEER_FRAME,
    STRANGER_FRAME,
    AskAuthority,
    AskToJoin,
    Authority,
    BadFrameError,
    Hello,
    HubMessage,
    Joined,
    NotJoined,
    NotWelcome,
    RayEntry,
    Released,
    decoded,
    encoded,
    from_peer,
    from_stranger,
    read_frame,
)
from pipeline_ext.identity import (
    Identity,
    IdentityError,
    connected_id,
    id_of_request,
    joining_server_context,
    sign,
)
from pipeline_ext.invites import Attempts, Invites
from pipeline_ext.own_version import own_version
from pipeline_ext.peer_line import PeerLine
from pipeline_ext.peer_table import MOST_PEERS, PeerTable

REFUSAL = "This invite is not valid."
MOST_STRANGERS = 32
_STRANGER_SECONDS = 10.0
_HANDSHAKE_SECONDS = 5.0

log = structlog.get_logger("shardwise.hub")


class HubDoor:
    """`listener` is bound and not yet listening. `changed` is set when the table has changed."""

    def __init__(
        self, listener: socket.socket, head: Identity, table: PeerTable, invites: Invites, changed: asyncio.Event
    ) -> None:
        self._listener, self._head, self._table = listener, head, table
        self._invites, self._changed = invites, changed
        self._attempts = Attempts(asyncio.get_running_loop().time)
        self._strangers = 0
        self._lines: dict[str, PeerLine] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(
            self._enter,
            sock=self._listener,
            ssl=joining_server_context(self._head),
            ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=2.0,
            backlog=64,
            limit=PEER_FRAME,
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for line in self._lines.values():
            line.close()
        # Long enough for what was told last to be sent.
        await asyncio.sleep(0.05)

    def tell_ray(self, entry: RayEntry | None) -> None:
        for line in self._lines.values():
            line.tell_ray(entry)

    def release(self, peer: str, removed: bool) -> None:
        """Lets a peer go, if it is connected."""
        line = self._lines.get(peer)
        if line is not None:
            line.tell(Released(removed))
            if removed:
                line.close()

    def connected(self, peer: str) -> bool:
        return peer in self._lines

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str(writer.get_extra_info("peername")[0])
        secured = writer.get_extra_info("ssl_object")
        peer = connected_id(secured) if isinstance(secured, ssl.SSLObject) else None
        try:
            if peer:
                await self._serve_peer(peer, address, reader, writer)
            elif self._strangers < MOST_STRANGERS:
                await self._serve_stranger(address, reader, writer)
        except (BadFrameError, OSError, TimeoutError, ssl.SSLError) as error:
            log.info("a line ended", address=address, peer=peer or "", why=str(error)[:200])
        finally:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _serve_peer(
        self, peer: str, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(_STRANGER_SECONDS):
            body = await read_frame(reader, PEER_FRAME)
        if body is None:
            return
        hello = decoded(from_peer, body)
        if not isinstance(hello, Hello):
            raise BadFrameError("a peer has to begin with Hello")
        if (refusal := self._unwelcome(peer, hello.version)) is not None:
            await _last_word(writer, refusal)
            return
        line = PeerLine(peer, self._table, reader, writer, self._changed)
        if (before := self._lines.get(peer)) is not None:
            before.close()
        self._lines[peer] = line
        log.info("a peer came", peer=peer, address=address)
        try:
            await line.run(hello, address)
        finally:
            if self._lines.get(peer) is line:
                del self._lines[peer]
            self._changed.set()

    def _unwelcome(self, peer: str, version: str) -> NotWelcome | None:
        if peer not in self._table:
            return NotWelcome("This machine does not belong to the cluster any more.", final=True)
        if version != own_version():
            return NotWelcome(f"It has shardwise {version}, the head has {own_version()}.", final=True)
        return None

    async def _serve_stranger(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._strangers += 1
        try:
            async with asyncio.timeout(_STRANGER_SECONDS):
                body = await read_frame(reader, STRANGER_FRAME)
                if body is None:
                    return
                message = decoded(from_stranger, body)
                answer = self._join(message, address) if isinstance(message, AskToJoin) else self._authority(message)
                await _last_word(writer, answer)
        finally:
            self._strangers -= 1

    def _authority(self, _: AskAuthority) -> Authority:
        return Authority(self._head.authority.read_bytes())

    def _join(self, asked: AskToJoin, address: str) -> Joined | NotJoined:
        """The token is looked at first, and nothing is said to who has none that is valid."""
        try:
            key = id_of_request(asked.request)
        except IdentityError:
            key = ""
        if not self._attempts.may(address) or not key or not self._invites.accepts(asked.token, key):
            self._attempts.failed(address)
            log.warning("an invite was refused", address=address)
            return NotJoined(REFUSAL)
        if asked.version != own_version():
            return NotJoined(f"It has shardwise {asked.version}, the head has {own_version()}.")
        if len(self._table.peers()) >= MOST_PEERS:
            return NotJoined(f"There are {MOST_PEERS} peers already.")
        certificate = sign(asked.request, self._head)
        self._invites.use(asked.token, key)
        name = self._table.admit(key, asked.name)
        log.info("a peer joined", peer=key, name=name, address=address)
        return Joined(certificate, name)


async def _last_word(writer: asyncio.StreamWriter, message: HubMessage) -> None:
    writer.write(encoded(message))
    async with asyncio.timeout(_STRANGER_SECONDS):
        await writer.drain()
