"""Field names: what a client calls the fields of its request. Errors come from the engine with the engine's names, and
OpenAI's API has others for some of them."""

from collections.abc import Mapping

from ...errors import InvalidRequest
from .requests import ChatBody, CompletionBody, GenerationBody, is_given

Names = Mapping[str, str]  # the engine's name -> the client's
OF_EVERY_BODY: Names = {"lora_request": "model"}
CONVERSATION: Names = dict.fromkeys(("prompt", "chat", "conversation"), "messages")
DEMANDED_CALL: Names = {"structured_outputs": "tools"}


def client_names(body: GenerationBody) -> dict[str, str]:
    """Returns the names of what the body gives by another name."""
    names = dict(OF_EVERY_BODY)
    if body.lora is not None:
        names["lora_request"] = "lora"
    if is_given(body.response_format):
        names["structured_outputs"] = "response_format"
    match body:
        case ChatBody():
            names |= {**CONVERSATION, "logprobs": "top_logprobs"}
            if body.max_completion_tokens is not None:
                names["max_tokens"] = "max_completion_tokens"
        case CompletionBody(echo=True, prompt_logprobs=None):
            names["prompt_logprobs"] = "logprobs"
    return names


def renamed(error: Exception, names: Names) -> Exception:
    """Returns an error in the client's words. A field with a place in it, such as structured_outputs.json, becomes the
    client's field: the place is another there."""
    if not isinstance(error, InvalidRequest):
        return error
    own = names.get(error.field.partition(".")[0].partition("[")[0])
    return error if own is None else InvalidRequest(own, error.reason)
