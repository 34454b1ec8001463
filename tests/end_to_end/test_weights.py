"""Quantized weights on the real model: a server started with them chats, and tells how few bytes it holds."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest

from backend.library.files import ModelFiles
from tests.fakes.processes import running_server

pytestmark = pytest.mark.timeout(240)

# Of the 269 MB in bfloat16, 57 MB are the embedding, which is the output layer too and keeps its type.
MOST = {"int8": 166 << 20, "nf4": 112 << 20}
LEAST = {"int8": 150 << 20, "nf4": 100 << 20}


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_a_server_with_quantized_weights_answers(weights: str, starter: ModelFiles, tmp_path: Path) -> None:
    options = ("--dtype", "bfloat16", "--kv-pool", "256MiB", "--weights", weights)
    with running_server(tmp_path, *options) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0)
        answer = client.chat.completions.create(
            model="starter",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_completion_tokens=24,
        )
        assert "Paris" in (answer.choices[0].message.content or "")
        (engine,) = httpx.get(f"{server.url}/health").json()["engines"]
        assert LEAST[weights] < sum(rank["weights_bytes"] for rank in engine["ranks"]) < MOST[weights]
