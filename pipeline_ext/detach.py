"""A program, run by path: starts another one in a session of its own, as nobody's child, and prints its process id.

What comes on its standard input is passed on when that has ended; then the other's ends too, and this program with it:
whoever gave the words may go. It stands alone, imports nothing of ours and starts in some 15 ms.
"""

import os
import sys


def main(command: list[str]) -> None:
    if os.fork():
        return
    os.setsid()
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(write_end)
        _become(command, read_end)
    os.close(read_end)
    os.write(1, str(child).encode())
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    words = b""
    while part := os.read(0, 65536):
        words += part
    try:
        os.write(write_end, words)
    finally:
        # Also where the other one has ended.
        os._exit(0)


def _become(command: list[str], read_end: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        log = os.open(os.environ.pop("SHARDWISE_STAGE_LOG", os.devnull), flags, 0o600)
        os.dup2(read_end, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        os.execve(command[0], command, os.environ)
    finally:
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
