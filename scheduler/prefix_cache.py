"""Prefix keys: what makes the KV of a full block the same for two requests.

key = sha256(parent key, context, token ids), context = sha256(ordered (digest, scale) list, salt). An adapter enters by
its content digest, never by name, so replacing the weights under a name cannot hit stale KV.
"""

import hashlib
import struct
from array import array

from .request import AdapterUse, Request

ROOT = bytes(32)  # parent of a sequence's first block


def context_digest(adapters: tuple[AdapterUse, ...], salt: bytes) -> bytes:
    """32 bytes over an encoding in which every part has its length, so that no two contexts share one."""
    parts = [struct.pack("<II", len(adapters), len(salt)), salt]
    for digest, scale in adapters:
        name = digest.encode()
        parts += [struct.pack("<Id", len(name), scale), name]
    return hashlib.sha256(b"".join(parts)).digest()


def block_key(parent: bytes, context: bytes, token_ids: list[int]) -> bytes:
    return hashlib.sha256(parent + context + array("q", token_ids).tobytes()).digest()


def extend_block_keys(request: Request, block_size: int) -> None:
    """Appends the keys of the blocks that became full since the last call."""
    keys = request.block_keys
    num_full = request.num_tokens // block_size
    if len(keys) == num_full:
        return
    context = context_digest(request.adapters, request.cache_salt)
    for index in range(len(keys), num_full):
        tokens = request.token_ids[index * block_size : (index + 1) * block_size]
        keys.append(block_key(keys[-1] if keys else ROOT, context, tokens))
