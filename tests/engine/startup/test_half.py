"""float16 on the CPU: never computed slowly without a word, and never rounded unless the user says so."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_adapter, make_model, make_tokenizer
from transformers import LlamaForCausalLM

from blora.engine import LLM, EngineStartError, SamplingParams
from blora.engine.startup import choose_backend as choosing

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
OPTIONS: dict[str, Any] = {"memory": "2MB", "block_size": 4, "threads": 1}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in float16, and the same weights in float32."""
    half, full = tmp_path_factory.mktemp("half"), tmp_path_factory.mktemp("full")
    model: Any = LlamaForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("made"))).half()
    model.save_pretrained(half)
    model.float().save_pretrained(full)
    for folder in (half, full):
        make_tokenizer(folder)
    return half, full


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_gpu", lambda: False)


def answer(llm: LLM, adapter: str | None) -> tuple[list[int], float | None]:
    (output,) = llm.generate("some prompt", GREEDY, adapter, use_tqdm=False)
    return output.outputs[0].token_ids, output.outputs[0].cumulative_logprob


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_model_in_float16_is_computed_in_float32_by_the_native_kernels(
    half: tuple[Path, Path], tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = make_adapter(half[1], tmp_path / "adapter")
    full = LLM(str(half[1]), backend="cpu", adapters={"a": adapter}, **OPTIONS)
    with caplog.at_level(logging.WARNING):
        llm = LLM(str(half[0]), backend=backend, adapters={"a": adapter}, **OPTIONS)
    assert llm.get_info().dtype == "float32"
    assert [answer(llm, name) for name in (None, "a")] == [answer(full, name) for name in (None, "a")]
    (warning,) = [record.message for record in caplog.records if "float16" in record.message]
    assert "same value of every weight" in warning and "dtype=bfloat16" in warning


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("dtype", ["float16", "half", torch.float16])
def test_float16_that_is_asked_for_is_refused_with_the_choice(
    half: tuple[Path, Path], backend: str, dtype: Any
) -> None:
    for model in half:
        with pytest.raises(EngineStartError) as caught:
            LLM(str(model), backend=backend, dtype=dtype, **OPTIONS)
        for part in ("not in float16", "dtype=float32", "dtype=bfloat16", "backend=reference"):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "told"), [({"dtype": "bfloat16"}, "bfloat16"), ({"backend": "reference"}, "float16")]
)
def test_what_the_user_chooses_is_done(half: tuple[Path, Path], asked: dict[str, str], told: str) -> None:
    llm = LLM(str(half[0]), **OPTIONS, **asked)
    assert llm.get_info().dtype == told
    assert len(answer(llm, None)[0]) == 12
