"""Events: what happens to a server, as records of the log that have a name and facts beside their text.

A program that reads the log finds an event by its name. No event has a prompt, an answer, or a message of an error in
which a part of one could be.
"""

import logging
from typing import Any


def tell(logger: logging.Logger, event: str, text: str, level: int = logging.INFO, **facts: Any) -> None:
    """event: one word of letters and "_". facts: texts and numbers."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", text, extra={"event": event, "facts": facts})
