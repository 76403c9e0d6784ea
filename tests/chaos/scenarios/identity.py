"""I1, I4, F6: tenants learn nothing of each other, strangers get nowhere, and unsigned adapters are not loaded."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blora.adapters.peft.signatures import SIGNATURE_FILE
from blora.engine.adapter_store.signers import sign_folder
from blora.proto.client import Client
from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2

from ..gates import Check, at_least, at_most, equal, gate, none_of, shown
from ..room import CONFIG, WEIGHTS, Room, copied

NUM_PROBES, NUM_TIMED, NUM_FLIPS = 400, 2000, 300
PROMPT_LENGTH, BLOCK = 65, 16
TOKENS = {"victim": "v" * 48, "attacker": "a" * 48, "operations": "o" * 48}
OPTIONS = ("--memory", "8MB", "--block-size", str(BLOCK))


def _identities(folder: Path) -> str:
    lines = ["identities:"]
    for name, token in TOKENS.items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        right = ", operator: true" if name == "operations" else ""
        lines.append(f"  - {{tenant: {name}, token_sha256: [{digest}]{right}}}")
    path = folder / "identities.yaml"
    path.write_text("\n".join(lines))
    return str(path)


def _auc(first: Sequence[float], second: Sequence[float]) -> float:
    """The probability that one of the first is more than one of the second; a tie is half."""
    pairs = [(a > b) + 0.5 * (a == b) for a in first for b in second]
    return sum(pairs) / len(pairs)


@gate(
    "I1",
    "clients",
    "400 probes: a tenant sends prompts that another has just sent, and prompts that nobody has",
    "by cached tokens the two differ in nothing (AUC 0.45 to 0.55); a tenant tells its own apart (at least 0.95)",
)
def prefix_probes(room: Room) -> Iterator[Check]:
    with room.server(room.tiny, *OPTIONS, "--identities", _identities(room.folder)) as server:
        clients = {name: Client(server.address, timeout=100, token=token) for name, token in TOKENS.items()}
        across = _probe(room, clients["victim"], clients["attacker"])
        within = _probe(room, clients["victim"], clients["victim"])
        yield at_least("AUC across tenants", across[0], 0.45)
        yield at_most("AUC across tenants", across[0], 0.55)
        yield at_least("AUC within a tenant", within[0], 0.95)
        yield shown("AUC of the time across tenants", across[1])
        yield shown("of the time within a tenant", within[1])


def _probe(room: Room, victim: Client, attacker: Client) -> tuple[float, float]:
    """How well an attacker tells what was sent from what was not, by cached tokens and by the time."""
    cached: dict[bool, list[float]] = {True: [], False: []}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(room.scaled(NUM_PROBES, least=20)):
        prompt = [room.rng.randrange(200) for _ in range(PROMPT_LENGTH)]
        is_sent = number % 2 == 0
        victim.generate(prompt if is_sent else prompt[::-1], max_tokens=1)
        began = time.perf_counter()
        answer = attacker.generate(prompt, max_tokens=1)
        seconds[is_sent].append(-(time.perf_counter() - began))
        cached[is_sent].append(answer.prompt.num_cached_tokens)
    return _auc(cached[True], cached[False]), _auc(seconds[True], seconds[False])


@gate(
    "I4",
    "clients",
    "every RPC without a token, with wrong ones, and with that of a tenant where operators are asked for; 2,000 "
    "refusals of tokens that are nearly right, and of others",
    "100 % UNAUTHENTICATED or PERMISSION_DENIED; the times of nearly right and of other tokens differ in nothing (AUC "
    "0.47 to 0.53)",
)
def strangers(room: Room) -> Iterator[Check]:
    with (
        room.server(room.tiny, *OPTIONS, "--identities", _identities(room.folder)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        ends = [f"{rpc}: {_end(channel, rpc, token)}" for rpc in _rpcs() for token in _wrong_tokens(room)]
        yield none_of("calls of strangers that went on", [e for e in ends if "UNAUTHENTICATED" not in e], len(ends))
        denied = [f"{rpc}: {_end(channel, rpc, TOKENS['victim'], body)}" for rpc, body in OPERATORS.items()]
        wrong = [end for end in denied if "PERMISSION_DENIED" not in end]
        yield none_of("operators' calls of a tenant that went on", wrong, len(denied))
        near, other = TOKENS["operations"][:-1] + "x", "z" * 48
        times = {near: [], other: []}  # type: dict[str, list[float]]
        for number in range(2 * room.scaled(NUM_TIMED, least=100)):
            token = (near, other)[number % 2]
            began = time.perf_counter()
            _end(channel, "/blora.v1.EngineService/GetInfo", token)
            times[token].append(time.perf_counter() - began)
        found = _auc(times[near], times[other])
        margin = 0.03 if room.scale >= 1 else 0.2
        yield at_least("AUC of the times", found, 0.5 - margin)
        yield at_most("AUC of the times", found, 0.5 + margin)


OPERATORS = {
    "/blora.v1.AdapterService/LoadAdapter": adapters_pb2.LoadAdapterRequest(name="a", path="/x").SerializeToString(),
    "/blora.v1.AdapterService/InspectAdapter": adapters_pb2.InspectAdapterRequest(path="/x").SerializeToString(),
}


def _rpcs() -> list[str]:
    modules = (adapters_pb2, engine_pb2, generation_pb2)
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def _wrong_tokens(room: Room) -> list[str | None]:
    right = TOKENS["operations"]
    drawn = ["".join(room.rng.choices("abcdef0123456789", k=48)) for _ in range(5)]
    return [None, "", right[:-1], right + "o", right.upper(), hashlib.sha256(right.encode()).hexdigest(), *drawn]


def _end(channel: grpc.Channel, rpc: str, token: str | None, body: bytes = b"") -> str:
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    try:
        channel.unary_unary(rpc)(body, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@gate(
    "F6",
    "adapters",
    "a signed adapter is changed in 300 places, byte by byte in every file, its signature included, and loaded",
    "each is refused with FAILED_PRECONDITION; the adapter as it was signed is loaded",
)
def tampered(room: Room) -> Iterator[Check]:
    key = Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    (room.folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    signers = room.folder / "signers.pem"
    signers.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    root = room.folder / "root"
    folder = copied(room.adapter, root / "signed")
    flags = ("--memory", "8MB", "--adapter-root", str(root), "--adapter-signers", str(signers))
    with room.server(room.tiny, *flags) as server:

        def load() -> str:
            return _load(server.client, str(folder))

        yield equal("an adapter without a signature", load(), "FAILED_PRECONDITION")
        sign_folder(folder, room.folder / "key.pem")
        yield equal("a signed adapter", load(), "OK")
        number, wrong = room.scaled(NUM_FLIPS, least=9), []
        for index in range(number):
            file = folder / (CONFIG, WEIGHTS, SIGNATURE_FILE)[index % 3]
            wrong += _flipped(room, file, load)
        yield none_of("changed adapters that were not refused", wrong, number)
        yield equal("the adapter as it was signed", load(), "OK")


def _flipped(room: Room, file: Path, load: Callable[[], str]) -> list[str]:
    """Changes a bit of a file, loads, and changes it back."""
    content = file.read_bytes()
    place, bit = room.rng.randrange(len(content)), 1 << room.rng.randrange(8)
    changed = bytes([*content[:place], content[place] ^ bit, *content[place + 1 :]])
    if changed.split() == content.split():  # a blank for another one between a signature's parts
        return []
    file.write_bytes(changed)
    end = load()
    file.write_bytes(content)
    return [] if end == "FAILED_PRECONDITION" else [f"{file.name}, byte {place}: {end}"]


def _load(client: Client, path: str) -> str:
    try:
        client.load_adapter("signed", path)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"
