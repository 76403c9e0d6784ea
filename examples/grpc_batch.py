"""Sends many requests in one call, from asyncio: `python examples/grpc_batch.py [HOST:PORT]`.

blora serve .cache/models/SmolLM2-135M-Instruct --adapter shop-sql=bench/demo/adapters/shop-sql
"""

import asyncio
import sys

from blora.proto.client import AsyncClient, Refusal

CITIES = ["Oslo", "Bergen", "Rome", "Lima"]


def question(city: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"SQL for this question: How many pending orders from {city} are there?"}]


async def main(target: str) -> None:
    requests = [
        {"prompt": question(city), "adapter": "shop-sql", "temperature": 0, "max_tokens": 32} for city in CITIES
    ]
    requests += [{"prompt": question("Paris"), "adapter": "nobody"}]  # fails alone
    async with AsyncClient(target, timeout=60) as client:
        async for end in client.generate_batch(requests):
            answer = end.answer
            print(end.index, answer.code if isinstance(answer, Refusal) else answer.text)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["127.0.0.1:50051"]))
