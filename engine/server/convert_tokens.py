"""Protobuf messages <-> the engine's own types, of Tokenize, Detokenize and WatchLoad. A part of convert.py."""

import math
from dataclasses import asdict
from typing import Any

from blora.proto.v1 import engine_pb2, generation_pb2

from ..errors import InvalidRequest
from ..front_end.adapter_choice import Adapter
from ..front_end.validator import check_count
from ..outputs import LoadSnapshot, Tokens
from .convert import adapter_of, chat_of


def tokenize_prompt(request: generation_pb2.TokenizeRequest) -> dict[str, Any]:
    match request.WhichOneof("prompt"):
        case "text":
            return {"prompt": request.text}
        case "chat":
            return chat_of(request.chat)
    raise InvalidRequest("prompt", "is missing; send one of text and chat")


def tokenize_options(request: generation_pb2.TokenizeRequest) -> dict[str, Any]:
    adds = request.add_special_tokens if request.HasField("add_special_tokens") else True
    return {"lora_request": adapter_of(request), "add_special_tokens": adds, "with_texts": request.with_texts}


def tokenized(tokens: Tokens) -> generation_pb2.TokenizeResponse:
    return generation_pb2.TokenizeResponse(**asdict(tokens))


def detokenize_arguments(request: generation_pb2.DetokenizeRequest, most: int) -> tuple[list[int], Adapter, bool]:
    """Returns tokens, adapter and skip_special_tokens. most: the most tokens."""
    check_count("token_ids", len(request.token_ids), most)  # before they are copied
    return list(request.token_ids), adapter_of(request), request.skip_special_tokens


def detokenized(text: str) -> generation_pb2.DetokenizeResponse:
    return generation_pb2.DetokenizeResponse(text=text)


def most_per_second(request: engine_pb2.WatchLoadRequest) -> float:
    number = request.most_per_second if request.HasField("most_per_second") else 1.0
    if not 0 < number < math.inf:
        raise InvalidRequest("most_per_second", f"{number} is not a number above 0")
    return number


def load(snapshot: LoadSnapshot) -> engine_pb2.WatchLoadResponse:
    """Returns the message, whose fields have the names of LoadSnapshot's; a test compares them."""
    return engine_pb2.WatchLoadResponse(**asdict(snapshot))
