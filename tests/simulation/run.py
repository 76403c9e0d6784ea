"""Run: many seeds of the simulation, and the shortest trace of one that fails.

`PYTHONPATH=tests:. python -m simulation.run --seeds 2000 --steps 300` runs many seeds; `--seed 7` runs one again. One
that fails prints its shortest trace.
"""

import argparse
import sys

from simulation.operations import operations
from simulation.shrink import shortest
from simulation.simulation import simulate


def explain(seed: int, steps: int) -> str:
    """The shortest trace of a seed that fails."""
    script = shortest(operations(seed, steps), lambda script: bool(simulate(seed, script).violations))
    outcome = simulate(seed, script)
    head = f"seed {seed} with {steps} steps fails after {len(script)} operations:"
    last = f"seed {seed} fails: {next(iter(outcome.violations), 'no longer')}"  # the line that a gate shows
    return "\n".join([head, *map(str, script), "violations:", *outcome.violations[:8], last])


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulates the whole engine on a virtual clock.")
    parser.add_argument("--seeds", type=int, default=100, help="seeds 0, 1, ... to run (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="operations of each seed (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="the only seed to run")
    parser.add_argument("--replays", type=int, default=100, help="of these seeds, run twice (default: %(default)s)")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds) if arguments.seed is None else [arguments.seed]
    num_finished = num_engines = 0
    for index, seed in enumerate(seeds):
        script = operations(seed, arguments.steps)
        outcome = simulate(seed, script)
        if outcome.violations:
            print(explain(seed, arguments.steps))
            return 1
        if index < arguments.replays and simulate(seed, script).trace != outcome.trace:
            print(f"seed {seed} with {arguments.steps} steps has another trace when it is run again")
            return 1
        num_finished += outcome.num_finished
        num_engines += outcome.num_engines
    print(f"{len(seeds)} seeds of {arguments.steps} steps: {num_finished} requests finished, {num_engines} engines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
