"""The prompts of a completion: a text, tokens, or a list of these."""

from typing import Any

from msgspec import Raw

from ...errors import InvalidRequest
from .requests import is_given, listed

MAX_PROMPTS = 4096  # as many as may be unfinished
MAX_ENTRIES = 1 << 18  # of all lists of a prompt: tokens, or texts
FIRST_OF_TOKENS = (b"]", b"-", *(str(digit).encode() for digit in range(10)))

Given = str | list[int]


def read_prompts(raw: Raw) -> list[Given]:
    """Returns the prompts of a request: a text, tokens, or a list of these. Raises InvalidRequest."""
    if not is_given(raw):
        raise InvalidRequest("prompt", "is missing")
    data = bytes(raw)
    if not data.startswith(b"["):
        return [listed("prompt", raw, str)]
    if data.count(b",") >= MAX_ENTRIES:
        raise InvalidRequest("prompt", f"has more than {MAX_ENTRIES} entries")
    if data[1:].lstrip()[:1] in FIRST_OF_TOKENS:
        return [listed("prompt", raw, list[int])]
    prompts: list[Given] = listed("prompt", raw, list[_kind_of_prompts(data)])  # type: ignore[misc]
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest("prompt", f"is a list of {len(prompts)} prompts; at most {MAX_PROMPTS} are taken")
    return prompts


def _kind_of_prompts(data: bytes) -> Any:
    """Lists are slow to make, and are counted before. Texts have brackets, too: with many, all prompts are texts."""
    if data.count(b"[") <= MAX_PROMPTS + 1:
        return str | list[int]
    if data[1:].lstrip().startswith(b"["):
        raise InvalidRequest("prompt", f"is a list of more than {MAX_PROMPTS} lists; at most so many prompts are taken")
    return str
