"""The second half of the 2,000 seeds; and the simulator itself: it replays, and notices when a check is dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline_ext.link_protocol import Frame, Keepalive
from pipeline_ext.simulator.__main__ import main, run_seed
from pipeline_ext.simulator.scenario import make_scenario
from pipeline_ext.simulator.seed_run import SeedRun
from pipeline_ext.stage_machine import StageMachine
from tests.pipeline_ext.simulator.seeds import failures


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(1000, 2000, 250))
def test_faults_change_no_answer(first: int):
    assert failures(range(first, first + 250)) == []


class WithoutEpochs(StageMachine):
    """Takes frames of any epoch for its own."""

    def frame(self, frame: Frame) -> None:
        if not isinstance(frame, Keepalive) and frame.epoch < self.epoch:
            frame = replace(frame, epoch=self.epoch)
        super().frame(frame)


@pytest.mark.timeout(600)
def test_a_dropped_epoch_check_is_caught():
    caught = next((told for seed in range(2000) if (told := run_seed(seed, WithoutEpochs)) is not None), None)
    assert caught is not None
    assert "--verbose" in caught


def test_a_seed_runs_the_same_way_again():
    runs = [SeedRun(make_scenario(135), StageMachine) for _ in range(2)]
    for run in runs:
        run.run()
    assert runs[0].log == runs[1].log
    assert runs[0].told == runs[1].told


def test_the_command_tells_how_many_passed(capsys: pytest.CaptureFixture[str]):
    assert main(["--seeds", "3..5"]) == 0
    assert "3 passed, 0 failed" in capsys.readouterr().out
