"""Mutants: bugs that tests have to notice.

In tests/, `python -m mutants.run planted` applies each patch of this folder to a copy of its file, and has the
test that it names fail; a patch that no longer applies is a failure, too. `python -m mutants.run score` makes all small
changes of the files in TARGETS, and writes into score.md how many of them tests notice.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutants.operators import Mutant, mutants
from mutants.trial import ROOT, Verdict, run_tests, warm_up

FOLDER = Path(__file__).parent
SCORE = FOLDER / "score.md"
LONGEST = 240.0  # seconds of a trial on a busy machine; a mutant that takes longer is noticed
WANTED = 0.85
CPU_SECONDS = 60  # of a trial; a mutant that computes for longer is noticed
# The fast ones come first. What a mutant survives costs all of them, so the longest tests are left out.
SIMULATION = "tests/simulation/test_simulation.py::test_a_seed[0]"
SCHEDULER = (
    *(f"tests/scheduler/test_{name}.py" for name in ("scheduler", "deadlines", "resumption", "copy_budget", "pace")),
    *(f"tests/scheduler/test_{name}.py" for name in ("preemption", "fairness", "state_machine")),
    SIMULATION,
)
STORE = ("tests/engine/adapter_store/test_policy.py", SIMULATION)
TARGETS: dict[str, tuple[str, ...]] = {
    "scheduler/block_pool.py": ("tests/scheduler/test_block_pool.py", *SCHEDULER),
    "scheduler/residency.py": ("tests/scheduler/test_residency.py", *SCHEDULER),
    "scheduler/scheduler.py": SCHEDULER,
    "adapters/registry.py": ("tests/adapters/test_registry.py",),
    "engine/adapter_store/catalog.py": STORE,
    "engine/front_end/validator.py": (
        "tests/engine/front_end/test_validator.py",
        "tests/engine/front_end/test_prompts.py",
    ),
    "engine/front_end/admission.py": ("tests/engine/front_end/test_admission.py",),
}


def run_planted() -> bool:
    """Whether every planted bug is noticed by the test that its patch names."""
    patches = sorted(FOLDER.glob("*.patch"))
    verdicts = [_try_patch(patch) for patch in patches]
    print(f"{sum(verdicts)} of {len(patches)} planted bugs are noticed by their tests")
    return all(verdicts)


def _try_patch(patch: Path) -> bool:
    text = patch.read_text()
    (test,) = re.findall(r"^Test: (.+)$", text, re.MULTILINE)
    (path,) = re.findall(r"^--- (.+)$", text, re.MULTILINE)
    changed = _patched(path, patch)
    if changed is None:
        print(f"{patch.name}: does not apply to {path} any more: write it anew")
        return False
    if (sound := run_tests({}, [test], LONGEST)) is not Verdict.PASSED:
        print(f"{patch.name}: {test} {sound.value} without the bug")
        return False
    verdict = run_tests({path: changed}, [test], LONGEST)
    is_noticed = verdict in (Verdict.FAILED, Verdict.TIMED_OUT)
    print(f"{patch.name}: {'noticed' if is_noticed else verdict.value} by {test}", flush=True)
    return is_noticed


def _patched(path: str, patch: Path) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path
        copy.parent.mkdir(parents=True)
        copy.write_text((ROOT / path).read_text())
        applied = subprocess.run(["git", "apply", "-p0", str(patch)], cwd=folder, capture_output=True)
        return copy.read_text() if applied.returncode == 0 else None


def run_score(paths: Sequence[str], most: int, seconds: float) -> bool:
    """Whether at least the wanted share of the changes of each file is noticed."""
    shares = []
    deadline = time.monotonic() + seconds
    for path in paths:
        tests = TARGETS[path]
        if run_tests({}, tests, LONGEST) is not Verdict.PASSED:
            print(f"{path}: its tests fail without a change: {', '.join(tests)}")
            return False
        made = mutants((ROOT / path).read_text())
        chosen = made if len(made) <= most else random.Random(0).sample(made, most)
        tried, left = _survivors(path, chosen, tests, deadline)
        share = 1 - len(left) / max(tried, 1)
        shares.append(share)
        line = f"| {path} | {len(made)} | {tried} | {share:.0%} |"
        print(line, flush=True)
        _write_score(path, line)
    return all(share >= WANTED for share in shares)


def _write_score(path: str, line: str) -> None:
    """Replaces the line of a file, and keeps those of the others."""
    known = {row.split(" | ")[0][2:]: row for row in SCORE.read_text().splitlines() if row.startswith("| ")}
    known[path] = line
    SCORE.write_text("\n".join([HEAD, *(known[path] for path in TARGETS if path in known), ""]))


HEAD = """# Mutation score

How many small changes of these files their tests notice, as `python -m mutants.run score` found. The changes are drawn
where not all of them were tried.

| file | changes | tried | noticed |
| --- | --- | --- | --- |"""


def _survivors(path: str, chosen: Sequence[Mutant], tests: Sequence[str], deadline: float) -> tuple[int, list[Mutant]]:
    """Returns how many were tried before the deadline, and those that no test noticed."""
    left, tried = [], 0
    for mutant in chosen:
        if time.monotonic() > deadline:
            break
        tried += 1
        if run_tests({path: mutant.source}, tests, LONGEST, CPU_SECONDS) is Verdict.PASSED:
            left.append(mutant)
            print(f"    {path}:{mutant.line}: {mutant.change}: not noticed", flush=True)
    return tried, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("planted", "score"))
    parser.add_argument("--most", type=int, default=100_000, help="changes of each file that are tried")
    parser.add_argument("--seconds", type=float, default=1e9, help="no other change is tried after so many")
    parser.add_argument("--file", action="append", choices=sorted(TARGETS), help="of the files, only this one")
    arguments = parser.parse_args()
    warm_up()
    if arguments.what == "planted":
        return int(not run_planted())
    existing = [path for path in TARGETS if (ROOT / path).exists()]
    return int(not run_score(arguments.file or existing, arguments.most, arguments.seconds))


if __name__ == "__main__":
    sys.exit(main())
