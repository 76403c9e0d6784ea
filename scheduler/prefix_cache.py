"""Prefix keys: full blocks of two requests hold the same KV if their keys are equal.

key = sha256(parent key, context, token ids), context = sha256(ordered (digest, scale) list, base tokens, salt).
An adapter enters by its content digest, never by name, so replacing the weights under a name cannot hit stale KV.

The list is the one in force for the block's tokens. A block that ends before the request's adapters are activated
(aLoRA) has the key of a base model's block and is shared with base requests. The context of the block in which the
adapters are activated also holds the number of its base tokens, which come before the activation. In all later blocks
this number is 0, as it is for adapters that are always active.

The salt is that of the request. Blocks that lie wholly in the beginning that a request shares with everybody (a system
prompt that the operator names) have no salt; the salt begins with the next block, and every key after it depends on it.
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
        num_base = min(max(request.activation - index * block_size, 0), block_size)
        is_salted = (index + 1) * block_size > request.num_unsalted_tokens
        context = active if is_salted and not num_base else _context(request, num_base, block_size, is_salted)
        tokens = request.token_ids[index * block_size : (index + 1) * block_size]
        keys.append(block_key(keys[-1] if keys else ROOT, context, tokens))


def _context(request: Request, num_base_tokens: int, block_size: int, is_salted: bool) -> bytes:
    """Returns the context of a block of which the adapters do not change the first tokens."""
    salt = request.cache_salt if is_salted else b""
    if num_base_tokens == block_size:
        return context_digest((), salt)
    return context_digest(request.adapters, salt, num_base_tokens)
