"""llama.cpp: its server with one slot for each row; one request asks for all rows. --model is a GGUF file."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# This file runs in another environment. The repository comes last, so that nothing in it hides a library.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.peers.protocol import Job, Tokens, claim_stdout, serve, worker_arguments

HOST = "127.0.0.1"
START_SECONDS = 120
POLL_SECONDS = 0.2
BATCH = 4096  # tokens in one batch of the server


class LlamaServer:
    """A llama-server on a free port. It ends when the driver ends this worker's whole process group."""

    def __init__(self, binary: Path, model: Path, threads: int, rows: int, length: int) -> None:
        self._url = f"http://{HOST}:{(port := _free_port())}"
        # The server inherits a standard output that is standard error already.
        self._process = subprocess.Popen(
            [
                str(binary),
                *("--model", str(model), "--host", HOST, "--port", str(port)),
                *("--threads", str(threads), "--threads-batch", str(threads)),
                *("--parallel", str(rows), "--ctx-size", str(rows * length), "--no-kv-unified"),
                *("--batch-size", str(BATCH), "--ubatch-size", "512", "--flash-attn", "on"),
                *("--cache-ram", "0", "--no-webui", "--log-disable"),
            ],
            stdin=subprocess.DEVNULL,
        )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self._process.returncode}")
            try:
                with urllib.request.urlopen(f"{self._url}/health"):
                    return
            except urllib.error.URLError:  # the connection is refused, or the answer is 503 while the server loads
                time.sleep(POLL_SECONDS)
        raise RuntimeError(f"the server was not ready after {START_SECONDS} seconds")

    @property
    def build(self) -> str:
        return str(self._ask("/props", None).get("build_info", "unknown"))

    def generate(self, job: Job) -> Tokens:
        results = self._ask(
            "/completion",
            {
                "prompt": job.prompts,
                "n_predict": job.max_tokens,
                "temperature": 0,
                "samplers": ["temperature"],
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
            },
        )
        rows = results if isinstance(results, list) else [results]
        return [row["tokens"] for row in sorted(rows, key=lambda row: row["index"])]

    def _ask(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    parser = worker_arguments(__doc__)
    parser.add_argument("--server", type=Path, required=True, help="path of the program llama-server")
    args = parser.parse_args()
    if args.adapters:
        parser.error("the server does not batch rows with different adapters")
    answers = claim_stdout()
    server = LlamaServer(args.server, args.model, args.threads, args.rows, args.length)
    quantisation = args.model.stem.rpartition(".")[2]
    settings = f"{quantisation} weights, server, {args.rows} slots, one KV stream for each, flash attention on, "
    settings += "built for this machine's CPU, no prompt cache"
    try:
        serve(answers, server.generate, server.build, settings)
    finally:
        server.close()


if __name__ == "__main__":
    main()
