"""The three gRPC services. Each method converts, asks the engine and converts back; policy lives in the engine.

`handler()` is registered with the server. A method raises the error of a request, and `rpc` turns it into a status
code. A servicer asks for its caller's engine at every call, because the server listens before the engine has
started.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

import grpc

from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2
from blora.scheduler import RequestOutputKind

from ..identity.caller import Caller
from ..ipc.turns import Turns
from ..outputs import AdapterSnapshot, RequestOutput
from . import convert, convert_tokens
from .batch import Ended, patiently, run_batch
from .callers_engine import CallersEngine
from .convert_output import Answer, BatchAnswer, StreamConverter, WholeAnswer
from .generation import Outcome, collected, unique_request_id
from .long_lists import long_lists
from .many_adapters import ManyAdapters
from .pieces import cost, pieces
from .rpc import Calls, deadline_of, time_after
from .status import RequestFailed, status_message

# Requests of one batch that run at once. Each holds its answer until the client has taken it.
MOST_OF_BATCH = 128
EngineOf = Callable[[Caller], CallersEngine]  # raises EngineUnavailable until the engine has started


class GenerationServicer:
    NAME = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

    def __init__(self, engine_of: EngineOf) -> None:
        self._engine_of = engine_of
        self._turns = Turns()

    def handler(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {
            "Generate": calls.unary(generation_pb2.GenerateRequest, self.generate, deadline_of),
            "GenerateStream": calls.streaming(generation_pb2.GenerateStreamRequest, self.generate_stream, deadline_of),
            "BatchGenerate": calls.exchanging(generation_pb2.BatchGenerateRequest, self.generate_batch, deadline_of),
            "Tokenize": calls.unary(generation_pb2.TokenizeRequest, self.tokenize),
            "Detokenize": calls.unary(generation_pb2.DetokenizeRequest, self.detokenize),
        }
        return grpc.method_handlers_generic_handler(self.NAME, methods)

    async def generate(
        self, request: generation_pb2.GenerateRequest, caller: Caller, deadline: float | None
    ) -> WholeAnswer:
        outcome, answer = Outcome(), Answer()
        async with aclosing(self._run(request, caller, deadline, outcome, is_streamed=False)) as parts:
            async for piece in parts:
                answer.add(piece)
        outcome.check()
        if answer.is_empty:
            raise RequestFailed("the request ended without an answer")
        return await answer.whole(self._turns)

    async def generate_stream(
        self, request: generation_pb2.GenerateStreamRequest, caller: Caller, deadline: float | None
    ) -> AsyncGenerator[generation_pb2.GenerateStreamResponse, None]:
        outcome, converter = Outcome(), StreamConverter()
        run = self._run(convert.inner_request(request), caller, deadline, outcome, is_streamed=True)
        async with aclosing(run) as parts:
            async for piece in parts:
                yield converter.response(piece)
        outcome.check()

    async def generate_batch(
        self,
        requests: AsyncGenerator[generation_pb2.BatchGenerateRequest, None],
        caller: Caller,
        deadline: float | None,
    ) -> AsyncGenerator[BatchAnswer, None]:
        async def generate(request: generation_pb2.BatchGenerateRequest) -> WholeAnswer:
            inner = convert.inner_request(request)
            if inner.HasField("max_first_token_seconds"):  # a client that waits for it
                return await self.generate(inner, caller, deadline)
            return await patiently(lambda: self.generate(inner, caller, deadline))

        async with aclosing(run_batch(requests, generate, MOST_OF_BATCH)) as ends:
            async for ended in ends:
                yield batch_answer(ended)

    async def tokenize(
        self, request: generation_pb2.TokenizeRequest, caller: Caller
    ) -> generation_pb2.TokenizeResponse:
        prompt, options = convert_tokens.tokenize_prompt(request), convert_tokens.tokenize_options(request)
        return convert_tokens.tokenized(await self._engine_of(caller).tokenize(prompt, **options))

    async def detokenize(
        self, request: generation_pb2.DetokenizeRequest, caller: Caller
    ) -> generation_pb2.DetokenizeResponse:
        engine = self._engine_of(caller)
        token_ids, adapter, skips = convert_tokens.detokenize_arguments(
            request, engine.most_listed()["prompt_token_ids"]
        )
        text = await engine.detokenize(token_ids, lora_request=adapter, skip_special_tokens=skips)
        return convert_tokens.detokenized(text)

    async def _run(
        self,
        request: generation_pb2.GenerateRequest,
        caller: Caller,
        deadline: float | None,
        outcome: Outcome,
        *,
        is_streamed: bool,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the outputs of a request in pieces, each in a turn of the event loop that has time for it."""
        engine = self._engine_of(caller)
        defaults, most_listed = engine.get_default_sampling_params(), engine.most_listed()
        lists = await long_lists(request.sampling, most_listed, self._turns)
        call = convert.generate_call(request, defaults, RequestOutputKind.DELTA, most_listed, lists)
        generated = engine.generate(
            call.prompt,
            call.sampling_params if is_streamed else collected(call.sampling_params),
            unique_request_id(call.label),
            lora_request=call.adapter,
            priority=call.priority,
            deadline=deadline,
            first_token_deadline=time_after(call.first_token_seconds),
        )
        async with aclosing(generated) as outputs:
            async for output in outputs:
                outcome.note(output)
                for piece in pieces(output):
                    await self._turns.take(cost(piece))
                    yield piece


def batch_answer(ended: Ended[WholeAnswer]) -> BatchAnswer:
    try:
        return BatchAnswer.answered(ended.index, ended.result())
    except Exception as error:
        return BatchAnswer.refused(ended.index, status_message(error))


