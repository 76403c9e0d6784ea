"""Results: what each gate has reached, in one JSON file, and the table of docs/reliability.md that is made from it."""

import json
import subprocess
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .gates import GATES, Check, Gate
from .room import Room

ROOT = Path(__file__).parents[2]
FILE = ROOT / "bench/results/reliability.json"
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- results: written by make chaos -->", "<!-- end of results -->"
MOST_TEXT = 300  # characters of an error in the table


def try_gate(gate: Gate, seed: int, scale: float) -> dict[str, Any]:
    """Runs a scenario; returns its result as plain data. An error in it is a gate that failed."""
    started = time.monotonic()
    checks: list[Check] = []
    with Room(gate.id, seed, scale) as room:
        try:
            checks.extend(gate.scenario(room))
        except Exception as error:
            traceback.print_exc()
            checks.append(Check("the scenario runs", f"{type(error).__name__}: {error}"[:MOST_TEXT], False))
    return {
        "checks": [{"wanted": c.wanted, "reached": c.reached, "is_held": c.is_held} for c in checks],
        "is_passed": all(check.is_held for check in checks),
        "seed": seed,
        "scale": scale,
        "seconds": round(time.monotonic() - started, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def commit() -> str:
    """Returns the commit of the tree, with a plus sign if the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def read_results(file: Path = FILE) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}  # type: ignore[no-any-return]


def write_results(results: Mapping[str, Any], file: Path) -> None:
    ordered = {gate_id: results[gate_id] for gate_id in GATES if gate_id in results}
    file.write_text(json.dumps(ordered, indent=1) + "\n")


def table_of(results: Mapping[str, Any]) -> str:
    """Returns the table of all gates. Gates that were not tried at their own numbers are shown as not run."""
    lines = ["| gate | what is done | wanted | reached | |", "|---|---|---|---|---|"]
    for gate in GATES.values():
        result = results.get(gate.id)
        lines.append(f"| {gate.id} | {gate.title} | {gate.wanted} | {_reached(result)} | {_verdict(result)} |")
    return "\n".join(lines)


def _reached(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    parts = [check["reached"] if check["is_held"] else f"**{check['reached']}**" for check in result["checks"]]
    told = f"seed {result['seed']}, {result['seconds']:.0f} s, {result['commit']}"
    return "; ".join(part.replace("|", "\\|").replace("\n", " ") for part in parts) + f" ({told})"


def _verdict(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not run"
    return "passed" if result["is_passed"] else "**failed**"


def page_with(table: str, page: str) -> str:
    """Returns the page with another table."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def summary_of(gate: Gate, result: Mapping[str, Any]) -> str:
    """Returns a few lines for the terminal."""
    head = f"{gate.id} {'passed' if result['is_passed'] else 'FAILED'} in {result['seconds']:.0f} s: {gate.title}"
    marks = [
        f"  {'ok  ' if check['is_held'] else 'FAIL'} {check['reached']}" + _against(check) for check in result["checks"]
    ]
    return "\n".join([head, *marks])


def _against(check: Mapping[str, Any]) -> str:
    return "" if check["is_held"] or not check["wanted"] else f" (wanted: {check['wanted']})"
