"""Real processes on one folder: killed while they store, and two at once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvcache.tiers.record import Miss
from tests.kvcache.tiers.disk_pages import kept, load, make, page
from tests.kvcache.tiers.storing import BIG, BUDGET, NUMBERS

ROOT = Path(__file__).parents[3]
KILLS = 50


@contextmanager
def storing(folder: Path, seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.kvcache.tiers.storing", str(folder), str(seed)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints."""
    if process.stdout is None:
        raise ValueError("its output is not read")
    return process.stdout.readline().strip()


def test_a_killed_writer_leaves_right_records_or_none(tmp_path: Path) -> None:
    """After each kill at a random moment: all that is indexed loads right, and no more is on disk than that."""
    folder, choose = tmp_path / "pages", random.Random(1)
    halves = records = 0
    for seed in range(KILLS):
        with storing(folder, seed) as process:
            assert said(process) == "writer"
            time.sleep(choose.uniform(0.0, 0.03))  # a random moment of its work
            process.kill()
            process.wait()
        halves += len(list(folder.rglob("*.part")))
        tier = make(folder, BUDGET, shape=BIG)
        assert tier.writable
        indexed = kept(tier, NUMBERS)
        assert sorted(file.stat().st_size for file in (folder / "ab").iterdir()) == [BIG.record_bytes] * len(indexed)
        assert all(load(tier, number, BIG) == page(number, BIG) for number in indexed)
        statistics = tier.statistics()
        assert statistics.pages == len(indexed)
        assert statistics.bytes == len(indexed) * BIG.record_bytes <= BUDGET
        records += len(indexed)
        tier.close()
    assert records > KILLS
    assert halves, "no kill met a write: this run has not tested what it should"


def test_two_servers_on_one_folder_and_the_death_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    with storing(folder, 1) as first, storing(folder, 2) as second:
        roles = {said(first): first, said(second): second}
        assert set(roles) == {"writer", "reader"}
        reader = roles["reader"]
        time.sleep(0.1)  # both work beside each other
        roles["writer"].kill()
        assert said(reader) == "writer"
        reader.communicate(input="end\n", timeout=20)
        assert reader.returncode == 0
    tier = make(folder, BUDGET, shape=BIG)
    assert all(load(tier, number, BIG) in (page(number, BIG), Miss.MISSING) for number in range(NUMBERS))
    tier.close()
