"""vLLM's own load tester, on the model and on an adapter: python vllm_bench.py URL MODEL ADAPTER TOKENIZER BINARY"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import check, expect

URL, MODEL, ADAPTER, TOKENIZER, BINARY = sys.argv[1:]
NUM_PROMPTS = 24
LOAD = ("--random-input-len", "64", "--random-output-len", "16", "--num-prompts", str(NUM_PROMPTS), "--ignore-eos")


def run(*options):
    with tempfile.TemporaryDirectory() as folder:
        command = [BINARY, "bench", "serve", "--base-url", URL, "--model", MODEL, "--tokenizer", TOKENIZER, *LOAD]
        command += [
            "--save-result",
            "--save-detailed",
            "--result-dir",
            folder,
            "--result-filename",
            "result.json",
            *options,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=500)
        return json.loads((Path(folder) / "result.json").read_text())


def all_complete(*options):
    result = run(*options)
    errors = ", ".join(sorted({error for error in result["errors"] if error}))
    seen = f"{result['completed']} of {NUM_PROMPTS} requests, {result['total_output_tokens']} tokens {errors}"
    return expect(result["completed"] == NUM_PROMPTS and result["total_output_tokens"] == 16 * NUM_PROMPTS, seen)


check("chats", lambda: all_complete("--backend", "openai-chat"))
check("completions", lambda: all_complete("--backend", "openai"))
check("`--lora-modules`", lambda: all_complete("--backend", "openai-chat", "--lora-modules", MODEL, ADAPTER))
check("prompts of tokens", lambda: all_complete("--backend", "openai", "--prompt-token-ids"))
