"""KVManager: which blocks hold the KV of which request. Owns the block tables; decides nothing about order."""

from collections.abc import Iterator, Sequence

from .block_pool import BlockPool
from .prefix_cache import extend_block_keys
from .request import Request


class KVManager:
    def __init__(self, pool: BlockPool, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.num_prefix_queries = 0  # tokens looked up
        self.num_prefix_hits = 0  # tokens found
        self._pool = pool
        self.is_caching = enable_prefix_caching
        self._tables: dict[int, list[int]] = {}
        self._num_published: dict[int, int] = {}

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def block_table(self, request: Request) -> Sequence[int]:
        return self._tables[request.request_id]

    def find_prefix(self, request: Request) -> list[int]:
        """The longest run of cached blocks from the start. The last token is always left to compute: it gives the
        logits; and a request for prompt logprobs needs every prompt token's logits."""
        if not self.is_caching or request.sampling.prompt_logprobs is not None:
            return []
        extend_block_keys(request, self.block_size)
        hits: list[int] = []
        for key in request.block_keys[: (request.num_tokens - 1) // self.block_size]:
            page_id = self._pool.find(key)
            if page_id is None:
                break
            hits.append(page_id)
        return hits

    def num_needed(self, request: Request) -> int:
        """Pages that admitting the request takes from the free list."""
        num_held = sum(self._pool.is_held(page_id) for page_id in self.find_prefix(request))
        return self.blocks_for(request.num_tokens) - num_held

    def admit(self, request: Request) -> int | None:
        """Takes blocks for all known tokens, cached ones first. Returns the number of tokens found, None if too few."""
        hits = self.find_prefix(request)
        self._pool.share(hits)
        fresh = self._pool.allocate(self.blocks_for(request.num_tokens) - len(hits))
        if fresh is None:
            self._pool.release(reversed(hits))
            return None
        for key in request.block_keys[len(hits) :]:
            self._pool.note_miss(key)
        self._tables[request.request_id] = hits + fresh
        self._num_published[request.request_id] = len(hits)
        self.num_prefix_queries += request.num_tokens
        self.num_prefix_hits += len(hits) * self.block_size
        return len(hits) * self.block_size

    def extend(self, request: Request, num_tokens: int) -> bool:
        """Takes the blocks that `num_tokens` tokens need beyond those held; False, and nothing taken, if too few."""
        table = self._tables[request.request_id]
        fresh = self._pool.allocate(max(self.blocks_for(num_tokens) - len(table), 0))
        if fresh is None:
            return False
        table += fresh
        return True

    def publish(self, request: Request) -> None:
        """Makes the blocks findable that are full of computed tokens."""
        if not self.is_caching:
            return
        extend_block_keys(request, self.block_size)
        table = self._tables[request.request_id]
        num_full = request.num_computed_tokens // self.block_size
        for index in range(self._num_published[request.request_id], num_full):
            self._pool.publish(table[index], request.block_keys[index])
        self._num_published[request.request_id] = max(num_full, self._num_published[request.request_id])

    def release(self, request: Request) -> None:
        """Gives every block back; full ones stay findable until they are evicted. A request without blocks is fine."""
        self._pool.release(reversed(self._tables.pop(request.request_id, [])))
        self._num_published.pop(request.request_id, None)

    def retract(self, request: Request) -> None:
        """Takes the request's blocks out of the prefix cache: what was computed into them is not to be trusted."""
        self._pool.retract(self._tables.get(request.request_id, ()))

    def owned_pages(self) -> Iterator[int]:
        """Every reference held, one entry each."""
        for table in self._tables.values():
            yield from table

    @property
    def num_tables(self) -> int:
        return len(self._tables)
