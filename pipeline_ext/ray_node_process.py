"""A program that is one Ray node, `ray start --block ARGUMENTS`, for as long as somebody holds its standard input.

When its input ends, it ends, and so does all that Ray has started: Ray asks the kernel to kill its servers with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

GRACE = 3.0


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # Ray's servers may take a minute to obey, and hold their ports as long.
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    threading.Thread(target=_end_with_input, daemon=True).start()
    from ray.scripts.scripts import main as ray

    sys.argv = ["ray", "start", *sys.argv[1:]]
    ray()


if __name__ == "__main__":
    main()
