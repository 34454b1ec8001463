"""The probe of GPUs that write to each other, with programs in place of the one that copies: it never hangs, it names
the pair, and it remembers."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from backend.hardware.peer import PeerPath
from backend.hardware.peer_probe import probe, probed
from backend.hardware.peer_store import PeerStore
from tests.fakes.machines import bridged_3090, dgx_h100, pcie_3090

# Copies in words: begins each pair it is asked for, and reports it, unless `odd` says what happens instead.
PROGRAM = """
import json, os, sys, time
open(os.environ["SEEN"], "a").write(" ".join(sys.argv[1:]) + "|" + os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
def tell(first, second, **more):
    print(json.dumps({"first": first, "second": second, **more}), flush=True)
for pair in sys.argv[1:]:
    first, second = map(int, pair.split("-"))
    tell(first, second)
    if pair in (ODD):
        ODDITY
    tell(first, second, done=True, direct=True, gigabytes=40.0 + second, microseconds=9.0)
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs write down what they were asked."""
    path = tmp_path / "seen"
    path.write_text("")
    monkeypatch.setenv("SEEN", str(path))
    return path


def program(odd: tuple[str, ...] = (), oddity: str = "pass") -> tuple[str, ...]:
    return (sys.executable, "-c", PROGRAM.replace("ODDITY", oddity).replace("ODD", repr(odd)))


def runs(seen: Path) -> list[list[str]]:
    return [line.partition("|")[0].split() for line in seen.read_text().splitlines()]


def problems(found: tuple[PeerPath, ...]) -> dict[tuple[str, str], str]:
    return {(peer.first[4:12], peer.second[4:12]): peer.problem for peer in found}


def test_every_pair_is_probed_by_one_program_that_sees_these_gpus(seen: Path) -> None:
    gpus = dgx_h100(3).gpus
    found = probe(gpus, program())
    assert runs(seen) == [["0-1", "0-2", "1-2"]]
    assert seen.read_text().strip().partition("|")[2] == ",".join(gpu.uuid for gpu in gpus)
    assert [(peer.first, peer.second) for peer in found] == [
        (gpus[0].uuid, gpus[1].uuid),
        (gpus[0].uuid, gpus[2].uuid),
        (gpus[1].uuid, gpus[2].uuid),
    ]
    assert found[0] == PeerPath(gpus[0].uuid, gpus[1].uuid, True, 41.0, 9.0)
    assert all(peer.works for peer in found)


def test_a_pair_that_hangs_is_named_and_the_others_are_probed_without_it(seen: Path) -> None:
    begin = time.monotonic()
    found = probe(dgx_h100(3).gpus, program(("0-2",), "time.sleep(60)"), pair=1.5)
    assert time.monotonic() - begin < 30
    assert runs(seen) == [["0-1", "0-2", "1-2"], ["1-2"]]
    assert problems(found) == {
        ("00000000", "00000001"): "",
        ("00000000", "00000002"): "a copy did not end within 2 s",
        ("00000001", "00000002"): "",
    }


def test_a_pair_that_kills_the_program_is_named(seen: Path) -> None:
    found = probe(pcie_3090(3).gpus, program(("0-1", "1-2"), "os.abort()"))
    assert runs(seen) == [["0-1", "0-2", "1-2"], ["0-2", "1-2"]]
    assert [bool(peer.problem) for peer in found] == [True, False, True]
    assert "ended by the driver" in found[0].problem


@pytest.mark.parametrize("oddity", ["print('{', flush=True)", "tell(5, 6)", "tell(second, first, done=True)"])
def test_nonsense_is_a_problem_of_the_pair(seen: Path, oddity: str) -> None:
    found = probe(bridged_3090().gpus, program(("0-1",), oddity))
    assert len(found) == 1
    assert found[0].problem == "the program that copies told nonsense"


def test_wrong_bytes_are_reported_as_they_are_told(seen: Path) -> None:
    wrong = "tell(first, second, done=True, direct=True, problem='what arrives is not what was sent'); continue"
    found = probe(bridged_3090().gpus, program(("0-1",), wrong))
    assert found[0].problem == "what arrives is not what was sent"
    assert found[0].direct


@pytest.mark.parametrize("text", ["raise SystemExit('no CUDA')", "import time; time.sleep(60)"])
def test_a_program_that_cannot_begin_finds_nothing_and_is_not_remembered(tmp_path: Path, text: str) -> None:
    command = (sys.executable, "-c", text)
    assert probe(bridged_3090().gpus, command, start=1.0) == ()
    store = PeerStore(tmp_path / "peers", "boot")
    if "SystemExit" in text:
        assert probed(bridged_3090(), store, command).peers == ()
        assert not (tmp_path / "peers").exists()


def test_what_was_found_is_remembered_for_these_gpus_and_this_driver(tmp_path: Path, seen: Path) -> None:
    store, machine = PeerStore(tmp_path / "peers", "boot"), bridged_3090()
    first = probed(machine, store, program())
    assert first.peers[0].works
    assert probed(machine, store, ("/no/such/program",)) == first
    turned = replace(machine, gpus=machine.gpus[::-1])
    assert store.read(turned.gpus) == first.peers
    newer = tuple(replace(gpu, driver="999.1") for gpu in machine.gpus)
    assert store.read(newer) is None
    assert store.read(dgx_h100(3).gpus) is None
    assert PeerStore(tmp_path / "peers", "another boot").read(machine.gpus) == first.peers
    assert len(runs(seen)) == 1


def test_a_failure_is_probed_again_after_the_computer_was_started_again(tmp_path: Path, seen: Path) -> None:
    machine = bridged_3090()
    probed(machine, PeerStore(tmp_path, "boot"), program(("0-1",), "os.abort()"))
    assert PeerStore(tmp_path, "boot").read(machine.gpus) is not None
    assert PeerStore(tmp_path, "next boot").read(machine.gpus) is None
    assert probed(machine, PeerStore(tmp_path, "next boot"), program()).peers[0].works


def test_files_that_cannot_be_read_or_written_only_cost_time(tmp_path: Path, seen: Path) -> None:
    store, machine = PeerStore(tmp_path / "peers", "boot"), bridged_3090()
    probed(machine, store, program())
    (kept,) = (tmp_path / "peers").iterdir()
    kept.write_bytes(b"\x93rubbish")
    assert store.read(machine.gpus) is None
    assert probed(machine, store, program()).peers
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert probed(machine, PeerStore(blocked / "peers", "boot"), program()).peers


def test_one_gpu_or_none_has_nothing_to_probe(tmp_path: Path) -> None:
    alone: Any = replace(bridged_3090(), gpus=bridged_3090().gpus[:1])
    assert probed(alone, PeerStore(tmp_path, "boot"), ("/no/such/program",)) == alone


def test_a_way_is_copied_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor, where the copies themselves are right; what they are on a GPU only a GPU tells."""
    import torch

    from backend.hardware import probe_peers

    monkeypatch.setattr(probe_peers, "_LARGE", 1 << 16)
    one, other = (probe_peers._buffer(torch.device("cpu")) for _ in range(2))
    wrong, gigabytes, microseconds = probe_peers._way(one[0], other[1])
    assert not wrong
    assert gigabytes > 0
    assert microseconds > 0
    copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda target, source: copy(target, source).add_(target is other))
    assert not probe_peers._way(one[0], one[1])[0]
    other = one[1]
    assert probe_peers._way(one[0], other)[0]


def test_a_torch_that_sees_no_gpu_finds_nothing() -> None:
    assert probe(bridged_3090().gpus) == ()


def test_a_probe_that_breaks_off_before_a_pair_is_not_remembered(tmp_path: Path, seen: Path) -> None:
    """No memory for the second pair: what is known is used, and the next start tries the rest."""
    begin = PROGRAM.replace(
        "    tell(first, second)\n", "    if pair == '0-2': sys.exit('no memory')\n    tell(first, second)\n"
    )
    command = (sys.executable, "-c", begin.replace("ODDITY", "pass").replace("ODD", "()"))
    store = PeerStore(tmp_path, "boot")
    assert len(probed(pcie_3090(3), store, command).peers) == 1
    assert store.read(pcie_3090(3).gpus) is None
    assert len(runs(seen)) == 2