class AdapterServicer:
    NAME = adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name

    def __init__(self, engine_of: EngineOf) -> None:
        self._engine_of = engine_of
        self._turns = Turns()

    def handler(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {
            "LoadAdapter": calls.unary(adapters_pb2.LoadAdapterRequest, self.load),
            "UploadAdapter": calls.collecting(adapters_pb2.UploadAdapterRequest, self.upload),
            "InspectAdapter": calls.unary(adapters_pb2.InspectAdapterRequest, self.inspect),
            "ActivateAdapter": calls.unary(adapters_pb2.ActivateAdapterRequest, self.activate),
            "WarmAdapter": calls.unary(adapters_pb2.WarmAdapterRequest, self.warm),
            "UnloadAdapter": calls.unary(adapters_pb2.UnloadAdapterRequest, self.unload),
            "ListAdapters": calls.unary(adapters_pb2.ListAdaptersRequest, self.list),
            "GetAdapter": calls.unary(adapters_pb2.GetAdapterRequest, self.get),
            "PinAdapter": calls.unary(adapters_pb2.PinAdapterRequest, self.pin),
            "WatchAdapters": calls.streaming(adapters_pb2.WatchAdaptersRequest, self.watch),
        }
        return grpc.method_handlers_generic_handler(self.NAME, methods)

    async def load(self, request: adapters_pb2.LoadAdapterRequest, caller: Caller) -> adapters_pb2.LoadAdapterResponse:
        name, path, pinned = convert.load_arguments(request)
        return convert.loaded(await self._engine_of(caller).load_adapter(name, path, pinned=pinned))

    async def upload(
        self, requests: AsyncGenerator[adapters_pb2.UploadAdapterRequest, None], caller: Caller
    ) -> adapters_pb2.UploadAdapterResponse:
        name, files, pinned = convert.upload_arguments(await anext(requests, None))
        chunks = (convert.upload_chunk(request) async for request in requests)
        return convert.uploaded(await self._engine_of(caller).upload_adapter(name, files, chunks, pinned=pinned))

    async def inspect(
        self, request: adapters_pb2.InspectAdapterRequest, caller: Caller
    ) -> adapters_pb2.InspectAdapterResponse:
        return convert.inspected(await self._engine_of(caller).inspect_adapter(convert.adapter_path(request)))

    async def activate(
        self, request: adapters_pb2.ActivateAdapterRequest, caller: Caller
    ) -> adapters_pb2.ActivateAdapterResponse:
        name, version = convert.activate_arguments(request)
        return convert.activated(await self._engine_of(caller).activate_adapter(name, version))

    async def unload(
        self, request: adapters_pb2.UnloadAdapterRequest, caller: Caller
    ) -> adapters_pb2.UnloadAdapterResponse:
        name, abort = convert.unload_arguments(request)
        return convert.unloaded(await self._engine_of(caller).unload_adapter(name, abort=abort))

    async def warm(self, request: adapters_pb2.WarmAdapterRequest, caller: Caller) -> adapters_pb2.WarmAdapterResponse:
        return convert.warmed(await self._engine_of(caller).warm_adapter(convert.adapter_name(request)))

    async def watch(
        self, _: adapters_pb2.WatchAdaptersRequest, caller: Caller
    ) -> AsyncGenerator[adapters_pb2.WatchAdaptersResponse | ManyAdapters, None]:
        async with aclosing(self._engine_of(caller).watch_adapters()) as news:
            async for item in news:
                if isinstance(item, AdapterSnapshot):
                    part = partial(convert.snapshot_part, item.revision)
                    yield await ManyAdapters.convert(item.adapters, self._turns, part)
                else:
                    yield convert.adapter_event(item)

    async def list(self, _: adapters_pb2.ListAdaptersRequest, caller: Caller) -> ManyAdapters:
        return await ManyAdapters.convert(
            await self._engine_of(caller).list_adapters(), self._turns, convert.listed_part
        )

    async def get(self, request: adapters_pb2.GetAdapterRequest, caller: Caller) -> adapters_pb2.GetAdapterResponse:
        return convert.found(await self._engine_of(caller).get_adapter(convert.adapter_name(request)))

    async def pin(self, request: adapters_pb2.PinAdapterRequest, caller: Caller) -> adapters_pb2.PinAdapterResponse:
        name, pinned = convert.pin_arguments(request)
        return convert.pinned(await self._engine_of(caller).pin_adapter(name, pinned))


class EngineServicer:
    NAME = engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name

    def __init__(self, engine_of: EngineOf) -> None:
        self._engine_of = engine_of

    def handler(self, calls: Calls) -> grpc.GenericRpcHandler:
        methods = {
            "GetInfo": calls.unary(engine_pb2.GetInfoRequest, self.get_info),
            "WatchLoad": calls.streaming(engine_pb2.WatchLoadRequest, self.watch_load),
            "Abort": calls.unary(engine_pb2.AbortRequest, self.abort),
        }
        return grpc.method_handlers_generic_handler(self.NAME, methods)

    async def get_info(self, _: engine_pb2.GetInfoRequest, caller: Caller) -> engine_pb2.GetInfoResponse:
        return convert.engine_info(await self._engine_of(caller).get_info())

    async def watch_load(
        self, request: engine_pb2.WatchLoadRequest, caller: Caller
    ) -> AsyncGenerator[engine_pb2.WatchLoadResponse, None]:
        most = convert_tokens.most_per_second(request)
        async with aclosing(self._engine_of(caller).watch_load(most)) as news:
            async for snapshot in news:
                yield convert_tokens.load(snapshot)

    async def abort(self, request: engine_pb2.AbortRequest, caller: Caller) -> engine_pb2.AbortResponse:
        await self._engine_of(caller).abort(convert.request_ids(request))
        return convert.aborted()
