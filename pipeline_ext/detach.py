"""A program, run by path: starts another in a session of its own, as nobody's child, prints its process id and ends.

It stands alone, imports nothing of ours and starts in some 15 ms.
"""

import os
import sys


def main(command: list[str]) -> None:
    pid = os.fork()
    if pid:
        # The session's leader, which ends at once: what it starts is left to the system.
        os.waitpid(pid, 0)
        return
    os.setsid()
    child = os.fork()
    if child:
        os.write(1, str(child).encode())
        os._exit(0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(os.environ.pop("SHARDWISE_STAGE_LOG", os.devnull), flags, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    try:
        os.execv(command[0], command)
    finally:
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
