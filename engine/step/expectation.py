"""Expectation: how long a step may well take, for those who watch whether the engine goes on."""

from dataclasses import dataclass

from blora.scheduler import Step, StepTime

# Bytes of weights that a slow machine reads or multiplies in a second, for each token: a guess for the first steps.
SLOW = 5e11


@dataclass(frozen=True, slots=True)
class Expectation:
    num_weight_bytes: int = 0
    compiling: float = 0.0  # seconds that any step may take longer, because kernels are compiled at their first use

    def seconds(self, step: Step, step_time: StepTime) -> float:
        """Predicts a step's time: as fitted, or before anything was measured as the size of the model tells."""
        predicted = step_time.costs.seconds(step.work)
        if not step_time.num_noted:
            predicted = max(predicted, step.num_tokens * self.num_weight_bytes / SLOW)
        return predicted + self.compiling


NO_EXPECTATION = Expectation()  # beyond what is measured
