"""What a program found, as one line of JSON each. Knows no blora: it runs in the environment of a client."""

import json
from collections.abc import Callable
from typing import Any

MOST_TEXT = 200


def check(what: str, look: Callable[[], Any]) -> None:
    """look: returns what was seen; raises if it is not what it should be."""
    try:
        seen, is_held = str(look()), True
    except Exception as error:
        seen, is_held = f"{type(error).__name__}: {error}", False
    print(json.dumps({"what": what, "seen": " ".join(seen.split())[:MOST_TEXT], "is_held": is_held}), flush=True)


def expect(is_held: Any, seen: Any) -> Any:
    """Returns what was seen. Raises AssertionError if it is not what it should be."""
    if not is_held:
        raise AssertionError(f"saw {seen}")
    return seen
