"""The bodies of requests, and how they are read: strict about types; unknown fields are ignored, as by vLLM.

What has a size of its own stays bytes until the size has been looked at.
"""

import re
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from ...errors import InvalidRequest

T = TypeVar("T")
PLACE = re.compile(r" - at `(?P<place>[^`]*)`$")

# Fields of vLLM that would change an answer, and are not served: a request with one would get another answer than it
# asks for. The values ask for nothing.
UNSERVED = (
    *("use_beam_search", "prompt_embeds", "suffix", "audio", "mm_processor_kwargs", "chat_template", "vllm_xargs"),
    *("logits_processors", "kv_transfer_params", "logprob_token_ids", "repetition_detection", "thinking_token_budget"),
)
NOTHING = (b"", b"null", b"false", b"[]", b"{}", b'""', b"-1")


class StreamOptions(Struct):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class ConversationBody(Struct, kw_only=True):
    """A model, a conversation and its template. A request whose prompt is no conversation ignores the latter two, as
    any field that it does not know. None is what is left out. Raw fields are read by `listed`."""

    model: str | None = None
    lora: dict[str, float] | None = None
    messages: Raw = Raw()
    tools: Raw = Raw()
    documents: Raw = Raw()
    chat_template_kwargs: Raw = Raw()
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class GenerationBody(ConversationBody, kw_only=True):
    """What chat and completions have in common."""

    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = False
    # Fields of SamplingParams.
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    stop: Raw = Raw()
    stop_token_ids: Raw = Raw()
    bad_words: Raw = Raw()
    allowed_token_ids: Raw = Raw()
    logit_bias: Raw = Raw()
    response_format: Raw = Raw()
    structured_outputs: Raw = Raw()
    # Not served.
    use_beam_search: Raw = Raw()
    prompt_embeds: Raw = Raw()
    suffix: Raw = Raw()
    audio: Raw = Raw()
    mm_processor_kwargs: Raw = Raw()
    chat_template: Raw = Raw()
    vllm_xargs: Raw = Raw()
    logits_processors: Raw = Raw()
    kv_transfer_params: Raw = Raw()
    logprob_token_ids: Raw = Raw()
    repetition_detection: Raw = Raw()
    thinking_token_budget: Raw = Raw()


class CompletionBody(GenerationBody, kw_only=True):
    prompt: Raw = Raw()
    echo: bool | None = False
    logprobs: int | None = None
    add_special_tokens: bool | None = True


class ChatBody(GenerationBody, kw_only=True):
    tool_choice: Raw = Raw()
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = True
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None


class LoadBody(Struct, kw_only=True):
    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool | None = False


class UnloadBody(Struct, kw_only=True):
    lora_name: str = ""


def read(kind: type[T], data: bytes) -> T:
    """Raises InvalidRequest, naming the field."""
    value: T = _decoded("body", data, kind)
    return value


def listed(name: str, raw: Raw, kind: Any) -> Any:
    """Returns the value of a field that stayed bytes; None where there is none."""
    data = bytes(raw)
    return None if data in (b"", b"null") else _decoded(name, data, kind)


def is_given(value: object) -> bool:
    return value is not None if not isinstance(value, Raw) else bytes(value) not in (b"", b"null")


def check_served(body: GenerationBody) -> None:
    """Raises InvalidRequest for a field that is not served and asks for something."""
    for name in UNSERVED:
        if bytes(getattr(body, name)) not in NOTHING:
            raise InvalidRequest(name, "is not supported over HTTP; leave it out")


def _decoded(name: str, data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise InvalidRequest(name, "is nested too deeply") from None
    except msgspec.ValidationError as error:
        text = str(error)
        found = PLACE.search(text)
        place = found["place"].removeprefix("$") if found else ""
        field = place.removeprefix(".") if name == "body" and place else f"{name}{place}"
        raise InvalidRequest(field, "is no " + PLACE.sub("", text).removeprefix("Expected ").replace("`", "")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(name, f"is not JSON: {error}") from None
