"""A program that is one Ray node, `ray start --block ARGUMENTS`, for as long as somebody holds its standard input.

When its input ends, or Ray does, nothing of that node is left: Ray's agents outlive its servers at times, so all that
has the node's token in its environment is killed. (What stages run has no such thing in it.)
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
FOLDER_PREFIX = "sw-ray-"
_TOKEN = "RAY_AUTH_TOKEN_PATH"
_LOOK_SECONDS = 0.3


def kill_node(token_file: Path) -> None:
    """Kills all processes of the node with this token but our own, and removes its folder."""
    for _ in range(5):
        found = _with_token(str(token_file))
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        time.sleep(0.05)
    if token_file.parent.name.startswith(FOLDER_PREFIX):
        shutil.rmtree(token_file.parent, ignore_errors=True)


def _with_token(token_file: str) -> list[int]:
    wanted = f"{_TOKEN}={token_file}".encode()
    found: list[int] = []
    for place in Path("/proc").iterdir():
        # Of other users' processes we may not read the environment, and need not.
        with suppress(OSError):
            if place.name.isdigit() and wanted in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return [pid for pid in found if pid != os.getpid()]


def main() -> int:
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", *sys.argv[1:]]
    ray = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while ray.poll() is None:
            if select.select([0], [], [], _LOOK_SECONDS)[0] and not os.read(0, 4096):
                ray.terminate()
                # Ray's servers may take a minute to obey, and hold their ports as long.
                with suppress(subprocess.TimeoutExpired):
                    ray.wait(GRACE)
                break
    finally:
        kill_node(Path(os.environ[_TOKEN]))
    return ray.wait()


if __name__ == "__main__":
    sys.exit(main())
