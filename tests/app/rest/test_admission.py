"""What is refused, at every door that generates: clearly, in OpenAI's shape, and fast."""

from __future__ import annotations

import time
from typing import Any

import pytest

from app.rest.settings import RestSettings

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"prompt": "Hi"}
DOORS = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
EVERY_DOOR = [*DOORS, ("/tokenize", CHAT), ("/tokenize", COMPLETION), ("/detokenize", {"tokens": [1]})]


def check_refused(answer: Any, param: str | None = None, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert param in (str(error["param"]).split(".")[0], *error["message"].replace(":", " ").split()), error
    return error["message"]


@pytest.mark.parametrize(("path", "body"), DOORS)
@pytest.mark.parametrize(
    "field",
    [
        {"n": 0}, {"n": 2**70}, {"n": 1024}, {"max_tokens": 0}, {"max_tokens": 2**60}, {"temperature": -1},
        {"temperature": 1e308}, {"top_p": 0}, {"top_k": -2}, {"min_p": 2}, {"repetition_penalty": 0},
        {"presence_penalty": 3}, {"frequency_penalty": -3}, {"logit_bias": {"x": 1}}, {"logit_bias": {"1": 101}},
        {"logit_bias": {"999999999": 1}}, {"seed": 2**64}, {"stop": ""}, {"stop": ["x"] * 17}, {"stop": "x" * 1025},
        {"stop_token_ids": [-1]}, {"stop_token_ids": [2**31 - 1]}, {"min_tokens": -1}, {"priority": 2**40},
        {"timeout": 0}, {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}},
        {"best_of": 2}, {"suffix": "x"}, {"echo": True}, {"unheard_of": 1}, {"n": True}, {"chat_template": "{{ 1 }}"},
        {"user": "x" * 1000}, {"logprobs": 21}, {"tool_choice": "required"}, {"top_logprobs": 21},
    ],
)  # fmt: skip
async def test_bad_values_are_refused_by_name(endpoint, path: str, body: dict[str, Any], field: dict[str, Any]):
    if (path, *field) in (("/v1/chat/completions", "logprobs"),):
        field = {"logprobs": "many"}
    check_refused(await endpoint.post(path, **body, **field), next(iter(field)))
    assert endpoint.engine.requests == []


@pytest.mark.parametrize(("path", "body"), DOORS)
async def test_fields_without_effect_are_accepted(endpoint, path: str, body: dict[str, Any]):
    answer = await endpoint.post(
        path, **body, max_tokens=1, user="me", metadata={"a": "b"}, store=True, service_tier="auto",
        parallel_tool_calls=True, tool_choice="none", tools=[{"type": "function"}],
        response_format={"type": "text"}, best_of=1, suffix=None, functions=None, modalities=["text"],
    )  # fmt: skip
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "body"), EVERY_DOOR)
async def test_another_model_is_404(endpoint, path: str, body: dict[str, Any]):
    answer = await endpoint.http.post(path, json={**body, "model": "other"})
    assert "'other'" in check_refused(answer, status=404)


@pytest.mark.parametrize(("path", "body"), EVERY_DOOR)
async def test_unknown_fields_are_named(endpoint, path: str, body: dict[str, Any]):
    assert "temprature" in check_refused(await endpoint.post(path, **body, temprature=1), "temprature")


@pytest.mark.parametrize(("path", "body"), DOORS)
async def test_overflow_names_both_numbers(endpoint, path: str, body: dict[str, Any]):
    counted = (await endpoint.post("/tokenize", **body)).json()["count"]
    answer = await endpoint.post(path, **body, max_tokens=1024)
    message = check_refused(answer)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "1024 tokens" in message
    assert str(counted) in message
    assert (await endpoint.post(path, **body, max_tokens=1024 - counted)).status_code == 200


@pytest.mark.parametrize("key", ["prompt", "messages"])
async def test_a_huge_prompt_is_refused_in_time(endpoint, key: str):
    text = "all work and no play " * 190_000
    await endpoint.chat()
    body = {"prompt": text} if key == "prompt" else {"messages": [{"role": "user", "content": text}]}
    began = time.process_time()
    answer = await endpoint.post("/v1/completions" if key == "prompt" else "/v1/chat/completions", **body)
    assert time.process_time() - began < 0.5
    assert "1024" in check_refused(answer)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_answers_of_one_request_are_capped(open_endpoint):
    async with open_endpoint(RestSettings(answers=6, output_tokens=100)) as endpoint:
        check_refused(await endpoint.complete(["a", "b"], n=4), "n")
        assert "100 a request" in check_refused(await endpoint.complete(["a", "b"], n=3, max_tokens=17))
        assert (await endpoint.complete(["a", "b"], n=3, max_tokens=16)).status_code == 200


async def test_an_empty_prompt_is_refused(endpoint):
    check_refused(await endpoint.complete(""), "prompt")
    check_refused(await endpoint.complete([]), "prompt")
    check_refused(await endpoint.complete([[]]), "prompt")


async def test_token_ids_outside_the_vocabulary_are_refused(endpoint):
    size = endpoint.served.tokenizer.vocabulary
    assert (await endpoint.complete([size - 1])).status_code == 200
    check_refused(await endpoint.complete([size]), "prompt")
    check_refused(await endpoint.post("/detokenize", tokens=[size]), "tokens")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "tool", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "\ud800"}],
        "Hello",
    ],
)
async def test_messages_we_cannot_serve(endpoint, messages: Any):
    import json

    body = json.dumps({"model": "fake", "messages": messages}).encode()
    for path in ("/v1/chat/completions", "/tokenize"):
        check_refused(await endpoint.http.post(path, content=body, headers={"content-type": "application/json"}))


async def test_reasoning_effort_needs_a_template_that_knows_it(endpoint):
    check_refused(await endpoint.chat(reasoning_effort="high"), "reasoning_effort")


async def test_template_variables_are_an_allow_list(endpoint):
    assert (await endpoint.chat(chat_template_kwargs={"enable_thinking": False})).status_code == 200
    check_refused(await endpoint.chat(chat_template_kwargs={"messages": "x"}), "chat_template_kwargs")


async def test_too_many_at_once_are_refused_with_429(open_endpoint):
    import asyncio

    waiting = asyncio.Event()
    async with open_endpoint(RestSettings(active_answers=2), waiting=waiting) as endpoint:
        running = [asyncio.ensure_future(endpoint.chat()) for _ in range(2)]
        while len(endpoint.engine.requests) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        answer = await endpoint.chat()
        check_refused(answer, status=429)
        assert "retry-after" in answer.headers
        waiting.set()
        assert [(await each).status_code for each in running] == [200, 200]
        assert (await endpoint.chat()).status_code == 200
