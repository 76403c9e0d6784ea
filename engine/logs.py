"""Logs: how records of the log are written, as text for people or as JSON for programs, and how many at most.

A process tells those that it starts how it writes, so that all lines of a server are alike.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

logger = logging.getLogger(__name__)

FORMATS = ("text", "json")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
WINDOW, MOST = 10.0, 20  # seconds, and records of a kind in them
MOST_KINDS = 1000


class Limit(logging.Filter):
    """Lets at most so many records of a kind through in a while; the next one that comes through says how many did not.
    So a client that is refused again and again fills no disk."""

    def __init__(self, most: int = MOST, window: float = WINDOW, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most, self._window, self._now = most, window, now
        self._began = now()
        self._counts: dict[Any, int] = {}  # kind -> records in this window
        self._left_out: dict[Any, int] = {}  # kind -> records that were left out since the last that was not

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._now()
        if now - self._began >= self._window:
            self._began = now
            self._counts.clear()
        kind = getattr(record, "event", None) or (record.name, record.msg if record.args else record.lineno)
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count > self._most or len(self._counts) > MOST_KINDS:
            if kind in self._left_out or len(self._left_out) < MOST_KINDS:
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        record.num_left_out = self._left_out.pop(kind, 0)
        return True


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        num = getattr(record, "num_left_out", 0)
        return super().formatMessage(record) + (f" ({num} like it before were left out)" if num else "")


class JsonFormatter(logging.Formatter):
    """One JSON object on each line: time, level, logger, message, and the name and the facts of an event."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if hasattr(record, "event"):
            entry |= {"event": record.event, **getattr(record, "facts", {})}
        if num := getattr(record, "num_left_out", 0):
            entry["num_left_out"] = num
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def set_up(format: str, level: str, stream: TextIO | None = None) -> None:
    """Writes the records of all loggers, from this level on, to standard error or another stream."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    handler.addFilter(Limit())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if format == "json":  # what Python writes by itself would be no JSON
        logging.captureWarnings(True)
        sys.excepthook = _log_end


def _log_end(*error: Any) -> None:
    logger.critical("the process ends", exc_info=error)


def as_here() -> str:
    """Returns the argument that tells a child how this process writes its log. Where a program has set up a log of its
    own, or none, a child writes text."""
    root = logging.getLogger()
    formatters = {type(handler.formatter) for handler in root.handlers}
    if formatters.isdisjoint({JsonFormatter, TextFormatter}):
        return "text:INFO"
    return f"{'json' if JsonFormatter in formatters else 'text'}:{logging.getLevelName(root.level)}"


def set_up_as_told(argument: str, least: int = logging.WARNING) -> None:
    """Does `set_up` in a child, by what its parent has told. least: level of the records that are written at all: the
    libraries of some children tell much that is of no use."""
    format, _, level = argument.partition(":")
    set_up(format, logging.getLevelName(max(logging.getLevelNamesMapping()[level], least)))
