"""RowStream: requests of an LLM whose outputs go to one reader, and the steps that he has computed for them."""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial

from ..errors import EngineUnavailable
from ..front_end.output_processor import OutputProcessor, UserRequest
from ..outputs import RequestOutput
from ..step.driver import Driver

News = list[tuple[UserRequest, RequestOutput]]


class RowStream:
    """Rows that grow together: an iterator over the new outputs after each step. Its requests are accepted before.

    Several streams may be open at once. A step of one computes the rows of all, and each stream takes its own outputs.
    Threads may share a stream: each output goes to one of them. One that is dropped is closed before the next step.
    """

    def __init__(
        self,
        outputs: OutputProcessor,
        users: Iterable[UserRequest],
        driver: Driver,
        end: Callable[[Iterable[UserRequest]], None],
    ) -> None:
        """end: aborts requests."""
        self.users = tuple(users)
        self._unfinished = list(self.users)
        self._outputs, self._driver, self._end = outputs, driver, end

    def __iter__(self) -> "RowStream":
        return self

    def __next__(self) -> list[RequestOutput]:
        news = self._driver.until(self._take)
        if not news:
            raise StopIteration
        return [output for _, output in news]

    def step(self) -> list[RequestOutput]:
        """Returns the new outputs; has one step computed for them if there are none."""
        num_asked = 0

        def poll() -> News | None:
            nonlocal num_asked
            num_asked += 1
            news = self._take()
            return [] if news is None and num_asked > 1 else news

        return [output for _, output in self._driver.until(poll)]

    def complete(self, on_finished: Callable[[], object]) -> list[RequestOutput]:
        """Has steps computed until all rows are finished. Returns their final outputs in the order in which they were
        accepted. on_finished: called for each."""
        final: News = []
        while news := self._driver.until(self._take):
            for user, output in news:
                if output.finished:
                    final.append((user, output))
                    on_finished()
        return [output for _, output in sorted(final, key=lambda pair: pair[0].sample_ids[0])]

    def _take(self) -> News | None:
        """Returns the new outputs, an empty list at the end, and None while there is nothing new."""
        taken = [(user, self._outputs.take(user)) for user in self._unfinished if user.has_news]
        self._unfinished = [user for user in self._unfinished if not user.is_finished]
        news = [(user, output) for user, output in taken if output is not None]
        return news if news or not self._unfinished else None

    def labels(self) -> list[str]:
        """The ids of the unfinished rows."""
        return [user.request_id for user in self._unfinished]

    def take_over(self, other: "RowStream") -> None:
        """Takes the unfinished rows of another stream, between two steps."""
        self._unfinished += other._unfinished
        other._unfinished = []

    def abort(self, labels: Collection[str]) -> None:
        """Aborts rows, between two steps. Unknown ids are allowed."""
        ended = [user for user in self._unfinished if user.request_id in labels]
        self._unfinished = [user for user in self._unfinished if user not in ended]
        self._end(ended)

    def close(self) -> None:
        """Aborts the unfinished requests. Idempotent."""
        with suppress(EngineUnavailable):  # the LLM was closed, and its requests with it
            self._driver.run(self._close)

    def _close(self) -> None:
        unfinished, self._unfinished = self._unfinished, []
        self._end(unfinished)

    def __enter__(self) -> "RowStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._unfinished:
            self._driver.notes.append(partial(self._end, self._unfinished))
