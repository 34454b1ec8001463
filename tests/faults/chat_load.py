"""A load of chats that return: each turn sends all before it again, and some answers are asked for anew."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files

import httpx
import openai
from openai.types.chat import ChatCompletionAssistantMessageParam, ChatCompletionUserMessageParam

# Number of the chat, of the turn, and of the time that this answer is asked for.
Turn = tuple[int, int, int]
Message = ChatCompletionUserMessageParam | ChatCompletionAssistantMessageParam


class ChatLoad:
    """Chats with fixed questions; answers are greedy, so the same server gives the same chat.

    Each chat begins with a passage of its own, so that chats share no page, and goes on with short questions.
    """

    def __init__(self, chats: int, turns: int, passage_words: int, answer_tokens: int, seed: int) -> None:
        self.chats, self.turns, self._answer_tokens = chats, turns, answer_tokens
        self._lengths = [0] * chats
        words = files("assets").joinpath("text/alice29.txt").read_text().split()
        choose = random.Random(seed)
        starts = choose.sample(range(len(words) - passage_words), chats)
        self._openings = [" ".join(words[start : start + passage_words]) for start in starts]
        self._questions = [
            [f"What happens to {' '.join(words[at : at + 12])}?" for at in choose.sample(range(len(words) - 12), turns)]
            for _ in range(chats)
        ]

    @property
    def tokens(self) -> int:
        """How many the chats have in all, by the last run, at their longest."""
        return sum(self._lengths)

    async def run(
        self,
        url: str,
        *,
        concurrency: int,
        again: int | None = None,
        pause: float = 0.0,
        history: Mapping[Turn, str] | None = None,
        patience: Callable[[], bool] = lambda: False,
    ) -> dict[Turn, str]:
        """All turns, round by round over all chats: the answers. Between rounds nobody asks for `pause` seconds.

        again: an answer is asked for a second time when so many further chats have had their turn. history: the answers
        that chats go on from, where not their own: so one that differs does not change what follows. patience: asked
        after a request failed; True tries it again. Raises the failure otherwise.
        """
        answers: dict[Turn, str] = {}
        places = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:

            async def one(chat: int, turn: int, time: int) -> None:
                async with places:
                    messages = self._messages(chat, turn, answers if history is None else history)
                    answers[chat, turn, time], length = await self._answer(client, messages, patience)
                    self._lengths[chat] = max(length, self._lengths[chat])

            for turn in range(self.turns):
                await asyncio.gather(*(one(*turn) for turn in self._round(turn, again)))
                await asyncio.sleep(pause)
        return answers

    def _round(self, turn: int, again: int | None) -> Iterator[Turn]:
        for chat in range(self.chats):
            yield chat, turn, 0
            if again is not None and chat >= again:
                yield chat - again, turn, 1

    async def _answer(
        self, client: openai.AsyncOpenAI, messages: list[Message], patience: Callable[[], bool]
    ) -> tuple[str, int]:
        """The answer, and the tokens of the chat with it."""
        while True:
            try:
                stream = await client.chat.completions.create(
                    model="starter",
                    messages=messages,
                    temperature=0,
                    max_completion_tokens=self._answer_tokens,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                chunks = [chunk async for chunk in stream]
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
                return text, max(chunk.usage.total_tokens for chunk in chunks if chunk.usage)
            except (openai.APIError, httpx.HTTPError):
                if not patience():
                    raise
                await asyncio.sleep(0.5)

    def _messages(self, chat: int, turn: int, answers: Mapping[Turn, str]) -> list[Message]:
        messages: list[Message] = []
        for number in range(turn + 1):
            question = self._questions[chat][number]
            text = f"{self._openings[chat]}\n\n{question}" if number == 0 else question
            messages.append({"role": "user", "content": text})
            if number < turn:
                messages.append({"role": "assistant", "content": answers[chat, number, 0]})
        return messages
