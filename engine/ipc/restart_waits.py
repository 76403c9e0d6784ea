"""RestartWaits: how long to wait before another engine is started, when engines end again and again."""

from .death import Death

WAITS = (0.0, 0.5, 2.0, 10.0)  # seconds; the last one repeats
MOST_AFTER_WORK = 2.0  # seconds, after an engine that got requests on


class RestartWaits:
    def __init__(self) -> None:
        self._num_failures = 0  # in a row

    def after(self, death: Death, *, start: float, life: float, has_computed: bool) -> float:
        """Returns the wait in seconds after the death of an engine. start, life: the seconds that it took to start, and
        those that it lived then. One that lived for longer than it took to start was worth it, and begins a new row.
        One that computed something and was ended from outside is no reason to wait."""
        if life >= start:
            self._num_failures = 0
        if has_computed and not death.is_crash:
            return 0.0
        wait = self.after_failure()
        return min(wait, MOST_AFTER_WORK) if has_computed else wait

    def begin_anew(self) -> None:
        """What ended engines has been set aside."""
        self._num_failures = 0

    def after_failure(self) -> float:
        """Returns the wait after an engine that could not be started."""
        wait = WAITS[min(self._num_failures, len(WAITS) - 1)]
        self._num_failures += 1
        return wait
