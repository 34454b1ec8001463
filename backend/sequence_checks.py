"""What must hold between steps of the scheduler's sequences and queues, as assertions for tests."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

from backend.sequence import Sequence, Status


def check_sequences(queues: Mapping[Status, Many[Sequence]], by_number: Mapping[int, Sequence], most: int) -> None:
    """Raises AssertionError where queues and progress do not fit together; `most` sequences may be admitted."""
    running, waiting, fetching = queues[Status.RUNNING], queues[Status.WAITING], queues[Status.FETCHING]
    for status, queue in queues.items():
        assert all(one.status is status for one in queue), "a sequence stands in the wrong queue"
    for queue in (running, waiting):
        assert [one.key for one in queue] == sorted(one.key for one in queue), "a queue is out of order"
    assert len(running) + len(fetching) <= most, "more sequences run than may"
    assert all(not any(table.ids for table in one.tables) for one in waiting), "a waiting one has pages"
    assert all(one.pages.fetching == 0 for one in running), "one runs whose pages have not arrived"
    for one in by_number.values():
        assert 0 <= one.computed <= one.planned <= one.length, "progress is out of range"
        assert one.computed < one.length, "progress is out of range"
        assert one.lost < one.length, "more was lost than had been computed"
        assert one.status is Status.RUNNING or one.planned == one.computed, "a sequence is in flight without pages"
    queued = {one.number for queue in queues.values() for one in queue}
    assert queued == by_number.keys(), "a sequence is lost"
