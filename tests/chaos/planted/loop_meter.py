"""Front end: notes every callback of the event loop that keeps it for long, with the CPU seconds it took, which a busy
machine does not change, and the seconds that passed."""

import os
import sys
import time
from pathlib import Path

LEAST_SECONDS = 0.003

if "blora.engine.cli.main" in sys.orig_argv:
    from asyncio import events

    run = events.Handle._run
    noted = (Path(os.environ["CHAOS_FOLDER"]) / "loop").open("a", buffering=1)

    def measured(handle: events.Handle) -> None:
        callback, wall, cpu = handle._callback, time.monotonic(), time.thread_time()
        run(handle)
        if (took := time.thread_time() - cpu) > LEAST_SECONDS:
            noted.write(f"{took:.6f} {time.monotonic() - wall:.6f} {callback!r:.200}\n")

    events.Handle._run = measured  # type: ignore[method-assign]
