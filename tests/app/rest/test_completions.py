"""`/v1/completions`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one two", ["one two one"]),
        (["one two", "three"], ["one two one", "threethree"]),
        ("ids", ["one two one"]),
        ("lists", ["one two one", "threethree"]),
    ],
)
async def test_prompts_of_each_kind(endpoint, prompt, texts: list[str], stream: bool):
    encode = endpoint.served.tokenizer.encode_prompt
    prompt = {"ids": encode("one two"), "lists": [encode("one two"), encode("three")]}.get(str(prompt), prompt)
    tokens = [2 + len(encode(" one")) if text.startswith("one") else 2 for text in texts]
    answer = await endpoint.complete(prompt, max_tokens=max(tokens), stream=stream)
    assert answer.status_code == 200
    found = [""] * len(texts)
    if stream:
        for line in answer.text.split("\n\n")[:-2]:
            for choice in json.loads(line[6:])["choices"]:
                found[choice["index"]] += choice["text"]
    else:
        for choice in answer.json()["choices"]:
            found[choice["index"]] = choice["text"]
    assert all(
        text.replace(" ", "").startswith(want.replace(" ", "")[:6]) for text, want in zip(found, texts, strict=True)
    )
    assert len(endpoint.engine.requests) == len(texts)


async def test_n_and_prompts_multiply(endpoint):
    body = (await endpoint.complete(["a b", "c"], n=2, max_tokens=2)).json()
    assert [choice["text"] for choice in body["choices"]] == ["a b", "a b", "cc", "cc"]
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["prompt_tokens"] == 3


async def test_logprobs_are_parallel_lists(endpoint):
    asked = {"max_tokens": 3, "logprobs": 2}
    whole = (await endpoint.complete("a b c", **asked)).json()["choices"][0]
    lists = whole["logprobs"]
    assert lists["tokens"] == ["a", " b", " c"]
    assert lists["token_logprobs"] == [-0.5] * 3
    assert lists["text_offset"] == [0, 1, 3]
    assert [len(top) for top in lists["top_logprobs"]] == [2, 2, 2]
    streamed = await endpoint.complete("a b c", stream=True, **asked)
    merged = {name: [] for name in lists}
    for line in streamed.text.split("\n\n")[:-2]:
        for choice in json.loads(line[6:])["choices"]:
            for name, values in (choice["logprobs"] or {}).items():
                merged[name] += values
    assert merged == lists


async def test_usage_comes_last_when_asked_for(endpoint):
    answer = await endpoint.complete(stream=True, stream_options={"include_usage": True})
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_max_tokens_defaults_to_sixteen(endpoint):
    await endpoint.complete(max_tokens=None)
    assert endpoint.engine.requests[0].sampling.max_tokens == 16


async def test_special_tokens_in_a_prompt_count_on_request_only(endpoint):
    end = endpoint.served.tokenizer.special["<|im_end|>"]
    await endpoint.complete("a<|im_end|>")
    await endpoint.complete("a<|im_end|>", parse_special=True)
    assert end not in endpoint.engine.requests[0].prompt
    assert end in endpoint.engine.requests[1].prompt


async def test_tokenize_and_detokenize_are_inverse(endpoint):
    text = "Grüße, 漢字 🦙!"
    tokens = (await endpoint.post("/tokenize", prompt=text, return_token_strs=True)).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 1024
    back = await endpoint.post("/detokenize", tokens=tokens["tokens"])
    assert back.json() == {"prompt": text}


async def test_tokenize_of_messages_is_the_chat_s_prompt(endpoint):
    messages = [{"role": "user", "content": "Hello"}]
    counted = (await endpoint.post("/tokenize", messages=messages)).json()
    await endpoint.post("/v1/chat/completions", messages=messages, max_tokens=1)
    assert tuple(counted["tokens"]) == endpoint.engine.requests[0].prompt
