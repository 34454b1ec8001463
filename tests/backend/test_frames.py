"""Frames that arrive in any pieces."""

from __future__ import annotations

import socket
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.frames import MAX_FRAME_BYTES, FrameReader, framed


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 400), max_size=6))
def test_frames_arrive_whole_and_in_order_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(framed, bodies))
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    ours, theirs = socket.socketpair()
    received: list[bytes] = []
    with ours, theirs:
        reader = FrameReader(ours)
        for start, end in pairwise(edges):
            theirs.sendall(data[start:end])
            assert reader.receive()
            while (body := reader.take()) is not None:
                received.append(body)
        theirs.close()
        assert reader.next() is None
    assert received == bodies


def test_a_frame_longer_than_the_sockets_buffer_is_read_to_its_end() -> None:
    ours, theirs = socket.socketpair()
    body = bytes(100_000)
    with ours, theirs:
        theirs.sendall(framed(body) + framed(b"next"))
        reader = FrameReader(ours)
        assert reader.next() == body
        assert reader.next() == b"next"


def test_a_frame_longer_than_any_message_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(ValueError, match="at most"):
            FrameReader(ours).next()
