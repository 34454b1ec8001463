"""Starting stage processes so that they outlive the launcher."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline_ext.cluster import SpawnOrder
from pipeline_ext.stage_launcher import LaunchError, StageLauncher

# Says who it is and what it was told, then lives until somebody kills it; its input ends behind the first words.
PROGRAM = """
import os, signal, sys
words = sys.stdin.buffer.read(4)
body = sys.stdin.buffer.read(int.from_bytes(words, 'big')) if words else b''
if not words: sys.exit(3)
from pipeline_ext.stage_child import start_decoder
start = start_decoder.decode(body)
path = os.path.join(os.environ['SEEN'], start.worker)
open(path + '.new', 'w').write(f"{os.getpid()} {start.door} {start.address} {os.environ.get('EXTRA')}")
os.rename(path + '.new', path)
rest = sys.stdin.buffer.read()
if rest: sys.exit(4)
signal.pause()
"""


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder / "notes", folder / "seen"
        self.seen.mkdir()

    def launcher(self) -> StageLauncher:
        environment = {**os.environ, "SEEN": str(self.seen)}
        return StageLauncher(self.folder, "10.1.2.3", "", environment, (sys.executable, "-c", PROGRAM))

    def said(self, worker: str) -> list[str]:
        assert eventually((self.seen / worker).exists)
        return (self.seen / worker).read_text().split()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def order(*workers: str, **environment: str) -> SpawnOrder:
    return SpawnOrder(workers, "10.0.0.1:5", b"secret", tuple(environment.items()))


def test_processes_get_their_words_and_are_killed_by_name_also_by_the_next_launcher(place: Place) -> None:
    place.launcher().spawn(order("one", "two", EXTRA="yes"))
    one, two = place.said("one"), place.said("two")
    assert one[1:] == ["10.0.0.1:5", "10.1.2.3", "yes"]
    assert alive(int(one[0]))
    # Nobody's child: what kills or reaps the children of the launcher's process does not find it.
    assert int(one[0]) not in {child.pid for child in psutil.Process().children(recursive=True)}
    after = place.launcher()
    after.kill(("one", "unknown"))
    assert eventually(lambda: not alive(int(one[0])))
    assert alive(int(two[0]))
    after.kill(("two",))
    assert eventually(lambda: not alive(int(two[0])))


def test_the_warm_process_is_the_next_one_where_the_environment_is_the_same(place: Place) -> None:
    launcher = place.launcher()
    launcher.keep_warm()
    assert launcher._warm is not None
    warm = launcher._warm.pid
    launcher.spawn(order("one"))
    assert place.said("one")[0] == str(warm)
    launcher.keep_warm()
    unused = launcher._warm.pid
    launcher.spawn(order("two", EXTRA="other"))
    assert place.said("two")[0] != str(unused)
    assert place.said("two")[3] == "other"
    assert eventually(lambda: not alive(unused))
    launcher.kill(("one", "two"))


def test_a_killed_launcher_leaves_running_processes_and_no_warm_one(place: Place) -> None:
    script = (
        "import sys, os, time\n"
        "from pathlib import Path\n"
        "from tests.pipeline_ext.test_stage_launcher import Place, order\n"
        "place = object.__new__(Place); place.folder = Path(sys.argv[1]); place.seen = Path(sys.argv[2])\n"
        "launcher = place.launcher(); launcher.spawn(order('one')); launcher.keep_warm()\n"
        "print(launcher._warm.pid, flush=True); time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(place.folder), str(place.seen)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    with parent:
        assert parent.stdout is not None
        warm = int(parent.stdout.readline())
        one = int(place.said("one")[0])
        parent.kill()
    assert eventually(lambda: not alive(warm))
    assert alive(one)
    place.launcher().kill(("one",))
    assert eventually(lambda: not alive(one))


def test_a_process_id_that_is_used_again_is_nobody_of_ours(place: Place) -> None:
    launcher = place.launcher()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        created = psutil.Process(other.pid).create_time() - 5
        (place.folder / "one.pid").write_text(f"{other.pid} {created!r}")
        launcher.kill(("one",))
        assert other.poll() is None
        other.communicate(b"\n")


@pytest.mark.parametrize(
    "bad",
    [
        SpawnOrder((), "d", b"s"),
        SpawnOrder(("../x",), "d", b"s"),
        SpawnOrder(("a" * 65,), "d", b"s"),
        SpawnOrder(("a",), "d" * 300, b"s"),
        SpawnOrder(("a",), "d", b"s", (("LD_PRELOAD=x", "y"),)),
        SpawnOrder(("a",), "d", b"s", (("A", "y\0"),)),
    ],
)
def test_an_order_that_is_none_starts_nothing(place: Place, bad: SpawnOrder) -> None:
    with pytest.raises(LaunchError):
        place.launcher().spawn(bad)
    assert list(place.folder.glob("*.pid")) == []
