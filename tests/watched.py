"""What tests watch of whole engines: by classes, since an engine hands out none of its parts."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

Made = TypeVar("Made")


def watch_made(monkeypatch: pytest.MonkeyPatch, kind: type[Made]) -> Callable[[], Made]:
    """Returns what gives the object of a class that was made last, from now on. It is not kept alive."""
    original, made = kind.__init__, list[weakref.ref[Made]]()

    def noted(self: Made, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        made.append(weakref.ref(self))

    def last() -> Made:
        found = made[-1]()
        assert found is not None, f"{kind.__name__} is gone"
        return found

    monkeypatch.setattr(kind, "__init__", noted)
    return last


def count_calls(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[str]:
    """Returns a list that has the name once for each call of this method from now on."""
    original, calls = getattr(kind, name), list[str]()

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return original(*args, **options)

    monkeypatch.setattr(kind, name, counted)
    return calls
