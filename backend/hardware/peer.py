"""PeerPath: what a probe found of two GPUs that write to each other. Plain data; probing is `peer_probe`'s."""

from __future__ import annotations

from msgspec import Struct


class PeerPath(Struct, frozen=True):
    """Two GPUs, by uuid.

    Attributes:
        direct: whether copies go from one to the other; False where they pass through main memory.
        gigabytes: GB/s of a large copy, the slower direction's; 0 where none ended.
        microseconds: of a small one.
        problem: what went wrong, such as "a copy did not end within 20 s"; empty where every byte was right.
    """

    first: str
    second: str
    direct: bool = False
    gigabytes: float = 0.0
    microseconds: float = 0.0
    problem: str = ""

    @property
    def works(self) -> bool:
        return not self.problem
