"""Adapters of every kind against PEFT, which runs one at a time; here all of them and base rows are in one batch."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_kinds import KINDS, make_kinds
from peft import PeftModel
from safetensors.numpy import load_file
from tiny import load_resized, quiet

from blora.engine import LLM, AsyncLLM, InvalidRequest, LoRARequest, SamplingParams

pytestmark = pytest.mark.slow

PROMPTS = ["a first prompt", "another, which is a little longer than the first", "x"]
NUM_TOKENS = 12
WEIGHTS = "adapter_model.safetensors"
NEAR = 2e-4  # difference of logprobs that another order of float32 sums may give


def peft_logprobs(model: Path, adapter: Path | None, tokens: list[int], vocab_size: int | None) -> torch.Tensor:
    """Returns the logprobs after each token: [num_tokens, vocab]."""
    base = load_resized(model, vocab_size)
    with quiet():
        adapted = base if adapter is None else PeftModel.from_pretrained(base, adapter)
    with torch.inference_mode():
        logits: torch.Tensor = adapted(input_ids=torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return make_kinds(tmp_path_factory.mktemp("kinds"), tie_word_embeddings=request.param)


def test_every_kind_equals_peft_in_one_mixed_batch(
    make_llm: Callable[..., LLM], world: tuple[Path, dict[str, Path]]
) -> None:
    model, kinds = world
    llm = make_llm(model, adapters={name: str(path) for name, path in kinds.items()}, max_num_batched_tokens=50)
    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=3, prompt_logprobs=1)
    batch = [(prompt, name) for prompt in PROMPTS for name in (None, *kinds)]
    outputs = llm.generate(
        [prompt for prompt, _ in batch], sampling, lora_request=[name for _, name in batch], use_tqdm=False
    )
    answers = set()
    for (prompt, name), output in zip(batch, outputs, strict=True):
        ours = output.outputs[0]
        tokens, vocab_size = output.prompt_token_ids + ours.token_ids, KINDS.get(name or "", {}).get("vocab_size")
        expected = peft_logprobs(model, kinds.get(name or ""), tokens, vocab_size)
        told = [*(output.prompt_logprobs or ())[1:], *(ours.logprobs or ())]
        assert len(told) == len(tokens) - 1
        for position, (row, entries) in enumerate(zip(expected, told, strict=False)):
            for token, entry in entries.items():
                assert abs(entry.logprob - row[token]) < NEAR, (prompt, name, position, token)
        answers.add((prompt, *ours.token_ids))
    assert len(answers) == len(batch), "every adapter changes every answer"


def test_dora_takes_no_scale_and_no_partner(make_llm: Callable[..., LLM], world: tuple[Path, dict[str, Path]]) -> None:
    model, kinds = world
    llm = make_llm(model, adapters={name: str(kinds[name]) for name in ("dora", "plain")})
    for adapters in ([LoRARequest("dora", lora_scale=0.5)], [("plain", "dora")]):
        with pytest.raises(InvalidRequest, match="takes no scale and no partner"):
            llm.generate(["x"], lora_request=adapters, use_tqdm=False)
    missing = LoRARequest("missing", lora_path=str(kinds["plain"]))
    for partner in ("dora", LoRARequest("dora")):
        with pytest.raises(InvalidRequest, match="takes no scale and no partner"):
            llm.generate(["x"], lora_request=[[missing, partner]], use_tqdm=False)
    assert "missing" not in [info.name for info in llm.list_adapters()]


def test_reports_tell_every_kind_of_change(make_llm: Callable[..., LLM], world: tuple[Path, dict[str, Path]]) -> None:
    model, kinds = world
    llm = make_llm(model, memory="8MB")
    told = {name: llm.inspect_adapter(path).modules for name, path in kinds.items()}
    assert all(module.gain_norm > 0 for module in told["dora"])
    assert all(module.shift_norm > 0 for module in told["lora-bias"])
    assert all(module.gain_norm == module.shift_norm == 0 and module.rows_norm is None for module in told["plain"])
    with torch.inference_mode():
        table = load_file(kinds["saved-head"] / WEIGHTS)["base_model.model.lm_head.weight"]
        change = torch.from_numpy(table) - load_resized(model, None).lm_head.weight
    (head,) = (module for module in told["saved-head"] if module.name == "lm_head")
    assert head.rows_norm == pytest.approx(change.norm().item(), rel=1e-5)
    assert all(module.rows_norm for module in told["added"] if module.name in ("lm_head", "model.embed_tokens"))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_the_loader_child_finds_the_base_weights(
    make_llm: Callable[..., LLM], world: tuple[Path, dict[str, Path]]
) -> None:
    model, kinds = world

    async def digest_and_answer() -> tuple[str, list[int]]:
        async with AsyncLLM(str(model), backend="cpu", memory="2MB", block_size=4) as llm:
            info = await llm.load_adapter("it", str(kinds["dora-bias"]))
            final = [output async for output in llm.generate("a prompt", sampling, lora_request="it")][-1]
            return info.digest, final.outputs[0].token_ids

    sampling = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    llm = make_llm(model, backend="cpu", adapters={"it": str(kinds["dora-bias"])})
    expected = llm.generate("a prompt", sampling, lora_request="it", use_tqdm=False)[0].outputs[0].token_ids
    assert asyncio.run(digest_and_answer()) == (llm.get_adapter("it").digest, expected)
