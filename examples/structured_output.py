"""Answers that match a JSON schema, a regular expression and a choice, in one batch:
`python examples/structured_output.py`."""

from blora.engine import LLM, SamplingParams, StructuredOutputsParams

MODEL = ".cache/models/SmolLM2-135M-Instruct"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
QUESTIONS = {
    "Bob is 33 years old. Tell his name and age in JSON.": StructuredOutputsParams(json=PERSON),
    "When does the train leave? Answer as HH:MM.": StructuredOutputsParams(regex="[0-2][0-9]:[0-5][0-9]"),
    "Is water wet?": StructuredOutputsParams(choice=["yes", "no"]),
}


def main() -> None:
    llm = LLM(MODEL)
    samplings = [SamplingParams(temperature=0, max_tokens=64, structured_outputs=what) for what in QUESTIONS.values()]
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    for output in llm.chat(conversations, samplings, use_tqdm=False):
        print(output.outputs[0].text)


if __name__ == "__main__":
    main()
