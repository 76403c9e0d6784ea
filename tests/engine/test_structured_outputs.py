"""Structured output in whole engines: every text matches, and no other row notices."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from json_schemas import whole_schema
from tiny import make_adapter

from blora.engine import LLM, InvalidRequest, RequestOutput, SamplingParams, StructuredOutputsParams

LETTERS = StructuredOutputsParams(regex="[a-f]{3,12}!")
CHOICE = StructuredOutputsParams(choice=["yes", "no", "perhaps"])
OBJECT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "k": {"enum": ["a", "b"]}},
    "required": ["n", "k"],
    "additionalProperties": False,
}
JSON = StructuredOutputsParams(json=OBJECT, disable_any_whitespace=True)
WARM: dict[str, Any] = {"temperature": 1.0, "max_tokens": 40}
Row = tuple[str, SamplingParams, str | None]


def told(output: RequestOutput) -> list[Any]:
    return [(list(row.token_ids), row.text, row.finish_reason, row.stop_reason) for row in output.outputs]


def answer(llm: LLM, what: StructuredOutputsParams | None, **fields: Any) -> Any:
    (output,) = llm.generate("some prompt", SamplingParams(**WARM | fields, structured_outputs=what), use_tqdm=False)
    return output.outputs[0]


@pytest.fixture
def llm(make_llm: Callable[..., LLM]) -> LLM:
    return make_llm()


def test_texts_match_and_end_with_stop(llm: LLM) -> None:
    for seed in range(5):
        row = answer(llm, LETTERS, seed=seed)
        assert re.fullmatch("[a-f]{3,12}!", row.text)
        assert (row.finish_reason, row.stop_reason) == ("stop", None)
        assert bytes(row.text, "ascii") == row.text.encode()
        jsonschema.validate(json.loads(answer(llm, JSON, seed=seed).text), OBJECT)
        assert answer(llm, CHOICE, seed=seed).text in ("yes", "no", "perhaps")
        assert answer(llm, CHOICE, temperature=0).text == answer(llm, CHOICE, temperature=0).text


def test_random_schemas_in_one_batch_are_all_valid(llm: LLM, cases: Callable[[int, int], int]) -> None:
    schemas = [whole_schema(random.Random(seed)) for seed in range(cases(24, 500))]
    rows = [
        SamplingParams(
            temperature=1.0, seed=seed, max_tokens=200, structured_outputs=StructuredOutputsParams(json=schema)
        )
        for seed, schema in enumerate(schemas)
    ]
    ended = 0
    for schema, output in zip(schemas, llm.generate(["p"] * len(rows), rows, use_tqdm=False), strict=True):
        row = output.outputs[0]
        assert row.finish_reason in ("stop", "length"), (schema, row)
        if row.finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(row.text), schema, jsonschema.Draft202012Validator)
    assert ended > len(schemas) / 2


def test_rows_of_a_mixed_batch_are_what_they_are_alone(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], backend: str
) -> None:
    names = [None, "r4", "r8"]
    llm = make_llm(adapters={name: tiny_adapters[name] for name in names if name})
    whats = [None, LETTERS, None, CHOICE, JSON, None, LETTERS]
    rows: list[Row] = []
    for index, what in enumerate(whats * 3):
        fields: dict[str, Any] = [{}, {"temperature": 0}, {"logprobs": 2}, {"repetition_penalty": 1.3}][index % 4]
        sampling = SamplingParams(**WARM | {"seed": index, "structured_outputs": what} | fields)
        rows.append((f"prompt {index}" * (index % 5 + 1), sampling, names[index % 3]))
    prompts, samplings, adapters = zip(*rows, strict=True)
    together = llm.generate(list(prompts), list(samplings), list(adapters), use_tqdm=False)
    for (prompt, sampling, adapter), output in zip(rows, together, strict=True):
        (alone,) = llm.generate([prompt], [sampling], [adapter], use_tqdm=False)
        assert told(output) == told(alone)
        if backend == "cpu":  # on which bits do not depend on other rows
            assert output.outputs[0].logprobs == alone.outputs[0].logprobs


def test_unseeded_rows_and_samples_match(llm: LLM) -> None:
    (output,) = llm.generate("p", SamplingParams(**WARM, n=6, structured_outputs=LETTERS), use_tqdm=False)
    assert all(re.fullmatch("[a-f]{3,12}!", row.text) for row in output.outputs)
    assert len({row.text for row in output.outputs}) > 1


def test_logprobs_are_those_of_the_raw_logits(llm: LLM) -> None:
    free = answer(llm, None, temperature=0, logprobs=3)
    bound = answer(llm, CHOICE, temperature=0, logprobs=3)
    best = sorted(free.logprobs[0].values(), key=lambda entry: entry.rank)[:3]
    bound_best = sorted(bound.logprobs[0].values(), key=lambda entry: entry.rank)[:3]
    assert [entry.logprob for entry in best] == pytest.approx([entry.logprob for entry in bound_best], abs=1e-4)


def test_other_constraints_hold_beside_it(llm: LLM) -> None:
    vowels = answer(llm, LETTERS, allowed_token_ids=[token(llm, mark) for mark in "ae!"], seed=1)
    assert re.fullmatch("[ae]{3,12}!", vowels.text)
    assert "a" not in answer(llm, LETTERS, bad_words=["a"], seed=1).text
    assert (
        answer(llm, LETTERS, logit_bias={token(llm, "x"): 100.0, token(llm, "b"): 50.0}, seed=1).text == "b" * 12 + "!"
    )
    cut = answer(llm, LETTERS, stop=["b"], seed=1, logit_bias={token(llm, "b"): 50.0})
    assert (cut.text, cut.finish_reason, cut.stop_reason) == ("", "stop", "b")
    assert answer(llm, LETTERS, max_tokens=2).finish_reason == "length"
    none = answer(llm, LETTERS, allowed_token_ids=[token(llm, "x")])
    assert none.finish_reason == "error"


def token(llm: LLM, text: str) -> int:
    (token_id,) = llm.get_tokenizer().encode(text)
    return int(token_id)


def test_the_end_of_the_text_is_the_end_whatever_else_is_asked_for(llm: LLM) -> None:
    """Nothing can follow a text that is complete: neither EOS, nor more tokens because of min_tokens or ignore_eos."""
    for fields in ({}, {"ignore_eos": True}, {"min_tokens": 30}, {"stop_token_ids": [token(llm, "q")]}):
        row = answer(llm, StructuredOutputsParams(regex="abc"), **fields)
        assert (row.text, row.finish_reason, row.stop_reason, len(row.token_ids)) == ("abc", "stop", None, 3)


def test_tokens_that_end_a_text_are_drawn_where_it_may_end_and_nowhere_else(llm: LLM) -> None:
    more, eos = StructuredOutputsParams(regex="a{2,9}"), llm.get_tokenizer().eos_token_id
    eager = {"logit_bias": {eos: 100.0}}
    ended = answer(llm, more, **eager)
    assert (ended.text, ended.finish_reason, list(ended.token_ids)[-1]) == ("aa", "stop", eos)
    assert answer(llm, more, min_tokens=5, **eager).text == "aaaaa"
    assert answer(llm, more, ignore_eos=True, **eager).text == "a" * 9
    own = answer(llm, more, stop_token_ids=[token(llm, "q")], logit_bias={token(llm, "q"): 100.0})
    assert (own.text, own.stop_reason) == ("aa", token(llm, "q"))


@pytest.mark.usefixtures("blind_forecast")
def test_preempted_rows_match(make_llm: Callable[..., LLM]) -> None:
    long = StructuredOutputsParams(regex="[a-f]{58}!")
    sampling = [SamplingParams(temperature=1.0, seed=seed, max_tokens=60, structured_outputs=long) for seed in range(6)]
    prompts = [f"prompt {seed}" for seed in range(6)]
    roomy = make_llm().generate(prompts, sampling, use_tqdm=False)
    outputs = make_llm(memory="64KB").generate(prompts, sampling, use_tqdm=False)
    assert any(output.metrics.num_preemptions for output in outputs if output.metrics)
    assert list(map(told, outputs)) == list(map(told, roomy))


def test_bad_grammars_are_refused_before_anything_runs(llm: LLM) -> None:
    for what, field in (
        (StructuredOutputsParams(), "structured_outputs"),
        (StructuredOutputsParams(json="[]"), "structured_outputs.json"),
        (StructuredOutputsParams(regex="(a"), "structured_outputs"),
        (StructuredOutputsParams(json={"uniqueItems": True}), "structured_outputs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            answer(llm, what)
        assert caught.value.field == field


def test_tokens_that_an_adapter_adds_can_stand_in_a_text(
    make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path
) -> None:
    tables = ["embed_tokens", "lm_head"]
    folder = make_adapter(tiny_model, tmp_path / "adapter", vocab_size=264, modules_to_save=tables)
    tokenizer = json.loads((tiny_model / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] += [
        {"id": 257, "content": "perhaps", "special": False, **plain},
        {"id": 258, "content": "<mark>", "special": True, **plain},
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text((tiny_model / "tokenizer_config.json").read_text())
    llm = make_llm(adapters={"own": folder})
    what = StructuredOutputsParams(choice=["perhaps"])
    eager = SamplingParams(temperature=0, logit_bias={257: 300.0, 258: 300.0}, structured_outputs=what)
    outputs = llm.generate(["p", "p"], [eager, SamplingParams(structured_outputs=what)], ["own", None], use_tqdm=False)
    assert [(row.text, len(row.token_ids)) for row in (output.outputs[0] for output in outputs)] == [
        ("perhaps", 1),
        ("perhaps", 7),
    ]
