"""Request bodies of the endpoint: every number, list and text has its bound, unknown fields are refused by name.

Bounds that depend on the model or on other fields are `admission`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

MAX_TEXT = 8 * 1024 * 1024
MAX_TOKENS = 16 * 1024 * 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_SEED = 2**63 - 1

TokenId = Annotated[int, Field(strict=True, ge=0, le=MAX_TOKEN_ID)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
ShortText = Annotated[str, Field(max_length=512)]
ModelName = Annotated[str, Field(min_length=1, max_length=4096)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
TokenIds = Annotated[list[TokenId], Field(max_length=2 * 1024 * 1024)]
Bias = Annotated[float, Field(strict=True, ge=-100, le=100)]
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$", max_length=10)]
VariableName = Annotated[str, Field(min_length=1, max_length=64)]
VariableValue = StrictBool | Annotated[int, Field(strict=True, ge=-MAX_TOKENS, le=MAX_TOKENS)] | ShortText | None

# Fields of the APIs that would change the answer and are not served; each with the values that ask for nothing.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "function_call": ("none",),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": ("medium",),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "prompt_logprobs": (0,),
    "documents": ([],),
    "chat_template": (),
}


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_served(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = dict(data)
        for name, harmless in _NOT_SERVED.items():
            if name not in kept or name in cls.model_fields:
                continue
            value = kept.pop(name)
            allowed = value is None or any(type(value) is type(each) and value == each for each in harmless)
            # Tools that may not be called change nothing.
            if name in ("tools", "functions"):
                allowed = allowed or data.get("tool_choice", data.get("function_call")) == "none"
            if name == "best_of":
                allowed = allowed or value == data.get("n", 1)
            if not allowed:
                raise ValueError(f"{name} is not supported by this server")
        return kept


class TextPart(Body):
    """A part of a message's content. Only text is served."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn. `reasoning` in history is handed to the template; `name` and `refusal` have no effect."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=4096)] | None = None
    name: ShortText | None = None
    refusal: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_tools_in_history(cls, data: Any) -> Any:
        if isinstance(data, dict):
            data = dict(data)
            for name in ("tool_calls", "function_call", "audio", "annotations", "tool_call_id"):
                if data.pop(name, None):
                    raise ValueError(f"{name} in messages is not supported by this server")
        return data

    @model_validator(mode="after")
    def _some_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it: texts joined, nothing that is not set."""
        content = self.content or ""
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        found: dict[str, Any] = {"role": self.role, "content": content}
        reasoning = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        if reasoning is not None:
            found |= {"reasoning_content": reasoning, "thinking": reasoning}
        return found


class StreamOptions(Body):
    """`include_usage`: a last chunk with the counts. `include_obfuscation` has no effect."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None
    continuous_usage_stats: Literal[False] | None = None


class NoEffect(Body):
    """Fields that do not change the answer's text: accepted, and not looked at."""

    user: ShortText | None = None
    metadata: Annotated[dict[ShortText, ShortText], Field(max_length=64)] | None = None
    store: StrictBool | None = None
    service_tier: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: ShortText | None = None
    parallel_tool_calls: StrictBool | None = None


class Generation(NoEffect):
    """What both kinds of completion take."""

    model: ModelName
    n: Annotated[int, Field(strict=True, ge=1, le=1024)] | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(strict=True, gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    include_stop_str_in_output: StrictBool = False
    ignore_eos: StrictBool = False
    min_tokens: Annotated[int, Field(strict=True, ge=0, le=MAX_TOKENS)] | None = None
    skip_special_tokens: StrictBool = True
    priority: Annotated[int, Field(strict=True, ge=-(2**31), le=2**31 - 1)] = 0
    timeout: Annotated[float, Field(strict=True, gt=0, le=86400)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=8192)]
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    add_generation_prompt: StrictBool = True
    continue_final_message: StrictBool = False
    chat_template_kwargs: Annotated[dict[VariableName, VariableValue], Field(max_length=16)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ: set one of them")
        _check_continuation(self.messages, self.continue_final_message)
        return self


class CompletionRequest(Generation):
    """`POST /v1/completions`. `parse_special`: special tokens written in the prompt count as such."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=1024)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=2 * 1024 * 1024)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1, max_length=2 * 1024 * 1024)]],
            Field(min_length=1, max_length=1024),
        ]
    )
    logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    add_special_tokens: StrictBool = True
    parse_special: StrictBool = False

    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt: text, or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]


class TokenizeRequest(Body):
    """`POST /tokenize`: of a prompt, or of messages through the chat template."""

    model: ModelName | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=8192)] | None = None
    add_special_tokens: StrictBool = True
    parse_special: StrictBool = False
    add_generation_prompt: StrictBool = True
    continue_final_message: StrictBool = False
    return_token_strs: StrictBool = False
    chat_template_kwargs: Annotated[dict[VariableName, VariableValue], Field(max_length=16)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.messages is not None:
            _check_continuation(self.messages, self.continue_final_message)
        return self


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: ModelName | None = None
    tokens: TokenIds


def _check_continuation(messages: list[Message], wanted: bool) -> None:
    if wanted and messages[-1].role not in ("assistant", "user"):
        raise ValueError("continue_final_message needs the last message to be an assistant's")
