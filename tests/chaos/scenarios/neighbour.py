"""E4: a tenant that sends twenty times its share takes nothing of the others' shares, nor of the pace of their
streams."""

from collections.abc import Iterator, Sequence

from blora.bench.load import Record, Traffic, make_plan

from ..canary import streams
from ..gates import Check, at_least, at_most, gate, none_of, shown
from ..measured_load import ADAPTERS, WARM_SECONDS, capacity, goodput, measured_server, p, traffic
from ..room import Room, Server

TENANTS = ("a", "b", "c", "d")
NOISY, TIMES = "noisy", 20
NOISY_PROMPTS = (300, 500)  # tokens
LOAD = 0.8  # of the capacity, that the four and a fifth like them would take together
RUN_SECONDS = 60.0
GOODPUT, FIRST_TOKEN, GAP = 0.9, 2.0, 3.0
NUM_TOKENS = 200  # of the streams that decode without prompts beside them


@gate(
    "E4",
    "overload",
    "four tenants at their fair share, with an adapter each; a fifth sends 20 times as many requests, of 400 tokens",
    "the four keep 90 % of their goodput, first tokens (p99) come at most twice as late, gaps (p99) are at most 3 "
    "times those of as many decoding rows without prompts",
)
def neighbour(room: Room) -> Iterator[Check]:
    with measured_server(room) as server:
        rate = capacity(room, server)
        seconds = room.seconds(RUN_SECONDS, least=3 * WARM_SECONDS)
        share = LOAD * rate / (len(TENANTS) + 1)
        fair = [
            traffic(room, share, seconds, tenant=tenant, adapters=[adapter])
            for tenant, adapter in zip(TENANTS, ADAPTERS, strict=True)
        ]
        noisy = traffic(room, TIMES * share, seconds, tenant=NOISY, input_len=NOISY_PROMPTS)
        calm = _drive(room, server, fair, seconds)
        beside = _drive(room, server, [*fair, noisy], seconds)
        others = [record for record in beside if record.planned.tenant != NOISY]
        kept = goodput(others, WARM_SECONDS, seconds) / goodput(calm, WARM_SECONDS, seconds)
        yield at_least("goodput kept by the others", kept, GOODPUT, "%")
        later = p((r.ttft for r in others), 99) / p((r.ttft for r in calm), 99)
        yield at_most("first token (p99), beside / without", later, FIRST_TOKEN)
        num_rows = _decoding_rows(beside, WARM_SECONDS, seconds)
        gap, alone = _gap(others), _gap(_decode_only(room, server, num_rows))
        yield at_most(f"gap (p99) / that of {num_rows} rows without prompts", gap / alone, GAP)
        yield shown("their gap (p99)", gap * 1e3, "ms")
        refused = [record for record in others if record.status != "OK"]
        yield shown("of the others refused", len(refused) / len(others), "%")
        yield shown("tokens/s with the neighbour", _tokens(beside) / seconds)
        yield shown("without", _tokens(calm) / seconds)
        ends = {record.status for record in beside} - {"OK", "RESOURCE_EXHAUSTED"}
        yield none_of("other ends", sorted(ends), len(beside))


def _drive(room: Room, server: Server, traffics: Sequence[Traffic], seconds: float) -> list[Record]:
    records = room.drive(server, make_plan(*traffics)).records
    return [record for record in records if record.planned.seconds < seconds]


def _decoding_rows(records: Sequence[Record], begin: float, end: float) -> int:
    """Returns the mean number of streams that had their first token and not yet their last."""
    decoding = (
        max(min(record.token_times[-1], end) - max(record.token_times[0], begin), 0.0)
        for record in records
        if record.token_times
    )
    return max(round(sum(decoding) / (end - begin)), 1)


def _decode_only(room: Room, server: Server, num_rows: int) -> list[Record]:
    """Streams of the same number of rows, from the time at which all decode."""
    records = room.drive(server, streams(num_rows, NUM_TOKENS)).records
    for record in records:
        del record.token_times[: len(record.token_times) // 5]
    return records


def _gap(records: Sequence[Record]) -> float:
    return p((gap for record in records for gap in record.gaps), 99)


def _tokens(records: Sequence[Record]) -> int:
    """Tokens of prompts and answers that were computed."""
    return sum(len(record.planned.prompt) + record.num_tokens for record in records if record.token_times)
