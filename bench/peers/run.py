"""Runs the same work on blora and on other engines, in turns. Writes one table, and JSON for plots.

    python bench/peers/environments.py      # once: makes the peers' environments, some GB
    python bench/peers/run.py               # all of it, most of an hour
    python bench/peers/run.py --rounds 1 --rows 1,16 --peers blora,openvino

The work is rows of random prompts, greedy, without an end token, and random adapters of rank 16 on all seven modules,
spread evenly over the rows. The report names a peer that fails, or whose environment is missing, with the reason; the
other peers go on.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# When Python runs this file, it looks for modules beside it only, not in the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.machine import describe
from bench.peers.entry import Entry, entries
from bench.peers.field import Field, progress
from bench.peers.isolation import Isolation, check_isolation
from bench.peers.measure import measure
from bench.peers.report import format_notes, format_table, summarise
from bench.peers.work import Work
from bench.peers.worker import Worker
from bench.random_adapters import ALL_MODULES, make_adapters

ROOT = Path(__file__).resolve().parents[2]
RANK = 16
# The instruction sets by which the kernels of these engines differ.
CPU_FLAGS = ("avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_bf16")
LOGS = Path(".cache/peers/logs")


def main() -> None:
    args = parse_arguments()
    # A process that is ended from outside still ends its workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    work = Work(args.rows, args.adapters, args.prompt_len, args.output_len, vocabulary(args.model), args.seed)
    chosen = choose(entries(args.model, args.environments), args.peers)
    adapters = random_adapters(args.model, work.adapters)
    field = Field(chosen, lambda entry: start_worker(entry, work, adapters, args))
    summary = {"kind": "peers", **machine(args.threads), "rounds": args.rounds, **run(field, chosen, work, args.rounds)}
    write(args.json, summary)
    print(format_table(summary))
    print()
    print(format_notes(summary))


def run(field: Field, chosen: Sequence[Entry], work: Work, rounds: int) -> dict[str, Any]:
    isolation: dict[Entry, Isolation] = {}
    with field.running():
        greetings = field.greetings()
        for entry in field.entries("adapters") if work.adapters else []:
            progress(f"{entry.name}: do base rows stay base rows?")
            found = check_isolation(field, entry, work)
            if found is not None:
                isolation[entry] = found
        measured = measure(field, work, rounds)
    return summarise(work, chosen, measured, greetings, field.out, isolation)


def write(path: Path, summary: dict[str, Any]) -> None:
    """Writes the report, without this machine's paths, which reasons may contain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1).replace(f"{ROOT}/", "") + "\n")


def start_worker(entry: Entry, work: Work, adapters: Sequence[Path], args: argparse.Namespace) -> Worker:
    command = entry.full_command(work, args.threads, adapters)
    return Worker(command, LOGS / f"{entry.name}.log", args.start_seconds, args.job_seconds)


def choose(everybody: Sequence[Entry], names: Sequence[str] | None) -> list[Entry]:
    """Returns the entries of the named peers. Raises SystemExit for an unknown name."""
    unknown = set(names or []) - {entry.peer for entry in everybody}
    if unknown:
        raise SystemExit(f"there is no peer {', '.join(sorted(unknown))}")
    return [entry for entry in everybody if names is None or entry.peer in names]


def random_adapters(model: Path, count: int) -> list[Path]:
    folder = Path(".cache/bench-adapters") / f"{model.name}-all-{RANK}"
    return make_adapters(model, folder, count, (RANK,), ALL_MODULES) if count else []


def vocabulary(model: Path) -> int:
    size: int = json.loads((model / "config.json").read_text())["vocab_size"]
    return size


def machine(threads: int) -> dict[str, Any]:
    description = describe()
    description["machine"] |= {"threads": threads, "flags": cpu_flags()}
    return description


def cpu_flags() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [flag for flag in CPU_FLAGS if flag in found]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    default = "(default: %(default)s)"
    add(
        "--model", type=Path, default=Path(".cache/models/SmolLM2-135M-Instruct"), help=f"Hugging Face folder {default}"
    )
    add("--environments", type=Path, default=Path(".cache/peers"), help=f"folder of the environments {default}")
    add("--peers", type=names, metavar="LIST", help="peers to run (default: all)")
    add("--rows", type=counts, default=(1, 16, 64), metavar="LIST", help="numbers of rows (default: 1,16,64)")
    add("--adapters", type=int, default=8, metavar="N", help=f"adapters to mix; 0 leaves these cases out {default}")
    add("--prompt-len", type=int, default=64, metavar="TOKENS", help=f"tokens of a prompt {default}")
    add("--output-len", type=int, default=64, metavar="TOKENS", help=f"tokens of an output {default}")
    add("--rounds", type=int, default=5, metavar="N", help=f"measured rounds {default}")
    add("--threads", type=int, default=2, metavar="N", help=f"compute threads of every peer {default}")
    add("--seed", type=int, default=0, help=f"seed of the prompts {default}")
    add("--start-seconds", type=float, default=900, help=f"seconds for a peer to load {default}")
    add("--job-seconds", type=float, default=600, help=f"seconds for one pass {default}")
    add("--json", type=Path, default=Path("bench/results/peers.json"), help=f"write the report here {default}")
    return parser.parse_args()


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
