"""Program: kernel calls worked out beforehand and run in a row, without the interpreter between them."""

from __future__ import annotations

from typing import Any

import numpy
from numpy.typing import NDArray

from quant.cpu.team import Team


class Program:
    """A fixed list of jobs whose arguments change from run to run.

    Attributes:
        words: [jobs, width] int64, each job's arguments as its item function expects them.
        items: [jobs] int64, how many items each job has this time.
    """

    def __init__(self, team: Team, functions: list[Any], width: int) -> None:
        """functions: each job's item function, a numba cfunc."""
        self._team = team
        self._functions = numpy.array([function.address for function in functions], numpy.int64)
        self.words: NDArray[numpy.int64] = numpy.zeros((len(functions), width), numpy.int64)
        self.items: NDArray[numpy.int64] = numpy.zeros(len(functions), numpy.int64)
        self._places = (self._functions.ctypes.data, self.words.ctypes.data, width * 8, self.items.ctypes.data)

    def run(self, first: int = 0, behind: int | None = None) -> None:
        """Runs the jobs from `first` to before `behind` in order, all unless told; the caller keeps every address in
        `words` alive meanwhile."""
        functions, words, stride, items = self._places
        count = (len(self._functions) if behind is None else behind) - first
        self._team.run_all(functions + 8 * first, words + stride * first, stride, items + 8 * first, count)
