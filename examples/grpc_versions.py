"""Uploads two versions under one name and rolls back, on a server: `python examples/grpc_versions.py [HOST:PORT]`.

blora serve .cache/models/SmolLM2-135M-Instruct --adapter-upload-bytes 64M
"""

import sys

import grpc

from blora.proto.client import Client

FOLDERS = ["bench/demo/adapters/commit-style", "bench/demo/adapters/ticket-routing"]
PROMPT = [{"role": "user", "content": "Commit message for this note: the login now has dark mode."}]


def main(target: str) -> None:
    with Client(target, timeout=60) as client:
        for folder in FOLDERS:
            print("uploaded version", client.upload_adapter("assistant", folder).version)
        for name in ("assistant", "assistant@1"):  # the active version, and one by its number
            answer = client.generate(PROMPT, name, temperature=0, max_tokens=16)
            print(f"{name}: {answer.samples[0].text}")
        print("active again:", client.activate_adapter("assistant", 1).version)
        client.unload_adapter("assistant")
        try:
            client.generate(PROMPT, "assistant")
        except grpc.RpcError as error:  # nothing falls back to the base model
            print(error.code().name, error.details())


if __name__ == "__main__":
    main(*sys.argv[1:] or ["127.0.0.1:50051"])
