"""/tokenize and /detokenize, with vLLM's bodies and answers."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from ...errors import InvalidRequest
from .chat import conversation
from .exchange import Exchange, unless_gone
from .requests import ConversationBody, is_given, listed, read
from .site import Site

MAX_TOKENS = 1 << 18  # of a text that is asked for


class TokenizeBody(ConversationBody, kw_only=True):
    """A text in `prompt`, or a conversation in `messages`."""

    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = False


class DetokenizeBody(Struct, kw_only=True):
    model: str | None = None
    lora: dict[str, float] | None = None
    tokens: Raw = Raw()


async def tokenize(site: Site, exchange: Exchange) -> None:
    engine, body = site.engine(exchange), read(TokenizeBody, await exchange.body(site.most_body_bytes))
    prompt = _prompt(body)

    async def work() -> None:
        tokens = await engine.tokenize(
            prompt,
            lora_request=site.names.adapter(body.model, body.lora),
            add_special_tokens=body.add_special_tokens is not False,
            with_texts=bool(body.return_token_strs),
        )
        told = {"count": len(tokens.token_ids), "max_model_len": tokens.max_model_len, "tokens": tokens.token_ids}
        await exchange.answer(msgspec.json.encode(told | {"token_strs": tokens.texts}))

    await unless_gone(exchange, work())


def _prompt(body: TokenizeBody) -> dict[str, Any]:
    if body.prompt is None:
        return conversation(body)
    if is_given(body.messages):
        raise InvalidRequest("messages", "are given besides prompt; send one of the two")
    return {"prompt": body.prompt}


async def detokenize(site: Site, exchange: Exchange) -> None:
    engine, body = site.engine(exchange), read(DetokenizeBody, await exchange.body(site.most_body_bytes))
    if bytes(body.tokens).count(b",") >= MAX_TOKENS:
        raise InvalidRequest("tokens", f"has more than {MAX_TOKENS} entries")
    token_ids: list[int] | None = listed("tokens", body.tokens, list[int])
    if token_ids is None:
        raise InvalidRequest("tokens", "are missing")
    text = await engine.detokenize(token_ids, lora_request=site.names.adapter(body.model, body.lora))
    await exchange.answer(msgspec.json.encode({"prompt": text}))
