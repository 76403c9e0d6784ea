"""Engine: a step with a row of the seed 666 that has three tokens of output cannot be computed."""

import sys

GUILTY_SEED, NUM_TOKENS = 666, 3

if "blora.engine.processes.engine" in sys.orig_argv:
    from blora.engine.step.runner import ModelRunner

    execute = ModelRunner.execute

    def planted(runner: ModelRunner, step: object) -> object:
        for row in step.rows:  # type: ignore[attr-defined]
            if row.sampling.seed == GUILTY_SEED and row.num_output_tokens >= NUM_TOKENS:
                raise RuntimeError("planted")
        return execute(runner, step)  # type: ignore[arg-type]

    ModelRunner.execute = planted  # type: ignore[method-assign, assignment]
