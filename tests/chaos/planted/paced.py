"""Engine: a step of the tiny model takes as long as one of a larger model would, asleep, so that runs at a small scale
measure decisions and not how busy the machine is."""

import sys
import time

STEP_SECONDS, ROW_SECONDS, TOKEN_SECONDS = 0.010, 0.0005, 0.0005

if "blora.engine.processes.engine" in sys.orig_argv:
    from blora.engine.step.runner import ModelRunner

    execute = ModelRunner.execute

    def paced(runner: ModelRunner, step: object) -> object:
        begun = time.monotonic()
        results = execute(runner, step)  # type: ignore[arg-type]
        rows, tokens = len(step.rows), step.num_tokens  # type: ignore[attr-defined]
        lasting = STEP_SECONDS + ROW_SECONDS * rows + TOKEN_SECONDS * tokens
        time.sleep(max(begun + lasting - time.monotonic(), 0.0))
        return results

    ModelRunner.execute = paced  # type: ignore[method-assign, assignment]
