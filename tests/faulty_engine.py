"""An engine process with faults that a test plants: `python -m faulty_engine` runs the real one, and reads a file for
what has to go wrong. Faults are known by content, so that they come back in the next engine.

The file is JSON, named by BLORA_TEST_FAULTS: a list of {"at", "what", "how"}. at: "execute", for a step with a row
whose prompt has the token `what`; "compile", for the grammar of such a request; "register" or "copy", for the adapter
with the digest `what`. how: see HOW.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blora.adapters import ImageTable
from blora.adapters.device_pool import DevicePool
from blora.engine.ipc.messages import AddRequest
from blora.engine.processes import engine
from blora.engine.processes.matchers import Matchers
from blora.engine.step.core import EngineCore
from blora.engine.step.runner import ModelRunner
from blora.scheduler import Step

FAULTS = "BLORA_TEST_FAULTS"


def _fail() -> None:
    raise RuntimeError("planted")


def _loop() -> None:
    while True:
        time.monotonic()


HOW: dict[str, Callable[[], Any]] = {
    "raise": _fail,
    "segv": lambda: ctypes.string_at(0),
    "abort": lambda: os.kill(os.getpid(), signal.SIGABRT),
    "exit": lambda: os._exit(3),
    "loop": _loop,
    "sleep": lambda: time.sleep(1000),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def fall_into(at: str, *there: Any) -> None:
    for fault in json.loads(Path(os.environ[FAULTS]).read_text()):
        if fault["at"] == at and fault["what"] in there:
            HOW[fault["how"]]()


def plant() -> None:
    execute, load, copy = ModelRunner.execute, EngineCore.load_adapter, DevicePool.copy
    make = Matchers._make

    def faulty_execute(self: ModelRunner, step: Step) -> Any:
        fall_into("execute", *(token for row in step.rows for token in row.token_ids[: row.num_prompt_tokens]))
        return execute(self, step)

    def faulty_load(self: EngineCore, table: ImageTable, image: Any) -> None:
        fall_into("register", table.digest)
        load(self, table, image)

    def faulty_copy(self: DevicePool, digest: str, first: int, page_ids: Any) -> None:
        if self.before_copy is not None:
            self.before_copy(digest)
        fall_into("copy", digest)
        copy(self, digest, first, page_ids)

    def faulty_make(self: Matchers, message: AddRequest) -> Any:
        fall_into("compile", *message.prompt_token_ids)
        return make(self, message)

    Matchers._make = faulty_make  # type: ignore[method-assign]
    ModelRunner.execute, EngineCore.load_adapter, DevicePool.copy = faulty_execute, faulty_load, faulty_copy  # type: ignore[method-assign]


if __name__ == "__main__":
    plant()
    sys.exit(engine.main())
