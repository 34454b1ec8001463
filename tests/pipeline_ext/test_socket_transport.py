"""SocketTransport and its Door: workers are heard in order, their ends are told once, strangers get nothing."""

from __future__ import annotations

import os
import random
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_ext.door import Door
from pipeline_ext.identity import Identity, client_context, head_identity, server_context
from pipeline_ext.messages import Beat, Broken, Joined, Poll, Pulse, encoder, to_stage_decoder
from pipeline_ext.socket_transport import SocketTransport
from pipeline_ext.transport import Arrived, Gone, Heard
from tests.pipeline_ext.lines import SECRET, Connect, FakeWorker, unix_connect, until


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return head_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def door(tmp_path: Path, identity: Identity) -> Iterator[Door]:
    door = Door(SECRET, "127.0.0.1", server_context(identity), tmp_path)
    yield door
    door.close()


@pytest.fixture
def transport(door: Door) -> Iterator[SocketTransport]:
    transport = SocketTransport(door)
    yield transport
    transport.close()


@pytest.fixture(params=["unix", "tls"])
def connect(request: pytest.FixtureRequest, door: Door, identity: Identity) -> Connect:
    if request.param == "unix":
        return unix_connect(door.unix)
    host, _, port = door.tcp.rpartition(":")

    def connect() -> socket.socket:
        plain = socket.create_connection((host, int(port)), 5)
        return client_context(identity).wrap_socket(
            plain, server_hostname="head.shardwise", do_handshake_on_connect=False
        )

    return connect


def test_a_worker_arrives_is_heard_in_order_and_is_gone_once(transport: SocketTransport, connect: Connect) -> None:
    worker = FakeWorker(connect, "a").come()
    assert until(transport, bool) == [Arrived("a", 4321)]
    for epoch in range(200):
        worker.tell(Joined(epoch))
    heard = until(transport, lambda events: len(events) >= 200)
    assert heard == [Heard("a", Joined(epoch)) for epoch in range(200)]
    worker.tell(Broken("that was it"))
    assert worker.orders is not None
    worker.orders.flush(1)
    worker.close()
    last = until(transport, lambda events: any(isinstance(event, Gone) for event in events))
    assert [type(event) for event in last] == [Heard, Gone]
    assert transport.poll(0.05) == []


def test_orders_and_beats_reach_the_worker(transport: SocketTransport, connect: Connect) -> None:
    worker = FakeWorker(connect, "a").come()
    until(transport, bool)
    transport.send("a", Poll(0.5))
    transport.send("nobody", Poll(0.5))
    assert worker.orders is not None
    assert worker.pulse is not None
    assert to_stage_decoder.decode(worker.orders.next(5) or b"") == Poll(0.5)
    assert to_stage_decoder.decode(worker.pulse.next(5) or b"") == Beat()
    worker.close()


def test_a_worker_that_does_not_read_holds_nobody_up(transport: SocketTransport, connect: Connect) -> None:
    deaf, other = FakeWorker(connect, "deaf").come(), FakeWorker(connect, "other").come()
    until(transport, lambda events: len(events) == 2)
    for _ in range(50):
        transport.send_encoded("deaf", b"x" * 100_000)
        transport.send("other", Poll(0.0))
    assert other.orders is not None
    for _ in range(50):
        assert other.orders.next(5) is not None
    deaf.close()
    other.close()


def test_who_was_dropped_says_nothing_more_and_does_not_come_back(transport: SocketTransport, connect: Connect) -> None:
    worker = FakeWorker(connect, "a").come()
    until(transport, bool)
    worker.tell(Joined(1))
    transport.drop("a")
    assert transport.poll(0.1) == []
    again = FakeWorker(connect, "a").come()
    assert again.orders is not None
    assert transport.poll(0.2) == []
    assert again.orders.next(5) is None
    worker.close()
    again.close()


def test_a_message_of_no_known_kind_ends_that_worker_only(transport: SocketTransport, connect: Connect) -> None:
    worker, other = FakeWorker(connect, "a").come(), FakeWorker(connect, "b").come()
    until(transport, lambda events: len(events) == 2)
    assert worker.orders is not None
    worker.orders.send(b"\x93\x01\x02\x03")
    (gone,) = until(transport, bool)
    assert isinstance(gone, Gone)
    assert gone.worker == "a"
    other.tell(Joined(3))
    assert until(transport, bool) == [Heard("b", Joined(3))]
    worker.close()
    other.close()


def test_a_wrong_secret_gets_nothing_and_is_counted(transport: SocketTransport, door: Door, connect: Connect) -> None:
    stranger = FakeWorker(connect, "a", b"another secret of the same length")
    line = stranger.line("orders")
    assert line.next(5) is None
    line.close()
    assert door.strangers == 1
    assert transport.poll(0.05) == []


def test_a_certificate_of_another_authority_is_turned_away(door: Door, tmp_path: Path) -> None:
    other = head_identity(tmp_path / "other")
    host, _, port = door.tcp.rpartition(":")
    context = client_context(other)
    context.check_hostname = False
    with socket.create_connection((host, int(port)), 5) as plain, pytest.raises(OSError):  # noqa: PT011
        context.wrap_socket(plain).recv(1)


def test_fuzzed_strangers_do_not_keep_workers_out(transport: SocketTransport, door: Door, connect: Connect) -> None:
    source = random.Random(7)
    for number in range(40):
        with unix_connect(door.unix)() as peer:
            length = source.choice([0, 3, 2**32 - 1, 900, source.randrange(2000)])
            peer.sendall(length.to_bytes(4, "big") + source.randbytes(source.randrange(1200)))
            if number % 2:
                peer.shutdown(socket.SHUT_WR)
    with socket.create_connection(("127.0.0.1", int(door.tcp.rpartition(":")[2])), 5) as peer:
        peer.sendall(source.randbytes(500))
    worker = FakeWorker(connect, "a").come()
    assert until(transport, bool) == [Arrived("a", 4321)]
    worker.close()


def test_the_unix_socket_is_this_users_alone_and_goes_with_the_door(door: Door) -> None:
    assert stat.S_IMODE(os.stat(door.unix).st_mode) == 0o600
    door.close()
    assert not Path(door.unix).exists()


def test_a_door_arranges_a_private_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, home in (("short", tmp_path), ("long", tmp_path / ("x" * 100))):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        door = Door(SECRET)
        folder = Path(door.unix).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, name
        door.close()
        assert not folder.exists(), name


def test_pulses_come_beside_orders(transport: SocketTransport, connect: Connect) -> None:
    worker = FakeWorker(connect, "a").come()
    until(transport, bool)
    assert worker.pulse is not None
    worker.pulse.send(encoder.encode(Pulse(1.5)))
    assert until(transport, bool) == [Heard("a", Pulse(1.5))]
    worker.close()
