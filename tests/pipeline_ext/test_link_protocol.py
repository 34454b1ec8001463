"""Frames of links: what is sent arrives whatever the pieces, and no bytes do anything but raise LinkError."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.hidden_states import DTYPE_BYTES, HiddenStates
from pipeline_ext.link_protocol import (
    HEADER,
    MAGIC,
    VERSION,
    Frame,
    FrameDecoder,
    FrameLimits,
    Keepalive,
    LinkError,
    Skipped,
    States,
    frame_parts,
    parse_frame,
)

LIMITS = FrameLimits(rows=6, columns=3)
numbers = st.integers(0, 2**64 - 1)


def states(epoch: int, number: int, dtype: str, rows: int) -> States:
    size = rows * LIMITS.columns * DTYPE_BYTES[dtype]
    return States(epoch, number, HiddenStates(dtype, rows, LIMITS.columns, bytes(place % 251 for place in range(size))))


frames = st.one_of(
    st.builds(states, numbers, numbers, st.sampled_from(sorted(DTYPE_BYTES)), st.integers(1, LIMITS.rows)),
    st.builds(Skipped, numbers, numbers),
    st.builds(Keepalive, numbers),
)


def packed(frame: Frame) -> bytes:
    header, data = frame_parts(frame)
    return header + bytes(data)


def header(**changed: int | bytes) -> bytes:
    fields: dict[str, int | bytes] = {
        "magic": MAGIC, "version": VERSION, "kind": 1, "dtype": 3, "epoch": 0, "number": 0, "rows": 1, "columns": 3,
        "length": 12,
    }  # fmt: skip
    return HEADER.pack(*(fields | changed).values())


@given(st.lists(frames, max_size=5), st.data())
def test_frames_arrive_in_any_pieces(sent: list[Frame], data: st.DataObject):
    stream = b"".join(packed(frame) for frame in sent)
    decoder, arrived, place = FrameDecoder(LIMITS), [], 0
    while place < len(stream):
        size = data.draw(st.integers(1, len(stream) - place))
        arrived += decoder.feed(stream[place : place + size])
        place += size
    assert arrived == sent


@given(frames)
def test_a_whole_frame_is_parsed_and_no_part_of_it(frame: Frame):
    body = packed(frame)
    assert parse_frame(body, LIMITS) == frame
    for broken in (body[:-1], body + b"\0", b""):
        with pytest.raises(LinkError):
            parse_frame(broken, LIMITS)


@given(st.lists(st.binary(max_size=80), max_size=8), st.booleans())
def test_no_bytes_do_anything_but_raise_a_link_error(pieces: list[bytes], begins_well: bool):
    decoder = FrameDecoder(LIMITS)
    for piece in [MAGIC + bytes([VERSION]), *pieces] if begins_well else pieces:
        try:
            decoder.feed(piece)
        except LinkError:
            with pytest.raises(LinkError):
                decoder.feed(packed(Keepalive(0)))
            return


@given(frames, st.data())
def test_a_changed_byte_of_a_header_never_makes_more_than_the_limit(frame: Frame, data: st.DataObject):
    body = bytearray(packed(frame))
    body[data.draw(st.integers(0, HEADER.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        got = FrameDecoder(LIMITS).feed(bytes(body))
    except LinkError:
        return
    for one in got:
        if isinstance(one, States):
            one.hidden.check(one.hidden.dtype, one.hidden.rows, LIMITS.columns)
            assert one.hidden.rows <= LIMITS.rows


@pytest.mark.parametrize(
    "wrong",
    [
        {"magic": b"GET "},
        {"version": VERSION + 1},
        {"kind": 0},
        {"kind": 9},
        {"dtype": 0},
        {"dtype": 99},
        {"rows": 0, "length": 0},
        {"rows": LIMITS.rows + 1, "length": 12 * (LIMITS.rows + 1)},
        {"columns": 4, "length": 16},
        {"length": 13},
        {"length": 0},
        {"kind": 2},
        {"kind": 3, "dtype": 0, "rows": 0, "columns": 0, "length": 0, "number": 1},
    ],
    ids=str,
)
def test_a_header_that_cannot_be_true_is_refused_before_its_data(wrong: dict[str, int | bytes]):
    with pytest.raises(LinkError):
        FrameDecoder(LIMITS).feed(header(**wrong))


def test_no_memory_is_taken_for_what_a_header_claims():
    limits = FrameLimits(rows=2**20, columns=2**10)
    tracemalloc.start()
    try:
        for rows in (2**10, 2**19):
            assert FrameDecoder(limits).feed(header(rows=rows, columns=2**10, length=rows * 2**12)) == []
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
