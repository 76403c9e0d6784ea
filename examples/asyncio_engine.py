"""Many callers in one event loop, with the engine in a process of its own: `python examples/asyncio_engine.py`."""

import asyncio

from blora.engine import AsyncLLM, SamplingParams

MODEL = ".cache/models/SmolLM2-135M-Instruct"
ADAPTERS = {"shop-sql": "bench/demo/adapters/shop-sql"}


async def ask(llm: AsyncLLM, text: str, adapter: str | None, tenant: str) -> str:
    answer = ""
    sampling = SamplingParams(temperature=0, max_tokens=24)
    conversation = [{"role": "user", "content": text}]
    async for output in llm.chat(conversation, sampling, lora_request=adapter, tenant=tenant):
        answer = output.outputs[0].text
    return answer


async def main() -> None:
    async with AsyncLLM(MODEL, adapters=ADAPTERS, tenant_weights={"gold": 4}) as llm:
        question = "SQL for this question: How many pending orders from Oslo are there?"
        answers = await asyncio.gather(
            ask(llm, question, "shop-sql", "gold"), ask(llm, "What is the capital of France?", None, "free")
        )
        print(*answers, sep="\n")
        info = await llm.get_info()
        print(f"{info.num_requests} requests, {info.num_generated_tokens} tokens, {info.num_free_pages} pages free")


if __name__ == "__main__":
    asyncio.run(main())
