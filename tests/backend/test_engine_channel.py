"""The outbox under a reader that is slow: bounded memory, nothing lost, order kept."""

from __future__ import annotations

import socket
import threading

import pytest

from backend.engine_channel import MAX_UNSENT_BYTES, Outbox
from backend.frames import MAX_FRAME_BYTES, receive_frame
from backend.messages import Progress, from_engine_decoder

FRAME_BYTES = 256 * 1024


def test_a_slow_reader_holds_the_sender_up_and_then_gets_everything_in_order() -> None:
    ours, theirs = socket.socketpair()
    count = 3 * MAX_UNSENT_BYTES // FRAME_BYTES
    sent: list[int] = []

    def produce() -> None:
        outbox = Outbox(theirs)
        for number in range(count):
            outbox.send(Progress("x" * FRAME_BYTES, done=number))
            sent.append(number)
        outbox.flush(5)

    with ours, theirs:
        producer = threading.Thread(target=produce)
        producer.start()
        producer.join(0.3)
        held_up_at = len(sent)
        assert MAX_UNSENT_BYTES // FRAME_BYTES <= held_up_at <= MAX_UNSENT_BYTES // FRAME_BYTES + 4
        received = [from_engine_decoder.decode(receive_frame(ours) or b"") for _ in range(count)]
        assert [message.done for message in received if isinstance(message, Progress)] == list(range(count))
        producer.join(5)
        assert not producer.is_alive()


def test_a_frame_longer_than_any_message_is_refused_before_it_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(ValueError, match="at most"):
            receive_frame(ours)


def test_a_peer_that_closes_in_mid_frame_has_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall((10).to_bytes(4, "big") + b"half")
        assert receive_frame(ours) is None
