"""Unread outputs: what waits for readers is bounded.

Texts and tokens are few bytes. Logprobs of an answer are megabytes, and those of a prompt come all at once.
"""

from collections.abc import Iterable

from .output_processor import UserRequest

MAX_UNREAD = 1 << 20  # logprobs that wait for all readers together, of some 200 bytes each
MAX_ALWAYS_ALLOWED = 1 << 14  # logprobs of one request; the sum is not looked at before one has more


def furthest_behind(grown: Iterable[UserRequest], users: Iterable[UserRequest]) -> UserRequest | None:
    """Returns the request to end because too much waits for readers: that with the most. None if there is room.

    grown: those for which more waits now. users: all that are being read.
    """
    if all(user.num_unread_logprobs <= MAX_ALWAYS_ALLOWED for user in grown):
        return None
    waiting = {user: user.num_unread_logprobs for user in users}
    return max(waiting, key=waiting.__getitem__) if sum(waiting.values()) > MAX_UNREAD else None
