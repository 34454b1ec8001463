"""The process of one rank of a stage: `python -m pipeline_ext.stage_process`, its first words on its standard input.

It imports torch at once, while it waits for them, so that one may be kept warm. What it does then is `stage_worker`'s;
how it ends with its engine, `engine_lines`'.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import shutil
import signal
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from backend.errors import ShardwiseError
from backend.executor import DeviceLostError
from backend.library.locations import cache_home
from backend.parentage import die_with_parent
from backend.workers.meeting import Meeting
from backend.workers.rank_work import StageWork
from backend.workers.worker_process import explanation
from pipeline_ext.dial import line_context
from pipeline_ext.engine_lines import EngineLines, leave, open_lines
from pipeline_ext.listening import bound_tcp, bound_unix
from pipeline_ext.messages import Broken, FromStage, LoadStage
from pipeline_ext.stage_child import DIES_WITH_PARENT, StageStart, start_decoder
from pipeline_ext.stage_links import StageLinks
from pipeline_ext.stage_worker import Inbox, StageWorker

MOST_WORDS_BYTES = 4096
# Nobody meets anew in a folder that is older.
MEETING_SECONDS = 7 * 24 * 3600.0
OpenRank = Callable[[], StageWork]


def first_words() -> StageStart | None:
    """From standard input; None where whoever started us has nothing for us any more."""
    head = sys.stdin.buffer.read(4)
    if len(head) < 4:
        return None
    length = int.from_bytes(head, "big")
    if length > MOST_WORDS_BYTES:
        raise ValueError(f"first words of {length} bytes")
    return start_decoder.decode(sys.stdin.buffer.read(length))


class Employment:
    """For whom this process works: hears the first words and opens the lines, beside the main thread.

    One that has only described a model may be given other words: it becomes another worker then.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._words: StageStart | None = None
        self._lines: EngineLines | None = None
        self._begun = threading.Event()
        self._loaded = False
        threading.Thread(target=self._hear, name="words", daemon=True).start()

    @property
    def words(self) -> StageStart:
        """Blocks until there are some."""
        self._begun.wait()
        if self._words is None:
            leave(0)
        return self._words

    @property
    def lines(self) -> EngineLines:
        """Blocks until there are some."""
        self._begun.wait()
        if self._lines is None:
            leave(0)
        return self._lines

    def load(self) -> None:
        """From now on this process is of no use to anybody else."""
        self._loaded = self.lines.bound = True

    def send(self, message: FromStage) -> None:
        self.lines.send(message)

    def step_begins(self) -> None:
        self.lines.step_begins()

    def step_ends(self) -> None:
        self.lines.step_ends()

    def _hear(self) -> None:
        try:
            while (words := first_words()) is not None and not self._loaded:
                logging.getLogger("shardwise").info("works as %s", words.worker)
                lines = open_lines(words, self._inbox.put)
                # On a peer the pipe is closed behind the first words.
                lines.bound = False
                self._words, self._lines = words, lines
                self._begun.set()
        except (OSError, ValueError, msgspec.MsgspecError, ShardwiseError) as error:
            print(f"could not come to the engine: {error}", file=sys.stderr)
            leave(1)
        if self._lines is None:
            leave(0)
        self._lines.bound = True


class _Links:
    """Opens a stage's links: on this machine by a socket beside the door's, to others with TLS."""

    def __init__(self, employment: Employment, inbox: Inbox) -> None:
        self._employment, self._inbox = employment, inbox

    def open(self, order: LoadStage) -> tuple[StageLinks, str]:
        words = self._employment.words
        identity = Path(words.identity) if words.identity else None
        folder = Path(words.door).parent if words.door.startswith("/") else None
        links = StageLinks(order.stage, order.secret, line_context(identity), folder, self._inbox.put)
        places: list[str] = []
        if order.accepts and folder is not None:
            path = folder / f"link-{os.getpid()}.sock"
            path.unlink(missing_ok=True)
            places.append(links.listen(bound_unix(path), None))
        if order.accepts and words.address and (context := _server_context(identity)) is not None:
            places.append(links.listen(bound_tcp(words.address), context))
        if order.accepts and not places:
            raise RuntimeError("a link is to come in, and there is nowhere to listen")
        return links, " ".join(places)


def _server_context(folder: Path | None) -> ssl.SSLContext | None:
    if folder is None:
        return None
    from pipeline_ext.identity import read_identity, server_context

    identity = read_identity(folder)
    return None if identity is None else server_context(identity)


def provided(order: LoadStage, on_progress: Callable[[str, int, int], None]) -> LoadStage:
    """The order, with files and a meeting place that are on this machine. Raises ShardwiseError."""
    load = order.load
    if order.offer:
        from pipeline_ext.tensor_fetch import obtain

        files = obtain(load, order.span, order.offer, order.secret, on_progress)
        load = replace(load, settings=replace(load.settings, files=files))
    if len(load.plan.ranks) > 1:
        load = replace(load, meeting=Meeting(str(meeting_folder(load.meeting.generation)), load.meeting.generation))
    return replace(order, load=load)


def meeting_folder(generation: str, root: Path | None = None) -> Path:
    """Where the ranks of one stage meet: a private folder of this start's own. Those of long ago are removed."""
    root = root or cache_home() / "stage-ranks"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in root.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > MEETING_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    folder = root / generation
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def main(arguments: list[str], open_rank: OpenRank) -> None:
    """The process. `open_rank` is called when the engine may be heard already: imports take long."""
    faulthandler.enable()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    logging.getLogger("shardwise").setLevel(logging.INFO)
    # A terminal's Ctrl+C is the server's to interpret: it may want to drain first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if DIES_WITH_PARENT in arguments:
        die_with_parent()
    inbox: Inbox = queue.SimpleQueue()
    employment = Employment(inbox)
    try:
        StageWorker(inbox, employment, open_rank(), _Links(employment, inbox).open, provided).serve()
    except Exception as error:  # noqa: BLE001 - the edge of the process: the engine is told why it ended
        traceback.print_exc()
        employment.lines.end(Broken(str(error) if isinstance(error, DeviceLostError) else explanation(error)))


def open_real_rank() -> StageWork:
    """Imports torch and the model code, which takes seconds, before the engine orders anything."""
    from backend.workers.model_rank import ModelRank

    # What loading a model on a processor needs besides; harmless where it cannot be had.
    with contextlib.suppress(ImportError):
        import transformers.models.llama.modeling_llama  # noqa: F401

        from backend.surgery import processor_kernels as _kernels

        del _kernels
    return ModelRank()


if __name__ == "__main__":
    main(sys.argv[1:], open_real_rank)
