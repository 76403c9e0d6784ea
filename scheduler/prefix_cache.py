"""Prefix keys: full blocks of two requests hold the same KV if their keys are equal.

key = sha256(parent key, context, token ids), context = sha256(ordered (digest, scale) list, base tokens, salt).
An adapter enters by its content digest, never by name, so replacing the weights under a name cannot hit stale KV.

The list is the one in force for the block's tokens. A block that ends before the request's adapters are activated
(aLoRA) has the key of a base model's block and is shared with base requests. The context of the block in which the
adapters are activated also holds the number of its base tokens, which come before the activation. In all later blocks
this number is 0, as it is for adapters that are always active.
"""

import hashlib
import struct
from array import array

from .request import AdapterUse, Request

ROOT = bytes(32)  # parent key of a sequence's first block


def context_digest(adapters: tuple[AdapterUse, ...], salt: bytes, num_base_tokens: int = 0) -> bytes:
    """Returns 32 bytes over an encoding in which every part has its length, so that no two contexts share an encoding.

    num_base_tokens: number of the block's tokens that come before the adapters are activated.
    """
    parts = [struct.pack("<III", num_base_tokens, len(adapters), len(salt)), salt]
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
    active = context_digest(request.adapters, request.cache_salt)
    for index in range(len(keys), num_full):
        num_base = request.activation - index * block_size
        context = active if num_base <= 0 else _context_before(request, min(num_base, block_size), block_size)
        tokens = request.token_ids[index * block_size : (index + 1) * block_size]
        keys.append(block_key(keys[-1] if keys else ROOT, context, tokens))


def _context_before(request: Request, num_base_tokens: int, block_size: int) -> bytes:
    """Returns the context of a block of which the adapters change only the last tokens, or none."""
    if num_base_tokens == block_size:
        return context_digest((), request.cache_salt)
    return context_digest(request.adapters, request.cache_salt, num_base_tokens)
