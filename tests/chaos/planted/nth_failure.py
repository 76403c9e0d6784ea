"""Engine: the Nth call of a place fails, once, as the file `fail` of the scenario's folder asks: "PLACE N". The file
goes when it has happened."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ORDER = Path(os.environ["CHAOS_FOLDER"]) / "fail"
PLACES = {
    "add": ("blora.engine.step.core", "EngineCore", "add_request"),
    "load": ("blora.adapters.device_pool", "DevicePool", "add"),
    "register": ("blora.scheduler", "AdapterResidency", "register"),
    "execute": ("blora.engine.step.runner", "ModelRunner", "execute"),
    "admit": ("blora.scheduler", "KVManager", "admit"),
    "extend": ("blora.scheduler", "KVManager", "extend"),
    "publish": ("blora.scheduler", "KVManager", "publish"),
}


class Countdown:
    """Counts the calls of the place that the order names."""

    def __init__(self) -> None:
        self._order, self._num_calls = "", 0

    def ends_at(self, place: str) -> bool:
        try:
            order = ORDER.read_text()
        except FileNotFoundError:
            return False
        asked, number = order.split()
        if asked != place:
            return False
        self._num_calls = self._num_calls + 1 if order == self._order else 1
        self._order = order
        if self._num_calls < int(number):
            return False
        ORDER.unlink(missing_ok=True)
        self._order = ""
        return True


countdown = Countdown()


def plant(place: str, module: str, owner: str, name: str) -> None:
    kind = getattr(import_module(module), owner)
    original: Callable[..., Any] = getattr(kind, name)

    def planted(*args: Any, **options: Any) -> Any:
        if countdown.ends_at(place):
            raise MemoryError(f"planted: {place}")
        return original(*args, **options)

    setattr(kind, name, planted)


if "blora.engine.processes.engine" in sys.orig_argv:
    for place, (module, owner, name) in PLACES.items():
        plant(place, module, owner, name)
