"""OpenAI's client and a server's adapters: `python examples/openai_client.py [URL]`.

blora serve .cache/models/SmolLM2-135M-Instruct --http-port 8000 --adapter shop-sql=bench/demo/adapters/shop-sql
"""

import asyncio
import sys

from openai import AsyncOpenAI, NotFoundError

QUESTIONS = ["How many pending orders from Oslo are there?", "How many customers from Bergen are there?"]


async def follow(client: AsyncOpenAI, question: str) -> str:
    stream = await client.chat.completions.create(
        model="shop-sql",  # an adapter is a model
        messages=[{"role": "user", "content": f"SQL for this question: {question}"}],
        temperature=0,
        max_completion_tokens=32,
        stream=True,
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def main(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for answer in await asyncio.gather(*(follow(client, question) for question in QUESTIONS)):
            print(answer)
        half = {"lora": {"shop-sql": 0.5}}  # fields that the client does not know
        completion = await client.completions.create(model="", prompt="Paris is", max_tokens=8, extra_body=half)
        print(completion.model, completion.choices[0].text)
        try:
            await client.completions.create(model="nobody", prompt="Paris is")
        except NotFoundError as error:  # and no answer of the base model
            print(error.status_code, [model.id async for model in client.models.list()])


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["http://127.0.0.1:8000"]))
