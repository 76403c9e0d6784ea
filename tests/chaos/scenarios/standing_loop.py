"""C4: no request, however large or costly, makes the front end's event loop stand, and so nobody else's stream."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc

from blora.proto.client import Client

from ..canary import Canary, canary, streams
from ..gates import Check, at_most, equal, gate, none_of
from ..room import Room, Server, copied

STANDING_MS = 10.0
GAP_MS = 20.0  # beyond a step
STREAMS, TOKENS = 8, 300
OTHERS = "others"  # their tenant: requests of one tenant wait for one another
ROUNDS = 5
# The memory keeps the cases' long prompts cached: one that is computed again keeps the streams behind it waiting.
OPTIONS = ("--memory", "1GB", "--block-size", "16", "--threads", "1", "--max-num-batched-tokens", "512")
GREEDY = {"temperature": 0.0, "ignore_eos": True}
# Costs as much as the conversation is long, so that a short one shows nothing when the adapter is loaded.
COSTLY_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% for k in range(50) %}{% endfor %}{% endfor %}"
    "{{ m.content }}{% endfor %}"
)
WORDS = "The quick brown fox jumps over the lazy dog. "

Ask = Callable[[Client], object]
Cases = Mapping[str, Ask]


def _prompt_of(num_bytes: int) -> str:
    return (WORDS * (num_bytes // len(WORDS) + 1))[:num_bytes]


def _chat(num_messages: int, num_bytes: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": _prompt_of(num_bytes // num_messages)} for _ in range(num_messages)]


# What a client asks for. Refusals are right for some, answers for others; a fault of the server is for none.
CASES: Cases = {
    "4 MB of token ids": lambda client: client.generate([1] * 1_300_000, max_tokens=1),
    "100,000 token ids": lambda client: client.generate([300] * 100_000, max_tokens=1),
    "1 MB of text": lambda client: client.generate(_prompt_of(1 << 20), max_tokens=1),
    "130 kB of text": lambda client: client.generate(_prompt_of(130_000), max_tokens=1),
    "text of 20,000 letters": lambda client: client.generate(_prompt_of(20_000), max_tokens=1),
    "90 kB of chat": lambda client: client.generate(_chat(30, 90_000), max_tokens=1),
    "1,000 messages of chat": lambda client: client.generate(_chat(1000, 60_000), max_tokens=1),
    "an adapter's costly template": lambda client: client.generate(_chat(1, 30_000), "slow", max_tokens=1),
    "n=16 with 20 logprobs": lambda client: client.generate(
        "x", n=16, logprobs=20, max_tokens=60, temperature=1.0, seed=1, ignore_eos=True
    ),
    "a stream of n=16 with 20 logprobs": lambda client: list(
        client.generate_stream("x", n=16, logprobs=20, max_tokens=60, temperature=1.0, seed=1, ignore_eos=True)
    ),
    "eight stop strings": lambda client: client.generate(
        "x", n=8, max_tokens=100, stop=[f"{'e' * n} never" for n in range(1, 9)], **GREEDY
    ),
    "prompt logprobs": lambda client: client.generate(_prompt_of(8000), prompt_logprobs=20, max_tokens=1),
    "40,000 biases": lambda client: client.generate("x", max_tokens=2, logit_bias=dict.fromkeys(range(40_000), 1.0)),
    "40,000 allowed tokens": lambda client: client.generate("x", max_tokens=2, allowed_token_ids=list(range(40_000))),
    "1,000 bad words": lambda client: client.generate("x", max_tokens=2, bad_words=[f"word {n}" for n in range(1000)]),
}


SALTS = map(str, itertools.count())

# What makes steps as long as the cases do, and is neither large nor costly. A prompt whose logprobs are told is
# computed each time; of others, which are sent again and again, all but the last block is cached.
PLAIN: Cases = {
    "as many rows": lambda client: client.generate("x", n=16, max_tokens=60, **GREEDY),
    "as long a prompt": lambda client: client.generate(_prompt_of(8000), max_tokens=1, cache_salt=next(SALTS)),
    "as long a cached prompt": lambda client: client.generate(_prompt_of(30_000), max_tokens=1),
}


@gate(
    "C4",
    "clients",
    f"{len(CASES)} kinds of large and costly requests, refused and accepted, while 8 streams of another tenant decode",
    "the front end's loop stands at most 10 ms; a gap in a stream is at most 20 ms longer than beside plain requests "
    "with as many rows and as long a prompt",
)
def standing_loop(room: Room) -> Iterator[Check]:
    adapters = {"slow": _with_template(room)}
    with room.server(room.real, *OPTIONS, adapters=adapters, planted="loop_meter") as server:
        for cases in (CASES, PLAIN):  # warms up: first uses start children, and fill the cache
            _send_all(server, cases, 1, Meter(room.folder))
        rounds = room.scaled(ROUNDS)
        calm, _ = _beside(room, server, PLAIN, Meter(room.folder), rounds)
        meter = Meter(room.folder)
        bird, faults = _beside(room, server, CASES, meter, rounds)
        yield none_of("faults of the server", faults, rounds * len(CASES))
        yield at_most(f"loop stands ({meter.worst_case})", meter.worst * 1e3, STANDING_MS, "ms")
        yield equal("answers of the streams", len(bird.answers | calm.answers), 1)
        failures = calm.failures + bird.failures
        yield none_of("failures of the streams", failures, len(calm.records + bird.records))
        yield at_most(
            "gap, beyond the longest beside plain requests", (bird.gap(100) - calm.gap(100)) * 1e3, GAP_MS, "ms"
        )


def _beside(room: Room, server: Server, cases: Cases, meter: "Meter", rounds: int) -> tuple[Canary, list[str]]:
    """Sends all cases beside streams, until both are done."""
    starts = range(0, 10 * rounds, 10)
    with canary(
        room, server, [s for start in starts for s in streams(STREAMS, TOKENS, start=start, tenant=OTHERS)]
    ) as bird:
        faults = _send_all(server, cases, rounds, meter)
    return bird, faults


def _send_all(server: Server, cases: Cases, rounds: int, meter: "Meter") -> list[str]:
    faults = []
    for _ in range(rounds):
        for name, ask in cases.items():
            try:
                ask(server.client)
            except grpc.RpcError as error:
                if error.code().name in ("UNKNOWN", "INTERNAL", "UNAVAILABLE"):
                    faults.append(f"{name}: {error.code().name} {error.details()}")
            meter.read(name)
    return faults


class Meter:
    """How long the loop stood, by what was asked, from what loop_meter notes."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "loop"
        self._place = len(self._file.read_text().splitlines()) if self._file.exists() else 0
        self.worst, self.worst_case = 0.0, "never long"

    def read(self, case: str) -> None:
        """Takes what was noted since the last call as caused by this case."""
        time.sleep(0.05)
        lines = self._file.read_text().splitlines()
        for line in lines[self._place :]:
            seconds = float(line.split()[0])
            if seconds > self.worst:
                self.worst, self.worst_case = seconds, case
            if seconds * 1e3 > STANDING_MS:
                print(f"  {case}: {line}", flush=True)
        self._place = len(lines)


def _with_template(room: Room) -> Path:
    folder: Path = copied(next(iter(room.real_adapters(1).values())), room.folder / "slow")
    (folder / "chat_template.jinja").write_text(COSTLY_TEMPLATE)
    return folder
