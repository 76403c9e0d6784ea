"""The bodies of answers and of the events of a stream, with the names of OpenAI's API and vLLM's."""

from typing import Any, Literal

from msgspec import Raw, Struct

from ...outputs import RequestOutput

# Fields with a default are left out where they have it; the others are always there.


class PromptTokensDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Struct):
    content: list[ChatTokenLogprob]


class CompletionLogprobs(Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class Function(Struct, kw_only=True):
    name: str
    arguments: str


class ToolCall(Struct):
    id: str
    function: Function
    type: Literal["function"] = "function"


class FunctionDelta(Struct, kw_only=True, omit_defaults=True):
    arguments: str
    name: str | None = None


class ToolCallDelta(Struct, kw_only=True, omit_defaults=True):
    index: int
    function: FunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class ChatMessage(Struct, kw_only=True, omit_defaults=True):
    role: str
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, under vLLM's name
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Struct, kw_only=True, omit_defaults=True):
    index: int
    message: ChatMessage
    logprobs: Raw | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatAnswer(Struct, kw_only=True, omit_defaults=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: Raw | None = None
    prompt_token_ids: list[int] | None = None


class Delta(Struct, kw_only=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class DeltaChoice(Struct, kw_only=True, omit_defaults=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatChunk(Struct, kw_only=True, omit_defaults=True):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[DeltaChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


class CompletionChoice(Struct, kw_only=True, omit_defaults=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | Raw | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[Any] | Raw | None = None


class Completion(Struct, kw_only=True, omit_defaults=True):
    """An answer, or a chunk of a stream, which has no usage unless it is asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Model(Struct, kw_only=True):
    id: str
    created: int
    root: str
    parent: str | None
    max_model_len: int
    owned_by: str = "blora"
    object: Literal["model"] = "model"


class UsageCount:
    """Counts the tokens of a request, of all its prompts and samples."""

    def __init__(self, *, counts_generated: bool = True) -> None:
        """counts_generated: False where answers do not show what is generated."""
        self._counts_generated = counts_generated
        self._prompts: dict[str, tuple[int, int]] = {}  # request id -> tokens of the prompt, and those found in a cache
        self._num_generated = 0

    def note(self, output: RequestOutput) -> None:
        self._prompts[output.request_id] = (len(output.prompt_token_ids), output.num_cached_tokens)
        if self._counts_generated:
            self._num_generated += sum(len(sample.token_ids) for sample in output.outputs)

    def usage(self) -> Usage:
        num_prompt = sum(number for number, _ in self._prompts.values())
        num_cached = sum(number for _, number in self._prompts.values())
        total = num_prompt + self._num_generated
        return Usage(num_prompt, self._num_generated, total, PromptTokensDetails(num_cached))
