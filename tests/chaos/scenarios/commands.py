"""A2, A3, J1, J2: gates that other programs of this repository prove; their commands run at the gate's numbers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from ..gates import Check, gate
from ..room import ROOT, Room


@gate(
    "A2",
    "inside",
    "2,000 seeds of 300 steps of the whole engine in simulation, with deaths, faults, cancels and drains",
    "no unsafe read, exactly one end of each request, answers as alone, everything given back, one trace for each seed",
)
def simulated(room: Room) -> Iterator[Check]:
    yield _python("simulation", "simulation.run", "--seeds", str(room.scaled(2000, least=5)), "--steps", "300")


@gate(
    "A3",
    "inside",
    "the 18 historical bugs are planted, one at a time",
    "each is noticed by the test that it names (`make mutants` measures the score over small changes, for hours)",
)
def planted_bugs(_: Room) -> Iterator[Check]:
    yield _python("planted bugs", "mutants.run", "planted")


@gate(
    "J1",
    "inside",
    "50,000 random shapes, ranks and tables on every build of the kernels; 2,000 more, and the kernels' tests, under "
    "AddressSanitizer and UBSan",
    "every result is the reference's; 0 reports",
)
def random_shapes(room: Room) -> Iterator[Check]:
    cases = str(room.scaled(50_000, least=100))
    yield _python("random cases", "kernel_cases.grid", "--cases", cases, "--seed", str(room.seed))
    yield _command("sanitizers", ["make", "sanitize", f"SANITIZED_CASES={room.scaled(2000, least=20)}"])


@gate(
    "J2",
    "inside",
    "hostile indices, dtypes, sizes and strides for every kernel, on every build",
    "a Python error before the kernel sees them, never a signal",
)
def hostile_calls(_: Room) -> Iterator[Check]:
    yield _python("hostile calls", "pytest", "engine/kernels/test_hostile.py", "-p", "no:cacheprovider")


def _python(what: str, module: str, *arguments: str) -> Check:
    return _command(what, [sys.executable, "-m", module, *arguments], folder="tests")


def _command(what: str, command: Sequence[str], folder: str = "") -> Check:
    """Runs a program of the repository; shows its last line, which tells how it went."""
    began = time.monotonic()
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT / folder, env=environment, capture_output=True, text=True)
    last = ((done.stdout + done.stderr * bool(done.returncode)).strip().splitlines() or [""])[-1]
    status = f", status {done.returncode}" if done.returncode else ""
    told = f"{what}: {last.strip('= ')} in {time.monotonic() - began:.0f} s{status}"
    return Check(f"{what} succeed", told, not done.returncode)
