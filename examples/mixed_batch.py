"""One batch in which every prompt has its own adapter, or none: `python examples/mixed_batch.py`."""

from blora.engine import LLM, SamplingParams

MODEL = ".cache/models/SmolLM2-135M-Instruct"
ADAPTERS = "bench/demo/adapters"
ROWS = [
    ("shop-sql", "SQL for this question: How many pending orders from Oslo are there?"),
    ("commit-style", "Commit message for this note: the login now has dark mode."),
    ("ticket-routing", "Route this support ticket: my card was charged twice"),
    (None, "What is the capital of France?"),
]


def main() -> None:
    names = [name for name, _ in ROWS]
    llm = LLM(MODEL, adapters={name: f"{ADAPTERS}/{name}" for name in names if name})
    conversations = [[{"role": "user", "content": text}] for _, text in ROWS]
    sampling = SamplingParams(temperature=0, max_tokens=24)
    outputs = llm.chat(conversations, sampling, use_tqdm=False, lora_request=names)
    for name, output in zip(names, outputs, strict=True):
        print(f"{name or 'base model'}: {output.outputs[0].text}")


if __name__ == "__main__":
    main()
