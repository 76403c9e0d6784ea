"""I2: no two different prefixes have one key in the prefix cache."""

from collections.abc import Iterator

from ..gates import Check, equal, gate
from ..room import Room

KEYS = 1_000_000
BLOCK = 4
DIGESTS, SCALES = ("a", "aa", "b", "ab"), (1.0, 1.5, -1.0)


@gate(
    "I2",
    "requests",
    "1,000,000 random and nearly equal prefixes: tokens, order and scale of adapters, salts, activation, parents",
    "0 pairs with one key",
)
def keys(room: Room) -> Iterator[Check]:
    from blora.scheduler.prefix_cache import ROOT, block_key, context_digest

    draw = room.rng
    seen: dict[bytes, tuple[object, ...]] = {}
    collisions = tried = 0
    parents = [ROOT]
    while tried < room.scaled(KEYS):
        adapters = tuple((draw.choice(DIGESTS), draw.choice(SCALES)) for _ in range(draw.choice([0, 1, 2])))
        salt = draw.choice([b"", b"a", b"aa", b"\0", b"a\0", draw.randbytes(2)])
        num_base = draw.randrange(BLOCK) if adapters else 0
        parent, tokens = draw.choice(parents), [draw.choice([0, 1, 2, 255, 256, 65536]) for _ in range(BLOCK)]
        for changed in range(BLOCK + 1):
            near = [token + (place == changed) for place, token in enumerate(tokens)]
            key = block_key(parent, context_digest(adapters, salt, num_base), near)
            meaning = (parent, adapters, salt, num_base, tuple(near))
            collisions += seen.setdefault(key, meaning) != meaning
            tried += 1
        if len(parents) < 1000:
            parents.append(key)
    yield equal("pairs with one key", collisions, 0)
    yield equal("different prefixes", len(seen), len(set(seen.values())))
