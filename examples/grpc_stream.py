"""Streams from a server, to several callers at once: `python examples/grpc_stream.py [HOST:PORT]`.

blora serve .cache/models/SmolLM2-135M-Instruct --adapter shop-sql=bench/demo/adapters/shop-sql
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from blora.proto.client import Client

QUESTIONS = ["How many pending orders from Oslo are there?", "How many customers from Bergen are there?"]


def follow(client: Client, question: str) -> str:
    conversation = [{"role": "user", "content": f"SQL for this question: {question}"}]
    answer = ""
    with client.generate_stream(conversation, "shop-sql", temperature=0, max_tokens=32) as stream:
        for sample in stream:  # each holds what is new; leaving the block ends the request
            answer += sample.text
    return answer


def main(target: str) -> None:
    with Client(target, timeout=60) as client, ThreadPoolExecutor() as pool:
        for answer in pool.map(lambda question: follow(client, question), QUESTIONS):
            print(answer)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["127.0.0.1:50051"])
