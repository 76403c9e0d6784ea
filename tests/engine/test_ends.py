"""Which token or text ends an answer, and when: all combinations of EOS, stop tokens, stop strings and min_tokens.

Strong biases make each answer known beforehand. The rules are vLLM's.
"""

import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from blora.engine import LLM, SamplingParams

EOS, FURTHER, OTHER, LETTER = (
    256,
    7,
    8,
    65,
)  # the tokenizer's EOS, one that only generation_config.json names, two others
MIN = 3


@pytest.fixture(scope="module")
def llm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """An engine whose model has two EOS tokens."""
    folder = tmp_path_factory.mktemp("two-ends") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, FURTHER]}))
    yield LLM(str(folder), backend="cpu", memory="2MB", block_size=4)


def expected_end(token: int, ignore_eos: bool, stop_token_ids: tuple[int, ...]) -> int | str | None:
    """Returns the stop reason of an answer that wants to consist of one token only, or "length"."""
    if token == EOS and not ignore_eos:
        return None
    if token in stop_token_ids or (token == FURTHER and not ignore_eos):
        return token
    return "length"


TOKENS = (EOS, FURTHER, OTHER)
STOPS: list[tuple[int, ...]] = [(), (EOS,), (FURTHER,), (OTHER,), (EOS, FURTHER), (EOS, FURTHER, OTHER)]


@pytest.mark.parametrize("min_tokens", [0, MIN])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_all_ends_by_a_token(llm: LLM, ignore_eos: bool, min_tokens: int) -> None:
    """A strong bias makes each answer repeat one token, as soon as that may be drawn, and another one before."""
    cases = list(product(TOKENS, STOPS))
    samplings = [
        SamplingParams(
            temperature=0,
            max_tokens=6,
            min_tokens=min_tokens,
            ignore_eos=ignore_eos,
            stop_token_ids=list(stops),
            logit_bias={token: 100.0, LETTER: 50.0},
        )
        for token, stops in cases
    ]
    outputs = llm.generate(["x"] * len(cases), samplings, use_tqdm=False)
    for (token, stops), output in zip(cases, outputs, strict=True):
        answer, reason = output.outputs[0], expected_end(token, ignore_eos, stops)
        is_held_back = token in {EOS, FURTHER, *stops}  # ignored or not
        first = [LETTER if is_held_back else token] * min_tokens
        rest = [token] * (6 - min_tokens) if reason == "length" else [token]
        assert answer.token_ids == first + rest, (token, stops)
        finish = ("length", None) if reason == "length" else ("stop", reason)
        assert (answer.finish_reason, answer.stop_reason) == finish, (token, stops)


def said(llm: LLM, **fields: Any) -> tuple[str, int, int | str | None]:
    """Has the model say "A" again and again; returns text, number of tokens and stop reason."""
    (letter,) = llm.get_tokenizer().encode("A")
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": 8, "logit_bias": {letter: 100.0}} | fields)
    (output,) = llm.generate("x", sampling, use_tqdm=False)
    answer = output.outputs[0]
    return answer.text, len(answer.token_ids), answer.stop_reason


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"stop": "A"}, ("", 1, "A")),
        ({"stop": "AA"}, ("", 2, "AA")),
        ({"stop": "A", "min_tokens": 3}, ("AAA", 4, "A")),  # what ended before the third token is no end
        ({"stop": "AA", "min_tokens": 3}, ("AA", 4, "AA")),  # it may begin before
        ({"stop": "AA", "min_tokens": 3, "include_stop_str_in_output": True}, ("AAAA", 4, "AA")),
        ({"stop": ["B", "AAAA"], "min_tokens": 2}, ("", 4, "AAAA")),
        ({"stop": "A", "min_tokens": 8}, ("A" * 8, 8, None)),
        ({"stop": "A", "ignore_eos": True}, ("", 1, "A")),
        ({"stop": "A", "stop_token_ids": [EOS]}, ("", 1, "A")),
    ],
)
def test_all_ends_by_a_string(llm: LLM, fields: dict[str, Any], end: tuple[str, int, int | str | None]) -> None:
    assert said(llm, **fields) == end
