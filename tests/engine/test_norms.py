"""Norms that an adapter has trained: each is a weight of the adapter's own rows, as PEFT computes it; no other row of a
batch changes by a bit."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load, save
from tiny import load_resized, make_adapter, make_model, quiet
from transformers import LlamaConfig, Qwen3Config

from blora.engine import LLM, InvalidRequest, SamplingParams

CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}
KINDS: dict[str, dict[str, Any]] = {
    "all": {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["norm"]},
    "inputs": {"target_modules": ["v_proj"], "modules_to_save": ["input_layernorm"]},
    "last": {"target_modules": ["down_proj"], "modules_to_save": ["model.norm", "lm_head"]},
    "heads": {"target_modules": ["o_proj"], "modules_to_save": ["q_norm"]},
    "plain": {"target_modules": ["q_proj", "down_proj"]},
}
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
NEAR = 2e-4  # difference of logprobs that another order of float32 sums may give
PROMPTS = ["a first prompt", "another one, longer", "x"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", params=CONFIGS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / "model", CONFIGS[request.param])
    kinds = {name: fields for name, fields in KINDS.items() if name != "heads" or request.param == "qwen3"}
    return model, {name: make_adapter(model, folder / name, i, **kind) for i, (name, kind) in enumerate(kinds.items())}


@cache
def trained(model: Path, adapter: Path | None) -> Any:
    base = load_resized(model, None)
    with quiet():
        return base if adapter is None else PeftModel.from_pretrained(base, adapter)


@cache
def expected_logprobs(model: Path, adapter: Path | None, tokens: tuple[int, ...]) -> torch.Tensor:
    """Returns PEFT's logprobs after each token: [num_tokens, vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = trained(model, adapter)(input_ids=torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


def test_rows_of_a_mixed_batch_equal_peft_and_their_solo_runs(
    make_llm: Callable[..., LLM], world: tuple[Path, dict[str, Path]], backend: str
) -> None:
    model, adapters = world
    llm = make_llm(model, adapters=adapters, memory="4MB", enable_prefix_caching=False, max_num_batched_tokens=24)
    batch = [(prompt, name) for prompt in PROMPTS for name in (None, *adapters)]
    prompts, names = [prompt for prompt, _ in batch], [name for _, name in batch]
    outputs = llm.generate(prompts, GREEDY, lora_request=names, use_tqdm=False)
    for (prompt, name), output in zip(batch, outputs, strict=True):
        ours = output.outputs[0]
        tokens = output.prompt_token_ids + ours.token_ids
        expected = expected_logprobs(model, adapters.get(name or ""), tuple(tokens))
        for position, entries in enumerate(ours.logprobs or (), len(output.prompt_token_ids) - 1):
            for token, entry in entries.items():
                assert abs(entry.logprob - expected[position, token]) < NEAR, (prompt, name, position)
        if backend == "cpu":
            (alone,) = llm.generate([prompt], GREEDY, lora_request=[name], use_tqdm=False)
            assert (alone.outputs[0].token_ids, alone.outputs[0].logprobs) == (ours.token_ids, ours.logprobs)
    assert len({(prompt, *output.outputs[0].token_ids) for prompt, output in zip(prompts, outputs, strict=True)}) > 9


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_untrained_norms_give_the_bits_of_an_adapter_without_them(
    dtype: str, make_llm: Callable[..., LLM], world: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """A step with trained norms is computed layer by layer, any other in one call."""
    model, adapters = world
    own = adapters["all"]
    tensors, base = load((own / WEIGHTS).read_bytes()), load((model / "model.safetensors").read_bytes())
    fresh = {n: base[n.removeprefix("base_model.model.")] if "norm" in n else t for n, t in tensors.items()}
    copy(own, tmp_path / "fresh", fresh)
    copy(own, tmp_path / "without", {n: t for n, t in tensors.items() if "norm" not in n}, modules_to_save=None)
    llm = make_llm(
        model,
        dtype=dtype,
        adapters={name: tmp_path / name for name in ("fresh", "without")},
        enable_prefix_caching=False,
    )
    answers = [
        [output.outputs[0] for output in llm.generate(PROMPTS, GREEDY, lora_request=[name] * 3, use_tqdm=False)]
        for name in ("fresh", "without")
    ]
    assert [(o.token_ids, o.logprobs) for o in answers[0]] == [(o.token_ids, o.logprobs) for o in answers[1]]
    report = llm.inspect_adapter(tmp_path / "fresh")
    assert {module.rows_norm for module in report.modules if "norm" in module.name} == {0.0}


def copy(adapter: Path, folder: Path, tensors: dict[str, np.ndarray], **fields: Any) -> None:
    folder.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text()) | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / WEIGHTS).write_bytes(save(tensors))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_norms_take_no_scale_and_are_reported(
    make_llm: Callable[..., LLM], world: tuple[Path, dict[str, Path]]
) -> None:
    model, adapters = world
    llm = make_llm(model, adapters=adapters, memory="4MB")
    with pytest.raises(InvalidRequest, match="takes no scale and no partner"):
        llm.generate(["x"], GREEDY, lora_request=[{"all": 0.5}], use_tqdm=False)
    modules = llm.inspect_adapter(adapters["inputs"]).modules
    trained = {module.name: module.rows_norm for module in modules if module.rows_norm is not None}
    assert trained.keys() == {f"model.layers.{layer}.input_layernorm" for layer in range(2)}
    assert all(trained.values())
