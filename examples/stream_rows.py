"""Rows that grow together, step by step: `python examples/stream_rows.py`."""

from blora.engine import LLM, SamplingParams

MODEL = ".cache/models/SmolLM2-135M-Instruct"
PROMPTS = ["The sea is", "Once upon a time", "def add(a, b):"]


def main() -> None:
    llm = LLM(MODEL)
    texts = dict.fromkeys(map(str, range(len(PROMPTS))), "")
    sampling = SamplingParams(temperature=0.8, seed=7, max_tokens=12)
    with llm.stream(PROMPTS, sampling) as steps:  # leaving the block early aborts what is unfinished
        for number, outputs in enumerate(steps):
            for row in outputs:  # those that grew, each with what is new of it
                texts[row.request_id] += row.outputs[0].text
            print(f"step {number}: {texts}")
    for prompt, text in zip(PROMPTS, texts.values(), strict=True):
        print(repr(prompt + text))


if __name__ == "__main__":
    main()
