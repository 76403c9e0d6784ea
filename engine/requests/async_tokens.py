"""AsyncTokens: the tokens of a prompt and the text of tokens, for callers who want no answer to them.

A prompt is read as that of a request is, long ones in a child. Owns nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..adapter_store.lifecycle import AsyncAdapters
from ..errors import InvalidRequest
from ..front_end.adapter_choice import Adapter
from ..front_end.calls import Call
from ..front_end.front_end import FrontEnd, Opened
from ..front_end.validator import as_token_ids, check_count
from ..ipc.text_client import TextClients
from ..ipc.turns import Turns
from ..outputs import Tokens
from ..text.text_work import TextTokens

NUM_IN_TURN, TURN_COST = 512, 1000  # tokens, and an estimate in microseconds


class AsyncTokens:
    def __init__(self, front_end: FrontEnd, adapters: AsyncAdapters, texts: TextClients) -> None:
        self._front_end, self._adapters, self._texts = front_end, adapters, texts
        self._turns = Turns()

    async def tokenize(self, call: Call, *, add_special_tokens: bool, with_texts: bool) -> Tokens:
        """Raises InvalidRequest, AdapterNotFound, QueueFull, EngineUnavailable."""
        looks = await self._adapters.look_at(self._front_end.folders_to_look_at([call]))
        opened = self._front_end.open(call, looks)
        if not add_special_tokens:
            work = replace(opened.parts.work, is_rendered=True)
            opened = replace(opened, parts=replace(opened.parts, work=work))
        token_ids = self._front_end.prompt_tokens(opened, await self._read(opened))
        texts = await self._texts_of(token_ids, opened) if with_texts else None
        return Tokens(token_ids, texts, self._front_end.facts.max_model_len)

    async def _read(self, call: Opened) -> TextTokens:
        tokens = self._front_end.start_reading(call)
        return tokens if isinstance(tokens, TextTokens) else await self._texts.read(tokens, call.tenant.name)

    async def _texts_of(self, token_ids: Sequence[int], call: Opened) -> list[str]:
        texts: list[str] = []
        for part in _parts(token_ids):
            await self._turns.take(TURN_COST)
            texts += [call.adapters.tokenizer.token(token_id) or "" for token_id in part]
        return texts

    async def detokenize(self, token_ids: Sequence[int], adapter: Adapter, *, skip_special_tokens: bool) -> str:
        """Raises InvalidRequest, AdapterNotFound."""
        tokenizer = self._front_end.tokenizer_of(adapter)
        check_count("token_ids", len(token_ids), self._front_end.facts.max_model_len)
        checked = as_token_ids("token_ids", token_ids)
        stream = tokenizer.decode_stream([], skip_special_tokens)
        texts = []
        for part in _parts(checked):
            await self._turns.take(TURN_COST)
            for token_id in part:
                if not 0 <= token_id < 1 << 32 or tokenizer.token(token_id) is None:
                    raise InvalidRequest("token_ids", f"{token_id} is no token of the vocabulary")
                texts.append(stream.push(token_id))
        return "".join([*texts, stream.flush()])


def _parts(token_ids: Sequence[int]) -> list[Sequence[int]]:
    return [token_ids[first : first + NUM_IN_TURN] for first in range(0, len(token_ids), NUM_IN_TURN)]
