"""What the real model answers by transformers' own means, and how the tests ask a server for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.library.files import ModelFiles
from tests.end_to_end.prompts import PROMPTS
from tests.fakes.processes import RunningServer

ANSWER_TOKENS = 24
END = 2  # <|im_end|>


@dataclass(frozen=True)
class Expected:
    """transformers' greedy answer to one prompt."""

    tokens: list[int]
    text: str


def greedy_answers(starter: ModelFiles) -> list[Expected]:
    """Greedy answers of transformers' own model, float32, its own GGUF reader and chat template."""
    file = Path(starter.weights[0])
    tokenizer = AutoTokenizer.from_pretrained(starter.folder)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.eval().generate(
            **inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=END, pad_token_id=END
        )
    answers = [_to_end(row) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
    return [Expected(tokens, tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in answers]


def _to_end(row: list[int]) -> list[int]:
    """An answer with its end token, without the padding after it."""
    return row[: row.index(END) + 1] if END in row else row


def client_of(server: RunningServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0)


async def streamed(client: openai.AsyncOpenAI, prompt: str, tokens: int = ANSWER_TOKENS) -> str:
    """A chat's greedy answer, put together from its stream."""
    stream = await client.chat.completions.create(
        model="starter",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_completion_tokens=tokens,
        stream=True,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
