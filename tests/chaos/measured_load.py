"""Measured load: open-loop load on the default model, its goodput, and the server's capacity, which is found once. At a
small scale the tiny model takes its place, in steps of the same length."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from blora.bench.load import Load, Objective, Record, Traffic, make_plan
from blora.bench.load.summary import percentile
from blora.bench.trace import TraceShape

from .room import Room, Server

OBJECTIVE = Objective(ttft=1.0, itl=0.1)
# What an operator with this objective tells the server.
OPTIONS = (
    *("--memory", "512MB", "--block-size", "16", "--threads", "2", "--max-num-batched-tokens", "2048"),
    *("--max-queue-seconds", str(OBJECTIVE.ttft / 2)),
)
ADAPTERS = ("a0", "a1", "a2", "a3")
VOCAB_SIZE = 250  # ids that both models have
PROMPT_LEN, OUTPUT_LEN = (16, 112), (16, 48)
WARM_SECONDS = 5.0  # at the beginning of a run, which do not count
FIRST_RATE, GROWTH = 3.0, 1.4  # requests/s
FULL = 0.8
PROBE_SECONDS = 25.0

# What an operator adds who has more requests than the server can take: tokens of all of them would come later than the
# objective, each a little.
IN_OVERLOAD = ("--target-itl", str(0.8 * OBJECTIVE.itl))

_found: dict[tuple[int, float, tuple[str, ...]], float] = {}


@contextmanager
def measured_server(room: Room, *options: str) -> Iterator[Server]:
    """options: override OPTIONS."""
    is_real = room.scale == 1
    model, adapters = (room.real, room.real_adapters) if is_real else (room.tiny, room.adapters)
    with room.server(
        model, *OPTIONS, *options, adapters=adapters(len(ADAPTERS)), planted="" if is_real else "paced"
    ) as server:
        yield server


def traffic(
    room: Room,
    rate: float,
    seconds: float,
    start: float = 0.0,
    tenant: str = "",
    input_len: tuple[int, int] = PROMPT_LEN,
    output_len: tuple[int, int] = OUTPUT_LEN,
    adapters: Sequence[str] | None = None,
) -> Traffic:
    """Requests for the base model and the adapters, whose prompts have nothing in common."""
    names = ["", *ADAPTERS] if adapters is None else adapters
    shape = TraceShape(
        adapters=len(names),
        rate=rate,
        seconds=seconds,
        alpha=0.0,
        input_len=input_len,
        output_len=output_len,
        seed=room.rng.randrange(1 << 30),
    )
    return Traffic(shape=shape, vocab_size=VOCAB_SIZE, adapters=names, start=start, tenant=tenant)


def goodput(records: Iterable[Record], begin: float, end: float) -> float:
    """Good requests/s that ended between two seconds of the run."""
    good = [r for r in records if OBJECTIVE.is_met(r) and r.ended is not None and begin <= r.ended < end]
    return len(good) / (end - begin)


def drive_at(room: Room, server: Server, rate: float, seconds: float) -> Load:
    return room.drive(server, make_plan(traffic(room, rate, seconds)))


def capacity(room: Room, server: Server, *options: str) -> float:
    """Returns the requests/s that the server can serve well. It is found once for its options in a run."""
    key = room.seed, room.scale, options
    if key not in _found:
        _found[key] = _find_capacity(room, server)
    return _found[key]


def _find_capacity(room: Room, server: Server) -> float:
    """Raises the rate until less than FULL of what arrives is good, twice in a row. The highest goodput on the way is
    the capacity; a rate beyond it would measure how fast requests are refused."""
    seconds = room.seconds(PROBE_SECONDS, least=WARM_SECONDS + 10)
    rate, best, num_full = FIRST_RATE, 0.0, 0
    while num_full < 2:
        reached = goodput(drive_at(room, server, rate, seconds).records, WARM_SECONDS, seconds)
        print(f"  {reached:.2f} good requests/s at {rate:.2f}/s", flush=True)
        num_full = num_full + 1 if reached < FULL * rate else 0
        best = max(best, reached)
        rate *= GROWTH
    return best


def p(values: Iterable[float | None], percent: float) -> float:
    """A percentile; infinite where there is no value, so that no limit holds."""
    ordered = sorted(value for value in values if value is not None)
    return percentile(ordered, percent) if ordered else float("inf")


def arrived(records: Iterable[Record], begin: float, end: float) -> list[Record]:
    return [record for record in records if begin <= record.planned.seconds < end]
