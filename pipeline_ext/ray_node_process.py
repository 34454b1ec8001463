"""A program that is one Ray node, `ray start --block ARGUMENTS`, for as long as somebody holds its standard input.

It leads a session of its own. When its input ends, or Ray does, it kills all of that session: Ray's agents outlive its
servers at times. What runs stages is in other sessions. It removes FOLDER, its first argument, at its end.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE = 3.0
_LOOK_SECONDS = 0.3
_SESSION = 3  # in /proc/PID/stat, counted from behind the name
_RAY = (
    "import sys; from backend.parentage import die_with_parent; die_with_parent(); "
    "from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"
)


def kill_session(leader: int, but: int | None = None) -> None:
    """Kills all processes of the session that this process leads. It has to be alive, or its number may be another's.

    but: one that is spared.
    """
    for _ in range(5):
        found = [pid for pid in _of_session(leader) if pid != but]
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.05)


def _of_session(leader: int) -> list[int]:
    found: list[int] = []
    for place in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            if place.name.isdigit():
                # The name may have blanks and brackets in it; what follows does not.
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                if int(fields[_SESSION]) == leader and fields[0] != "Z":
                    found.append(int(place.name))
    return found


def main() -> int:
    folder, *arguments = sys.argv[1:]
    ray = subprocess.Popen([sys.executable, "-P", "-c", _RAY, "start", *arguments], stdin=subprocess.DEVNULL)
    try:
        while ray.poll() is None:
            if select.select([0], [], [], _LOOK_SECONDS)[0] and not os.read(0, 4096):
                ray.terminate()
                # Ray's servers may take a minute to obey, and hold their ports as long.
                with suppress(subprocess.TimeoutExpired):
                    ray.wait(GRACE)
                break
    finally:
        if os.getsid(0) == os.getpid():
            kill_session(os.getpid(), but=os.getpid())
        ray.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return ray.wait()


if __name__ == "__main__":
    sys.exit(main())
