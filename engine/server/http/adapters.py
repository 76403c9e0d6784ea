"""/v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's bodies and answers."""

from ...errors import AdapterNotFound, InvalidRequest
from ..callers_engine import CallersEngine
from .exchange import Exchange
from .requests import LoadBody, UnloadBody, read
from .site import Site

TEXT = b"text/plain; charset=utf-8"


async def load_adapter(site: Site, exchange: Exchange) -> None:
    engine, body = site.engine(exchange), read(LoadBody, await exchange.body(site.most_body_bytes))
    if not body.lora_name or not body.lora_path:
        raise InvalidRequest("lora_path" if body.lora_name else "lora_name", "is missing; send both of them")
    if body.lora_name in site.names.names:
        raise InvalidRequest("lora_name", f"{body.lora_name!r:.140} is the name of the base model")
    if not body.load_inplace and await _is_loaded(engine, body.lora_name):
        reason = f"{body.lora_name!r:.140} is loaded already; to replace it, set load_inplace to true"
        raise InvalidRequest("lora_name", reason)
    await engine.load_adapter(body.lora_name, body.lora_path)
    await _tell(exchange, f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(site: Site, exchange: Exchange) -> None:
    engine, body = site.engine(exchange), read(UnloadBody, await exchange.body(site.most_body_bytes))
    if not body.lora_name:
        raise InvalidRequest("lora_name", "is missing")
    await engine.unload_adapter(body.lora_name)
    await _tell(exchange, f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def _is_loaded(engine: CallersEngine, name: str) -> bool:
    try:
        await engine.get_adapter(name)
    except AdapterNotFound:
        return False
    return True


async def _tell(exchange: Exchange, text: str) -> None:
    await exchange.answer(text.encode(), kind=TEXT)
