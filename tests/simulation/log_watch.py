"""LogWatch: what the log calls critical, and what asyncio complains of, is a violation. Nothing of the log is shown."""

import logging

from simulation.world import World


class LogWatch(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world, self._violations = world, world.violations
        self._loggers = [logging.getLogger("blora"), logging.getLogger("asyncio")]
        self._propagates = [logger.propagate for logger in self._loggers]
        for logger in self._loggers:
            logger.addHandler(self)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self._world.was_given_up |= "before they computed anything" in record.msg
        if record.levelno >= logging.CRITICAL or record.name == "asyncio":
            cause = record.exc_info[1] if record.exc_info else ""
            self._violations.append(f"log: {record.getMessage()} {cause!r}")

    def end(self) -> None:
        for logger, propagates in zip(self._loggers, self._propagates, strict=True):
            logger.removeHandler(self)
            logger.propagate = propagates
