"""Runs workloads against a server: prompts made before the clock starts, a closed loop, figures after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import perf_counter

from app.load.figures import Figures, figures
from app.load.prompts import Counter, PromptMaker, bundled_words
from app.load.server import Answer, LoadServer
from app.load.workload import WARM_UP, Workload

Runs = dict[str, list[Figures]]


async def run_load(server: LoadServer, workload: Workload, prompts: list[str]) -> Figures:
    """Sends the prompts, `workload.concurrency` at a time."""
    answers: list[Answer | None] = [None] * len(prompts)
    todo = iter(range(len(prompts)))

    async def worker() -> None:
        for number in todo:
            answers[number] = await server.ask(prompts[number], workload.output_tokens)

    begin = perf_counter()
    await asyncio.gather(*(worker() for _ in range(workload.concurrency)))
    wall = perf_counter() - begin
    return figures([answer for answer in answers if answer is not None], workload.output_tokens, wall)


async def run_once(
    server: LoadServer, workload: Workload, seed: int, words: list[str], count: Counter | None
) -> dict[str, Figures]:
    """One run under the workload's name; one that repeats gives a run `…_cold` and a run `…_warm`."""
    # The seed covers the shape too: equal seeds must not make two shapes start at the same places of the
    # text.
    shape = f"{seed}/{workload.requests}/{workload.prompt_tokens}/{workload.shared_prefix_tokens}"
    prompts = await PromptMaker(words, shape, count).make(workload)
    first = await run_load(server, workload, prompts)
    if not workload.repeat:
        return {workload.name: first}
    return {
        f"{workload.name}_cold": first,
        f"{workload.name}_warm": await run_load(server, workload, prompts),
    }


async def run_workloads(
    server: LoadServer,
    workloads: Iterable[Workload],
    *,
    runs: int,
    seed: int,
    warm_up: bool,
    count: Counter | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Runs:
    """`runs` runs of each workload, each with prompts of its own: run i takes the seed `seed + i`.

    `count` counts tokens; None asks the server's /tokenize, and guesses from words where it has none.

    Raises:
        ServerUnreachableError, ServerAnswerError: the server does not answer a first short request.
    """
    words = bundled_words()
    await server.prepare(await PromptMaker(words, f"probe-{seed}", None).grow("", 24))
    count = count or await server.counter()
    if count is None:
        progress("the server has no /tokenize: prompt lengths are guessed from words")
    results: Runs = {}
    for offset, workload in enumerate(WARM_UP if warm_up else ()):
        progress("warm-up")
        await run_once(server, workload, seed + 9000 + offset, words, count)
    for workload in workloads:
        for number in range(runs):
            progress(f"{workload.name} {number + 1}/{runs}")
            for name, run in (await run_once(server, workload, seed + number, words, count)).items():
                results.setdefault(name, []).append(run)
    return results
