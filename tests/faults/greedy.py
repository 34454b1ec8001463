"""Greedy: answers that are being given while something breaks, when each token came, and what was lost or changed."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import openai

from tests.end_to_end.prompts import PROMPTS

# An answer that takes longer than this is lost.
ANSWER_SECONDS = 120.0


@dataclass
class Answers:
    """Several at once. `texts` has an entry for each that ended, `failures` one for each that was lost."""

    times: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    async def tokens(self, count: int) -> None:
        """Returns when so many have come over all."""
        while len(self.times) < count:  # noqa: ASYNC110 - a token is not worth an event
            await asyncio.sleep(0.005)

    def recovery(self, struck: float) -> float:
        """Seconds from then on to the first token after the longest pause that followed."""
        after = [struck, *(moment for moment in self.times if moment > struck)]
        gaps = [(later - earlier, later) for earlier, later in itertools.pairwise(after)]
        return max(gaps)[1] - struck if gaps else 0.0

    def changed(self, expected: dict[str, str]) -> int:
        """How many that ended differ from what they are without any fault."""
        return sum(text != expected[prompt] for prompt, text in self.texts.items())


async def answer(client: openai.AsyncOpenAI, prompt: str, tokens: int, into: Answers) -> None:
    """One greedy answer of exactly so many tokens, streamed."""
    pieces = list[str]()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            stream = await client.chat.completions.create(
                model="starter", messages=[{"role": "user", "content": prompt}], temperature=0,
                max_completion_tokens=tokens, stream=True, extra_body={"ignore_eos": True},
            )  # fmt: skip
            async for chunk in stream:
                if chunk.choices:
                    pieces.append(chunk.choices[0].delta.content or "")
                    into.times.append(time.monotonic())
    except (openai.OpenAIError, TimeoutError) as error:
        into.failures.append(f"{type(error).__name__}: {error}")
    else:
        into.texts[prompt] = "".join(pieces)


def begin(client: openai.AsyncOpenAI, count: int, tokens: int) -> tuple[Answers, asyncio.Task[None]]:
    """So many answers at once, and a task that ends with the last one."""
    answers = Answers()

    async def all_of_them() -> None:
        await asyncio.gather(*(answer(client, prompt, tokens, answers) for prompt in PROMPTS[:count]))

    return answers, asyncio.create_task(all_of_them())


def client_at(url: str) -> openai.AsyncOpenAI:
    """Without the library's own second tries, which would hide a loss."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=ANSWER_SECONDS, max_retries=0)
