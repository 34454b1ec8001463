"""Forecast: how long the steps of prompts and answers take on a Work, with one engine. Pure."""

from __future__ import annotations

import math

from backend.planner.timing.communication import send_seconds
from backend.planner.timing.efficiency import Outlook
from backend.planner.timing.pace import pace
from backend.planner.timing.step import Load, Setting, StepTime, stage_time
from backend.planner.timing.totals import stage_totals
from backend.planner.timing.work import Work

# What each further stage that takes turns adds: groups are unlike each other, and wait (TensorRT-LLM's throughput of
# 70B on 2, 4 and 8 stages of RTX PRO 6000: 0.9, 0.7 and 0.5 to 0.6 of as many times one's).
_STALLED = 0.06


class Forecast:
    """Sums a Work up once, and answers for any number of sequences and positions. Seconds, and tokens a second."""

    def __init__(self, work: Work, engine: str = "shardwise") -> None:
        self.work = work
        self.pace = pace(engine, work.stages[0].ranks[0].device.family)
        self._stages = tuple(stage_totals(stage) for stage in work.stages)

    def first_token(self, prompt: int, outlook: Outlook = "likely") -> float:
        """Until a prompt is computed, nothing else running: in steps that follow each other through the stages.

        With m steps through p stages, p - 1 of m + p - 1 turns are bubbles.
        """
        steps = max(1, math.ceil(prompt / self.pace.step_tokens))
        times = self._stage_seconds(Load(0.0, 0.0, prompt / steps, prompt / 2, 1 / steps), outlook)
        return sum(times) + self._latency + (steps - 1) * max(times) + steps * self.pace.step

    def token(self, sequences: int, positions: float, outlook: Outlook = "likely") -> float:
        """From token to token of each of so many sequences of one replica, which have so many positions.

        Stages take turns with as many groups of sequences as there are stages, or sequences.
        """
        groups = min(len(self._stages), max(1, sequences))
        return self._turns(_decoding(sequences / groups, positions), groups, outlook)

    def throughput(self, sequences: int, prompt: int, answer: int, outlook: Outlook = "likely") -> float:
        """Output tokens a second over all replicas, with so many sequences of each always there.

        Prompts and answers take turns on the devices: a request takes its prompt's part of full steps of prompts, and
        its part of the steps in which all sequences get a token.
        """
        stages, budget = len(self._stages), self.pace.step_tokens
        prompts = self._turns(Load(0.0, 0.0, budget, prompt / 2, budget / prompt), stages, outlook) / stages
        request = prompts * prompt / budget + answer * self.token(sequences, prompt + answer / 2, outlook) / sequences
        return self.work.replicas * answer / request

    def step(self, sequences: int, positions: float) -> StepTime:
        """What a step in which all sequences get a token waits for, over all stages."""
        groups = min(len(self._stages), max(1, sequences))
        load = _decoding(sequences / groups, positions)
        sent = sum(self._sent(load, number) for number in range(len(self._stages))) + self._latency
        whole = StepTime(0.0, 0.0, sent, self.pace.step + self.pace.sequence * load.sequences)
        for stage in self._stages:
            whole = whole + stage_time(stage, load, self._setting("likely"))
        return whole

    def _turns(self, load: Load, groups: int, outlook: Outlook) -> float:
        """Until every one of so many groups has passed all stages, which take turns with them."""
        times = self._stage_seconds(load, outlook)
        stalled = 1 + _STALLED * (groups - 1)
        overhead = groups * (self.pace.step + self.pace.sequence * load.sequences)
        return max(sum(times) + self._latency, groups * max(times)) * stalled + overhead

    def _stage_seconds(self, load: Load, outlook: Outlook) -> list[float]:
        """Each stage's, with what handing on to the next takes."""
        setting = self._setting(outlook)
        return [
            stage_time(stage, load, setting).seconds + self._sent(load, number)
            for number, stage in enumerate(self._stages)
        ]

    def _sent(self, load: Load, stage: int) -> float:
        """What handing on takes of a stage's time; the last one hands nothing on."""
        if stage == len(self._stages) - 1:
            return 0.0
        count = int(load.rows * self.work.hidden * self.work.element)
        if self.work.ways:
            return count / (self.work.ways[stage].reached * 1e9)
        return send_seconds(self.work.between, count)

    @property
    def _latency(self) -> float:
        """What a batch is under way for while no stage works on it."""
        return sum(way.latency for way in self.work.ways) + self.work.returned

    def _setting(self, outlook: Outlook) -> Setting:
        work = self.work
        return Setting(self.pace, work.hidden * work.element, work.number, work.experts, outlook)


def _decoding(sequences: float, positions: float) -> Load:
    return Load(sequences, positions, sampled=sequences)
