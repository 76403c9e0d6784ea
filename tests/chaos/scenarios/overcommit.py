"""E5: more requests run than their KV has room. All end, and little is computed twice."""

from collections.abc import Iterator

from blora.bench.load import Planned

from ..gates import Check, at_most, gate, none_of
from ..mixed import GREEDY, VOCAB_SIZE
from ..room import Room

TIMES = (3, 5, 10)  # the KV that all requests would need at once, over what there is
REQUESTS = 60
PROMPT_LEN, OUTPUT_LEN = (20, 200), (100, 400)
LENGTHS = (GREEDY, {**GREEDY, "stop": ["never comes"]})  # an answer's, that is certain, and that is not
RECOMPUTED, PREEMPTIONS = 0.10, 3.0
PAGE_BYTES = 4 * 2 * 2 * 8 * 4 * 4  # tiny: layers, K and V, heads, their width, float32, tokens of a block


@gate(
    "E5",
    "overload",
    "60 requests whose KV would take 3, 5 and 10 times the memory",
    "every accepted request ends with the tokens that it has alone; at most 10 % of the tokens are computed again; at "
    "most 3 preemptions a request",
)
def overcommit(room: Room) -> Iterator[Check]:
    oracle = room.oracle(room.tiny)
    for times in TIMES:
        plan = [
            Planned(
                seconds=0.0,
                prompt=room.rng.choices(range(VOCAB_SIZE), k=room.rng.randint(*PROMPT_LEN)),
                max_tokens=room.rng.randint(*OUTPUT_LEN),
                sampling=dict(room.rng.choice(LENGTHS)),
            )
            for _ in range(room.scaled(REQUESTS, least=20))
        ]
        needed = sum(len(planned.prompt) + planned.max_tokens for planned in plan)
        memory = needed // times // 4 * PAGE_BYTES
        with room.server(room.tiny, "--memory", str(memory), "--max-num-seqs", "128") as server:
            records = room.drive(server, plan).records
            info = server.client.info()
            server.settle()
        statuses = [f"{record.status}: {record.details}" for record in records if record.status != "OK"]
        yield none_of(f"requests at {times}x that did not end well", statuses, len(records))
        yield none_of("wrong answers", oracle.differences(records), len(records))
        # Prompts have nothing in common: what was given memory beyond them had it before.
        again = info.num_prompt_tokens - info.num_cached_tokens - sum(len(planned.prompt) for planned in plan)
        yield at_most(f"computed again at {times}x", again / needed, RECOMPUTED, "%")
        yield at_most(f"preemptions a request at {times}x", info.num_preemptions / len(records), PREEMPTIONS)
