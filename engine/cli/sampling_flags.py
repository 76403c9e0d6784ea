"""The flags of sampling: one for each field of the message SamplingParams, which owns their names and types."""

import argparse
import json
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from blora.proto.v1.generation_pb2 import SamplingParams

# What a field means, in a few words; the page of gRPC has all.
HELP = {
    "n": "samples of the prompt (default: 1)",
    "temperature": "divides the logits; 0 is greedy (default: the model's own value)",
    "top_k": "likeliest tokens to draw from; 0 keeps all (default: the model's own value)",
    "top_p": "probability of the likeliest tokens to draw from (default: the model's own value)",
    "min_p": "drop tokens less likely than this times the likeliest one (default: the model's own value)",
    "seed": "seed of the random draws (default: the server's)",
    "presence_penalty": "subtracted from the logits of tokens generated so far (default: 0)",
    "frequency_penalty": "the same, for each time that a token was generated (default: 0)",
    "repetition_penalty": "divides the logits of tokens in the prompt or the answer (default: the model's own value)",
    "logit_bias": 'JSON object of token ids and numbers added to their logits, such as {"42": -100} (default: none)',
    "max_tokens": "tokens to generate at most (default: %(default)s)",
    "min_tokens": "tokens before which nothing ends the answer (default: 0)",
    "stop": "text that ends the answer; may be repeated (default: none)",
    "stop_token_ids": "token that ends the answer; may be repeated (default: none)",
    "include_stop_str_in_output": "leave the stop text at the end of the answer (default: no)",
    "ignore_eos": "go on after the end-of-sequence token (default: no)",
    "logprobs": "likeliest candidates to report for each token, shown by --json (default: none)",
    "prompt_logprobs": "the same for the tokens of the prompt (default: none)",
    "skip_special_tokens": "leave special tokens out of the text (default: yes)",
    "detokenize": "make text, and not only token ids (default: yes)",
    "allowed_token_ids": "token that can be drawn, and no other; may be repeated (default: all)",
    "bad_words": "text that is not generated; may be repeated (default: none)",
    "truncate_prompt_tokens": "tokens to which a longer prompt is cut at its beginning (default: it is not cut)",
    "structured_outputs": 'JSON object of what the text has to match, such as {"regex": "[a-z]+"} (default: anything)',
    "stream_interval": "tokens that each piece of the stream has at least (default: 1)",
}
FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


def add_sampling_flags(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    group = parser.add_argument_group("sampling")
    for field in SamplingParams.DESCRIPTOR.fields:
        text = HELP.get(field.name, "see the page of gRPC")
        default = max_tokens if field.name == "max_tokens" else None
        group.add_argument("--" + field.name.replace("_", "-"), default=default, help=text, **_taking(field))


def _taking(field: Any) -> dict[str, Any]:
    """The arguments of a flag that takes the values of a field."""
    if field.message_type is not None:
        return {"type": json_object, "metavar": "JSON"}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"action": argparse.BooleanOptionalAction}
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        kind: dict[str, Any] = {"metavar": "TEXT"}
    else:
        kind = {"type": float, "metavar": "X"} if field.cpp_type in FLOATS else {"type": int, "metavar": "N"}
    return kind | ({"action": "append"} if field.is_repeated else {})


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields that were given, as the client takes them."""
    names = [field.name for field in SamplingParams.DESCRIPTOR.fields]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "logit_bias" in given:
        given["logit_bias"] = {int(token_id): float(bias) for token_id, bias in given["logit_bias"].items()}
    return given
