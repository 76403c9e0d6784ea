"""Resumption: gives each engine the unfinished requests. Owns what was sent of a request, until the request has ended.

What an engine has told of a request is its history for the next one, which computes it again, all at once, and draws
the next token. A draw depends on its position, not on the engine, so the user sees the same tokens as without a death.
A request that came while there was no engine has no history yet, and is given with the others.
"""

from collections import deque
from collections.abc import Collection, Iterable

from ..ipc.messages import AddRequest
from .output_processor import OutputProcessor
from .suspects import Suspects

# Of the messages that are made at a time: about a millisecond of the event loop. Each message costs as much as so many
# tokens besides its own.
TOKENS_PER_TURN, TOKENS_PER_MESSAGE = 1 << 15, 1 << 9


class Resumption:
    def __init__(self, outputs: OutputProcessor, suspects: Suspects) -> None:
        self._outputs, self._suspects = outputs, suspects
        self._requests: dict[int, AddRequest] = {}  # by sample id, in order of acceptance: leaders before followers
        self.num_resumed = 0  # samples that another engine has gone on with
        self._to_give: deque[int] = deque()  # samples that the engine does not have

    def add(self, requests: Iterable[AddRequest]) -> None:
        """Takes accepted requests whose adapters any engine has."""
        for request in requests:
            self._requests[request.request_id] = request
            self._to_give.append(request.request_id)

    def remove(self, sample_ids: Collection[int]) -> None:
        """Forgets samples that have ended. Unknown ids are fine."""
        self._suspects.forget(sample_ids)
        for sample_id in sample_ids:
            self._requests.pop(sample_id, None)

    def lose_engine(self) -> None:
        """The next engine has none of them. It drops none for the time that they have waited: a death is a pause."""
        self._requests = {key: request.to_begin_by(None) for key, request in self._requests.items()}
        self._to_give = deque(self._requests)

    @property
    def has_to_give(self) -> bool:
        return bool(self._to_give)

    def take(self) -> list[AddRequest]:
        """Returns the next requests to give, of about TOKENS_PER_TURN."""
        taken: list[AddRequest] = []
        num_tokens = 0
        while self._to_give and num_tokens < TOKENS_PER_TURN:
            request = self._next()
            if request is not None:
                taken.append(request)
                num_tokens += request.num_tokens + TOKENS_PER_MESSAGE
        return taken

    def _next(self) -> AddRequest | None:
        """Takes a sample out of the queue. Returns None for one that has ended."""
        sample_id = self._to_give.popleft()
        request = self._requests.get(sample_id)
        if request is None or not self._outputs.expects(sample_id):
            return None
        digests = [digest for digest, _ in request.adapters]
        num_alone = self._suspects.num_alone(sample_id, digests, request.max_tokens)
        history = self._outputs.history_of(sample_id)
        self.num_resumed += history is not None
        return request.after(history, num_alone)

    def check_integrity(self, sample_ids: Collection[int]) -> None:
        """sample_ids: of the unfinished requests. Raises RuntimeError when anything else is kept."""
        if lost := self._requests.keys() - set(sample_ids):
            raise RuntimeError(f"samples {sorted(lost)} have ended, and are kept for the next engine")
