"""Engine: dies from inside, between two steps, when the file `die` of the scenario's folder says how."""

import os
import sys
from pathlib import Path

if "blora.engine.processes.engine" in sys.orig_argv:
    from blora.engine.step.core import EngineCore

    order = Path(os.environ["CHAOS_FOLDER"]) / "die"
    step = EngineCore.step

    def deadly(core: EngineCore) -> object:
        if order.exists():
            how = order.read_text()
            order.unlink()
            if how == "stand":
                import time

                time.sleep(3600)
            if how == "segv":
                import ctypes

                ctypes.string_at(0)
            if how == "abort":
                os.abort()
            if how == "exit":
                os._exit(3)
            raise BaseException("planted")  # nothing can attribute it to a request
        return step(core)

    EngineCore.step = deadly  # type: ignore[method-assign]
