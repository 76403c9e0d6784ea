"""Two adapters in one request, each with a scale, beside each of them alone: `python examples/sum_adapters.py`."""

from blora.engine import LLM, SamplingParams

MODEL = ".cache/models/SmolLM2-135M-Instruct"
ADAPTERS = "bench/demo/adapters"
CHOICES = ["commit-style", "shop-sql", {"commit-style": 1.0, "shop-sql": 0.3}, {"commit-style": 0.2}, None]


def main() -> None:
    llm = LLM(MODEL, adapters={name: f"{ADAPTERS}/{name}" for name in ("commit-style", "shop-sql")})
    question = [{"role": "user", "content": "Commit message for this note: the login now has dark mode."}]
    sampling = SamplingParams(temperature=0, max_tokens=16)
    outputs = llm.chat([question] * len(CHOICES), sampling, use_tqdm=False, lora_request=CHOICES)
    for choice, output in zip(CHOICES, outputs, strict=True):
        print(f"{choice}: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
