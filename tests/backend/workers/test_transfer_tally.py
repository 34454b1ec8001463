"""A transfer's end over several ranks."""

from __future__ import annotations

import pytest

from backend.workers.transfer_tally import TransferTally
from kvcache.transfer import Place, Tier, Transfer, TransferDone


def transfer(number: int) -> Transfer:
    return Transfer(number, bytes(32), Place(Tier.DEVICE), Place(Tier.HOST))


def test_bytes_add_up_and_the_slowest_counts() -> None:
    tally = TransferTally(2)
    tally.begin([transfer(0), transfer(1)])
    tally.report([TransferDone(0, True, 10, 1.0), TransferDone(1, True, 5, 1.0)])
    assert tally.take() == []
    tally.report([TransferDone(0, True, 20, 0.5)])
    assert tally.take() == [TransferDone(0, True, 30, 1.0)]
    assert tally.running
    tally.report([TransferDone(1, False, 0, 0.0)])
    assert tally.take() == [TransferDone(1, False, 0, 0.0)]
    assert not tally.running


def test_an_end_of_what_does_not_run_is_a_bug() -> None:
    with pytest.raises(KeyError):
        TransferTally(1).report([TransferDone(0, True, 1, 1.0)])
