"""`python -m app` and the `shardwise` script. The command line itself is `cli`'s."""

from __future__ import annotations

from app.cli import main

if __name__ == "__main__":
    main()
