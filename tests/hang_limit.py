"""HangLimit: ends a test process that hangs where no Python code runs any more.

pytest-timeout fails a test that takes too long, and the others go on; but it needs the interpreter, which code that
holds it in C never gives back: a kernel, or a destructor. The watchdog of faulthandler is a thread of C. It prints
where every Python thread stands and ends the process; pytest-xdist reports the failure and starts another worker.
"""

import faulthandler
import os
from collections.abc import Generator

import pytest

GRACE = 100.0  # seconds after the limit of pytest-timeout, which comes first where Python runs


class HangLimit:
    """A plugin for pytest. The time is counted anew from the begin of each test, and after the last one."""

    def __init__(self, config: pytest.Config, grace: float = GRACE) -> None:
        self._default = float(config.getoption("timeout") or config.getini("timeout"))
        self._limit, self._grace = self._default, grace
        self._stderr = os.dup(2)  # before pytest captures it

    def _begin(self) -> None:
        faulthandler.dump_traceback_later(self._limit + self._grace, file=self._stderr, exit=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        own = item.get_closest_marker("timeout")
        self._limit = self._default if own is None else float(own.args[0])
        self._begin()

    @pytest.hookimpl(wrapper=True)
    def pytest_exception_interact(self) -> Generator[None, None, None]:
        yield  # pytest ends every watch of faulthandler here, and a failed test may well hang while it is torn down
        self._begin()

    def pytest_unconfigure(self) -> None:
        self._begin()  # until the process has ended
