"""MemoryForecast: whether requests that run together will have room until they end, so that few have to be preempted.

A request grows by a block for each `block_size` tokens that it generates, and gives all its blocks back when it ends.
So the need is greatest just before one of them ends; the forecast adds up the blocks of those that still run then, as
LightLLM's Past-Future scheduler does. The number of tokens that a request will generate is not known. It is taken to be
what most of the outputs came to that ended lately and were longer than the request's output so far, and `max_tokens` at
most. A request that was preempted is taken to use all of its max_tokens, so that it is not preempted again.
"""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable

from .request import Request

NUM_OUTPUTS = 256  # outputs that are remembered
MOST = 0.9  # share of the remembered longer outputs that a request's output is not expected to exceed
FIRST_GUESS = 512  # tokens, while nothing has ended


class MemoryForecast:
    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._lengths: deque[int] = deque()  # of the outputs that ended lately, oldest first
        self._sorted: list[int] = []  # the same, shortest first

    def note_end(self, request: Request) -> None:
        """Learns from the output of a request that ends."""
        if not request.num_output_tokens:
            return
        self._lengths.append(request.num_output_tokens)
        insort(self._sorted, request.num_output_tokens)
        if len(self._lengths) > NUM_OUTPUTS:
            del self._sorted[bisect_right(self._sorted, self._lengths.popleft()) - 1]

    def num_further_tokens(self, request: Request) -> int:
        """Returns the number of tokens that a request is expected to generate yet."""
        num_told = request.num_output_tokens
        if request.num_preemptions:
            return request.max_tokens - num_told
        num_shorter = bisect_right(self._sorted, num_told)
        num_longer = len(self._sorted) - num_shorter
        if num_longer:
            expected = self._sorted[num_shorter + int(MOST * num_longer)]
        else:
            expected = max(2 * num_told, 0 if self._sorted else FIRST_GUESS)
        return max(min(expected, request.max_tokens) - num_told, 1)

    def num_blocks(self, requests: Iterable[Request]) -> int:
        """Returns the most blocks that requests are expected to need together, if each had its own."""
        needs = sorted(((self.num_further_tokens(request), request.num_tokens) for request in requests), reverse=True)
        num_tokens, most = 0, 0
        for num_running, (num_further, num_known) in enumerate(needs, start=1):
            num_tokens += num_known
            most = max(most, (num_tokens + num_running * num_further) // self._block_size + num_running)
        return most
