"""SharedPrompts: beginnings of prompts whose cached blocks all tenants share, and the salt of everything else.

Who computes a beginning that the operator has named learns nothing of other tenants but that somebody has used it.
"""

import hashlib
from collections.abc import Iterable, Sequence

from ..identity.tenant import Tenant
from .calls import Prompt


class SharedPrompts:
    def __init__(self) -> None:
        self._prompts: list[list[int]] = []

    def replace(self, prompts: Iterable[Sequence[int]]) -> None:
        """prompts: the tokens of each."""
        self._prompts = list(map(list, prompts))

    def num_tokens(self, token_ids: Sequence[int]) -> int:
        """The number of a prompt's first tokens that are those of a shared beginning as well."""
        return max((num_common(prompt, token_ids) for prompt in self._prompts), default=0)


def salted(tenant: Tenant, salt: bytes) -> bytes:
    """The salt of a request's prefix keys. salt: what the client has asked for, in UTF-8, in which no byte is 0xff: so
    no client can ask for what belongs to a tenant."""
    return b"\xff" + hashlib.sha256(tenant.salt + salt).digest() if tenant.salt else salt


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens with which both begin, found by comparing slices: both may have tens of thousands."""
    same, different = 0, min(len(one), len(other)) + 1
    while different - same > 1:
        middle = (same + different) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            different = middle
    return same


def beginnings(text: str) -> list[tuple[Prompt, Prompt]]:
    """Pairs of prompts that begin with a text and go on differently, as a text and as a conversation: what both of a
    pair begin with is what every prompt with this beginning has."""
    system = {"role": "system", "content": text}
    first, second = ([system, {"role": "user", "content": content}] for content in ("1", "2"))
    return [(f"{text} 1", f"{text}\n2"), ({"messages": first}, {"messages": second})]
