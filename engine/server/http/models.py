"""/v1/models: the base model and the loaded adapters, as models of OpenAI's API."""

from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from ...outputs import AdapterInfo
from .answers import Model
from .exchange import Exchange
from .pieces_of_json import items, joined
from .site import Site

NUM_IN_PART, MODEL_COST = 64, 10  # adapters that are converted at once; microseconds of one, about


async def list_models(site: Site, exchange: Exchange) -> None:
    engine = site.engine(exchange)
    infos = sorted(await engine.list_adapters(), key=lambda info: info.name)
    max_model_len = engine.max_model_len
    parts = [items([_base(site, name, max_model_len) for name in site.names.listed])]
    for some in _parts(infos):
        await site.turns.take(MODEL_COST * len(some))
        parts.append(items([_adapter(site, info, max_model_len) for info in some]))
    await exchange.answer(msgspec.json.encode({"object": "list", "data": joined(parts)}))


async def show_model(site: Site, exchange: Exchange) -> None:
    engine, name = site.engine(exchange), exchange.path_parameters["model"]
    if name in site.names.names:
        model = _base(site, name, engine.max_model_len)
    else:
        model = _adapter(site, await engine.get_adapter(name), engine.max_model_len)
    await exchange.answer(msgspec.json.encode(model))


def _parts(infos: Sequence[AdapterInfo]) -> Iterator[list[AdapterInfo]]:
    left = iter(infos)
    while some := list(islice(left, NUM_IN_PART)):
        yield some


def _base(site: Site, name: str, max_model_len: int) -> Model:
    return Model(id=name, created=site.created, root=site.names.root, parent=None, max_model_len=max_model_len)


def _adapter(site: Site, info: AdapterInfo, max_model_len: int) -> Model:
    loaded_at = next((int(version.loaded_at) for version in info.versions if version.active), site.created)
    return Model(id=info.name, created=loaded_at, root=info.path, parent=site.names.base, max_model_len=max_model_len)
