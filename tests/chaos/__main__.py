"""Tries the gates of docs/reliability.md against real servers. `make chaos` starts it.

python -m chaos                          all parts, 2.5 hours; writes bench/results/reliability.json and the page
python -m chaos overload G3              a part, a gate
python -m chaos --scale 0.01             a hundredth of the numbers, in minutes, to see that the scenarios work
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import scenarios
from .gates import GATES, PARTS
from .results import FILE, PAGE, page_with, read_results, summary_of, table_of, try_gate, write_results


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    if args.page:
        return _write_page()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that servers are ended, too
    results, num_failed = read_results(args.json) if args.json else {}, 0
    for gate in [gate for gate in GATES.values() if not args.which or {gate.id, gate.part} & set(args.which)]:
        print(f"{gate.id}: {gate.title} ...", flush=True)
        result = try_gate(gate, args.seed, args.scale)
        print(summary_of(gate, result), flush=True)
        num_failed += not result["is_passed"]
        if args.json:
            results[gate.id] = result
            write_results(results, args.json)
            if args.json == FILE:
                _write_page()
    print(f"{num_failed} gates failed" if num_failed else "all is well")
    return int(num_failed > 0)


def _write_page() -> int:
    PAGE.write_text(page_with(table_of(read_results()), PAGE.read_text()))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"gates, or parts: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the gates' numbers (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--json", type=Path, help=f"results (default: {FILE.name} of the repository, at scale 1 only)")
    parser.add_argument("--page", action="store_true", help="only write docs/reliability.md from the results")
    args = parser.parse_args(arguments)
    unknown = set(args.which) - set(PARTS) - GATES.keys()
    if unknown:
        parser.error(f"no gate or part is named {', '.join(sorted(unknown))}; there are {', '.join(GATES)}")
    if args.json is None and args.scale == 1:
        args.json = FILE
    return args


assert scenarios  # importing them fills GATES

if __name__ == "__main__":
    sys.exit(main())
