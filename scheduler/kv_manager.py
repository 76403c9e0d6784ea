"""KVManager: the blocks that hold each request's KV. Owns the block tables; decides nothing about order."""

from collections.abc import Iterator, Sequence

from .block_pool import BlockPool
from .prefix_cache import extend_block_keys
from .request import Request


class KVManager:
    def __init__(self, pool: BlockPool, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.num_prefix_queries = 0  # tokens looked up in the prefix cache
        self.num_prefix_hits = 0  # tokens found in it
        self._pool = pool
        self.is_caching = enable_prefix_caching
        self._tables: dict[int, list[int]] = {}
        self._num_published: dict[int, int] = {}

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def block_table(self, request: Request) -> Sequence[int]:
        return self._tables[request.request_id]

    def find_prefix(self, request: Request) -> list[int]:
        """Returns the longest run of cached blocks from the start. The last token is always left to compute, because it
        gives the logits. A request for prompt logprobs gets no block, because it needs every prompt token's logits."""
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
        """Returns the number of free pages that admitting the request takes."""
        return self.blocks_for(request.num_tokens) - self.num_held(request)

    def num_held(self, request: Request) -> int:
        """Returns the number of blocks that a waiting request would share with running ones."""
        return sum(self._pool.is_held(page_id) for page_id in self.find_prefix(request))

    @property
    def num_entries(self) -> int:
        """Number of blocks of all running requests; a block that several of them share counts for each."""
        return sum(map(len, self._tables.values()))

    def num_lost_tokens(self, request: Request) -> int:
        """Returns the number of computed tokens that only this running request holds, and may have to compute again if
        it gives its blocks back."""
        num_kept = sum(self._pool.is_shared(page_id) for page_id in self._tables[request.request_id])
        return max(request.num_computed_tokens - num_kept * self.block_size, 0)

    def admit(self, request: Request) -> int | None:
        """Takes blocks for all known tokens, cached ones first. Returns the number of cached tokens, or None, with
        nothing taken, when too few pages are free."""
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
        """Takes the blocks that `num_tokens` tokens need beyond those held. Returns False, with nothing taken, when too
        few pages are free."""
        table = self._tables[request.request_id]
        fresh = self._pool.allocate(max(self.blocks_for(num_tokens) - len(table), 0))
        if fresh is None:
            return False
        table += fresh
        return True

    def publish(self, request: Request) -> None:
        """Makes the request's blocks findable whose tokens are all computed."""
        if not self.is_caching:
            return
        extend_block_keys(request, self.block_size)
        table = self._tables[request.request_id]
        num_full = request.num_computed_tokens // self.block_size
        for index in range(self._num_published[request.request_id], num_full):
            self._pool.publish(table[index], request.block_keys[index])
        self._num_published[request.request_id] = max(num_full, self._num_published[request.request_id])

    def release(self, request: Request, is_coming_back: bool = False) -> None:
        """Gives back the request's blocks; full blocks stay findable until they are evicted, last of all if the request
        is coming back. A request without blocks is allowed."""
        self._pool.release(reversed(self._tables.pop(request.request_id, [])), is_coming_back)
        self._num_published.pop(request.request_id, None)

    def retract(self, request: Request) -> None:
        """Takes the request's blocks out of the prefix cache, because their content cannot be trusted."""
        self._pool.retract(self._tables.get(request.request_id, ()))

    def owned_pages(self) -> Iterator[int]:
        """Yields one page id for every reference held."""
        for table in self._tables.values():
            yield from table

    @property
    def num_tables(self) -> int:
        return len(self._tables)
