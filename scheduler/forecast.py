"""MemoryForecast: whether requests that run together will have room until they end, so that few have to be preempted.

A request grows by a block for each `block_size` tokens that it generates, and gives all its blocks back when it ends.
So the need is greatest just before one of them ends; the forecast adds up the blocks of those that still run then, as
LightLLM's Past-Future scheduler does. The number of tokens that a request will generate is known where nothing but
max_tokens can end it. Otherwise it is taken to be what most of the outputs came to that ended lately and were longer
than the request's output so far, and `max_tokens` at most. Short outputs end first, so those that still run count as
well (Kaplan and Meier). A request that was preempted is taken to use all of its max_tokens, so that it is not
preempted again.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable

from .request import Request

NUM_OUTPUTS = 256  # outputs that are remembered
MOST = 0.9  # share of the longer outputs that a request's output is not expected to exceed
FIRST_GUESS = 512  # tokens, while too little has ended


class MemoryForecast:
    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._lengths: deque[int] = deque()  # of the outputs that ended lately, oldest first
        self._sorted: list[int] = []  # the same, shortest first
        self._ended: list[float] = []  # share of outputs that are not longer, for each of `_sorted`

    def note_end(self, request: Request, running: Iterable[Request] = ()) -> None:
        """Learns from the output of a request that ends. running: all that run."""
        if not request.num_output_tokens:
            return
        self._lengths.append(request.num_output_tokens)
        insort(self._sorted, request.num_output_tokens)
        if len(self._lengths) > NUM_OUTPUTS:
            del self._sorted[bisect_right(self._sorted, self._lengths.popleft()) - 1]
        self._estimate(sorted(other.num_output_tokens for other in running if other is not request))

    def _estimate(self, running: list[int]) -> None:
        """running: tokens of the outputs that may become longer than what has ended, the shortest first."""
        share = 1.0  # of outputs that are longer
        self._ended = []
        for index, length in enumerate(self._sorted):
            num_as_long = len(self._sorted) - index + len(running) - bisect_left(running, length)
            share *= 1 - 1 / num_as_long
            self._ended.append(1 - share)

    def num_further_tokens(self, request: Request) -> int:
        """Returns the number of tokens that a request is expected to generate yet."""
        num_told = request.num_output_tokens
        if request.num_preemptions or request.is_length_certain:
            return request.max_tokens - num_told
        return max(min(self._expected(num_told), request.max_tokens) - num_told, 1)

    def _expected(self, num_told: int) -> int:
        """Returns the length that most outputs do not exceed that come to more than so many tokens."""
        num_shorter = bisect_right(self._sorted, num_told)
        ended = self._ended[num_shorter - 1] if num_shorter else 0.0
        place = bisect_left(self._ended, ended + MOST * (1 - ended))
        if num_shorter <= place < len(self._sorted):
            return self._sorted[place]
        is_known = bool(self._ended) and self._ended[-1] > MOST
        return max(2 * num_told, 0 if is_known else FIRST_GUESS)

    def num_blocks(self, requests: Iterable[Request]) -> int:
        """Returns the most blocks that requests are expected to need together, if each had its own."""
        needs = sorted(((self.num_further_tokens(request), request.num_tokens) for request in requests), reverse=True)
        num_tokens, most = 0, 0
        for num_running, (num_further, num_known) in enumerate(needs, start=1):
            num_tokens += num_known
            most = max(most, (num_tokens + num_running * num_further) // self._block_size + num_running)
        return most
