"""A conversation of several turns with one adapter, whose prefix is computed once: `python examples/chat.py`."""

from blora.engine import LLM, SamplingParams

MODEL = ".cache/models/SmolLM2-135M-Instruct"
QUESTIONS = ["How many pending orders from Oslo are there?", "How many shipped orders from Bergen are there?"]


def main() -> None:
    llm = LLM(MODEL, adapters={"shop-sql": "bench/demo/adapters/shop-sql"})
    sampling = SamplingParams(temperature=0, max_tokens=32)
    conversation: list[dict[str, str]] = []
    for question in QUESTIONS:
        conversation.append({"role": "user", "content": f"SQL for this question: {question}"})
        (output,) = llm.chat(conversation, sampling, use_tqdm=False, lora_request="shop-sql")
        answer = output.outputs[0].text
        conversation.append({"role": "assistant", "content": answer})
        print(f"{output.num_cached_tokens} of {len(output.prompt_token_ids)} tokens were cached: {answer}")


if __name__ == "__main__":
    main()
