"""`/v1/chat/completions` as clients see it, with the official client over a socket where the shape matters."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from backend.events import End


def events(text: str) -> list[Any]:
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in text.split("\n\n")[:-2]]


async def test_the_official_client_reads_stream_and_body_alike(endpoint, listen):
    async with (
        listen(endpoint.app) as port,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {
            "model": "fake",
            "messages": [{"role": "user", "content": "Grüße, 漢字 🦙!"}],
            "max_tokens": 30,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert "system\nYou are a helpful AI" in text
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 30
        listed = await client.models.list()
        assert [model.id for model in listed.data] == ["fake"]
        done = await client.completions.create(model="fake", prompt="a b c", max_tokens=3, temperature=0)
        assert done.choices[0].text == "a b c"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{**asked, "max_tokens": 99999})
        assert caught.value.code == "context_length_exceeded"


async def test_stream_chunks_have_the_same_shape(endpoint):
    answer = await endpoint.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer.text)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


async def test_choices_are_independent_and_counted_together(open_endpoint):
    async with open_endpoint() as endpoint:
        whole = (await endpoint.chat(n=3, temperature=1, seed=7, ignore_eos=True)).json()
        texts = [choice["message"]["content"] for choice in whole["choices"]]
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        assert whole["usage"]["completion_tokens"] == 24
        seeds = [request.sampling.seed for request in endpoint.engine.requests]
        assert seeds[0] == 7
        assert len(set(seeds)) == 3
        chunks = events((await endpoint.chat(n=3, temperature=1, seed=7, ignore_eos=True, stream=True)).text)
        streamed = ["", "", ""]
        for chunk in chunks:
            for choice in chunk["choices"]:
                streamed[choice["index"]] += choice["delta"].get("content") or ""
        assert streamed == texts
        ends = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
        assert sorted(ends) == [0, 1, 2]
        first = [chunk["choices"][0]["index"] for chunk in chunks[3:9]]
        assert set(first) == {0, 1, 2}


async def test_without_a_seed_one_is_drawn(endpoint):
    for _ in range(2):
        await endpoint.chat(temperature=1)
    first, second = (request.sampling.seed for request in endpoint.engine.requests)
    assert first != second


async def test_sampling_reaches_the_engine(endpoint):
    await endpoint.chat(
        temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias={"5": -100}, stop_token_ids=[17], min_tokens=2, priority=-3, timeout=9,
    )  # fmt: skip
    request = endpoint.engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, None, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.2, 0.3)
    assert sampling.logit_bias == {5: -100}
    assert set(sampling.stop_tokens) == {17, *endpoint.served.tokenizer.eos}
    assert (sampling.min_tokens, sampling.max_tokens) == (2, 8)
    assert (request.priority, request.timeout) == (-3, 9)
    await endpoint.chat(ignore_eos=True, top_k=3)
    assert endpoint.engine.requests[1].sampling.stop_tokens == ()
    assert endpoint.engine.requests[1].sampling.top_k == 3


async def test_max_tokens_defaults_to_the_rest_of_the_context(endpoint):
    body = (await endpoint.chat(max_tokens=None, n=1)).json()
    sampling = endpoint.engine.requests[0].sampling
    assert sampling.max_tokens == 1024 - body["usage"]["prompt_tokens"]


async def test_the_prompt_is_the_template_s(endpoint):
    answer = await endpoint.post(
        "/v1/chat/completions",
        max_completion_tokens=1,
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": "so"},
        ],
        continue_final_message=True,
    )
    assert answer.status_code == 200
    prompt = endpoint.served.tokenizer.decode(list(endpoint.engine.requests[0].prompt))
    assert prompt == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\nso"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_ends_the_answer_and_the_request(endpoint, stream: bool, include: bool):
    # The fake engine says the prompt again, which begins: <|im_start|>system\nYou are a helpful AI assistant named
    answer = await endpoint.chat(
        max_tokens=200, stop=["pful AI ass", "never"], include_stop_str_in_output=include, stream=stream
    )
    text = "system\nYou are a hel" + ("pful AI ass" if include else "")
    if stream:
        chunks = events(answer.text)
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        assert answer.json()["choices"][0]["message"]["content"] == text
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        assert answer.json()["usage"]["completion_tokens"] < 15
    assert endpoint.engine.cancelled == [endpoint.engine.requests[0].id]


async def test_min_tokens_puts_stop_strings_off(endpoint):
    answer = await endpoint.chat(max_tokens=12, min_tokens=12, stop="You")
    assert "You are" in answer.json()["choices"][0]["message"]["content"]


async def test_an_end_token_is_counted_and_not_shown(open_endpoint):
    async with open_endpoint() as endpoint:
        end = endpoint.served.tokenizer.eos[0]
        words = endpoint.served.tokenizer.encode_prompt("Well said")
        endpoint.engine.choose = lambda request, index: [*words, end][index]
        body = (await endpoint.chat(logprobs=True)).json()
        choice = body["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Well said", "stop")
        assert body["usage"]["completion_tokens"] == len(words) + 1
        assert len(choice["logprobs"]["content"]) == len(words)


async def test_logprobs_have_entries_and_alternatives(endpoint):
    asked = {"logprobs": True, "top_logprobs": 2}
    content = (await endpoint.chat(**asked)).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    assert content[1]["token"] == "system"
    assert bytes(content[1]["bytes"]) == b"system"
    assert content[1]["logprob"] == -0.5
    assert len(content[1]["top_logprobs"]) == 2
    chunks = events((await endpoint.chat(**asked, stream=True)).text)
    streamed = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        if choice.get("logprobs")
        for entry in choice["logprobs"]["content"]
    ]
    assert streamed == content


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (None, 500, "engine_error"),
        (End("x", "deadline"), 504, "timeout"),
        (End("x", "cancelled"), 503, "engine_unavailable"),
    ],
)
async def test_an_error_of_the_engine_is_a_status_or_one_last_event(open_endpoint, end, status: int, code: str):
    async with open_endpoint(fail_after=3, end=end) as endpoint:
        answer = await endpoint.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        streamed = await endpoint.chat(stream=True)
        assert streamed.status_code == 200
        lines = streamed.text.strip().split("\n\n")
        assert json.loads(lines[-1][6:])["error"]["code"] == code
        assert sum("error" in json.loads(line[6:]) for line in lines) == 1
    async with open_endpoint(fail_after=0, end=end) as endpoint:
        assert (await endpoint.chat(stream=True)).status_code == status


@pytest.mark.parametrize("state", ["draining", "failed"])
async def test_an_engine_that_does_not_serve_is_503(open_endpoint, state: str):
    for context in (1024, None):
        async with open_endpoint(state=state, max_context=context, error="the GPU is gone") as endpoint:
            for stream in (False, True):
                answer = await endpoint.chat(stream=stream)
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "engine_unavailable"
                assert "retry-after" in answer.headers
