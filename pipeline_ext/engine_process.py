"""The engine process where a model may have several stages: `backend.engine_process`, composed by `compose_stages`."""

from __future__ import annotations

import sys

from backend.engine_process import Composed, OnProgress, main
from backend.engine_settings import EngineSettings

STAGED_ENGINE_COMMAND = (sys.executable, "-P", "-m", "pipeline_ext.engine_process")


def compose_for_real(settings: EngineSettings, on_progress: OnProgress) -> Composed:
    """Composes late, so that what imports take is told as progress."""
    on_progress("read", 0, 0)
    from pipeline_ext.compose_stages import compose_stages

    return compose_stages(settings, on_progress)


if __name__ == "__main__":
    main(sys.argv[1:], compose_for_real)
