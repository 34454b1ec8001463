"""A process between two network interfaces that passes frames on, later and at a bandwidth, as Lane says.

python -m tests.hosts.wire_process ONE OTHER     reads "DELAY BANDWIDTH" lines (seconds, bytes a second or 0)

The kernels of small systems have no netem. Frames are taken with what the sender's card would have had to do yet
(PACKET_VNET_HDR), so that they may be as large as the sender likes and need no checksum here.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

from tests.hosts.lane import Lane

_PACKET = 263  # SOL_PACKET
_VNET_HEADER, _IGNORE_OUTGOING = 15, 23
_ALL_PROTOCOLS = 0x0003
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 64 * 1024 * 1024
_MOST_FRAME_BYTES = 10 + 18 + 65536


def main(one: str, other: str) -> None:
    ends = (_opened(one), _opened(other))
    lanes = (Lane(), Lane())
    _say_ok()
    while True:
        waiting = [lane.next_due for lane in lanes if lane.next_due is not None]
        patience = max(0.0, min(waiting) - time.monotonic()) if waiting else None
        ready, _, _ = select.select([*ends, 0], [], [], patience)
        if 0 in ready and not _reshape(lanes):
            return
        for end, lane in zip(ends, lanes, strict=True):
            if end in ready:
                _take(end, lane)
        for end, lane in zip(ends, reversed(lanes), strict=True):
            _give(end, lane)


def _opened(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(_PACKET, _VNET_HEADER, 1)
    end.setsockopt(_PACKET, _IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    end.bind((interface, _ALL_PROTOCOLS))
    end.setblocking(False)
    return end


def _reshape(lanes: tuple[Lane, Lane]) -> bool:
    line = os.read(0, 4096).decode().splitlines()
    if not line:
        return False
    delay, bandwidth = map(float, line[-1].split())
    for lane in lanes:
        lane.delay, lane.bandwidth = delay, bandwidth or None
    _say_ok()
    return True


def _take(end: socket.socket, lane: Lane) -> None:
    for _ in range(64):
        try:
            frame = end.recv(_MOST_FRAME_BYTES)
        except BlockingIOError:
            return
        lane.put(time.monotonic(), frame)


def _give(end: socket.socket, lane: Lane) -> None:
    for frame in lane.due(time.monotonic()):
        try:
            end.send(frame)
        except OSError:
            # No room at the other end: dropped, as on a real wire.
            return


def _say_ok() -> None:
    os.write(1, b"ok\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
