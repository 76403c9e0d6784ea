"""The largest messages that the server reads. They follow from the model's length: a longer text cannot fit."""

from ..errors import MessageTooLarge
from ..text.sizes import MAX_BYTES_PER_TOKEN

REST_BYTES = 64 << 10  # of a message beside its prompt: tools, lists of tokens and strings, a template
UPLOAD_BYTES = (1 << 20) + REST_BYTES  # of a message of an upload: the chunks of blora's client have a megabyte

JSON_BYTES = 256 << 10  # that JSON may take besides: lists of tokens are two or three times as long as in protobuf


def largest_message(max_model_len: int) -> int:
    """Returns the most bytes of any message but an upload's. max_model_len: tokens."""
    return max_model_len * MAX_BYTES_PER_TOKEN + REST_BYTES


def largest_of_all(max_model_len: int) -> int:
    """Returns the limit of gRPC, which has one for all methods. It refuses a larger message before memory is taken."""
    return max(largest_message(max_model_len), UPLOAD_BYTES)


def largest_body(max_model_len: int) -> int:
    """Returns the most bytes of the body of a request over HTTP."""
    return largest_message(max_model_len) + JSON_BYTES


def check_size(data: bytes, most: int) -> None:
    """Raises MessageTooLarge, as gRPC's own limit does. Before anything is parsed."""
    if len(data) > most:
        raise MessageTooLarge(f"the message has {len(data)} bytes; at most {most} are read")
