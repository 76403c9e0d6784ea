"""Training that blora cannot serve exactly is refused by name; data that PEFT saves needlessly is left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load, save
from tiny import make_adapter, quiet
from transformers import LlamaForCausalLM

from blora.engine import LLM, AdapterRejected, SamplingParams

TABLE = "base_model.model.model.embed_tokens.base_layer.weight"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "adapter_model.safetensors"
    content = load(path.read_bytes())
    change(content)
    path.write_bytes(save(content))
    return folder


def test_the_base_table_beside_an_embedding_is_left_out(
    make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path
) -> None:
    llm = make_llm(memory="8MB")
    folder = make_adapter(tiny_model, tmp_path / "it", target_modules=["embed_tokens"])
    assert llm.inspect_adapter(folder).ignored_tensors == (TABLE,)
    half = edit(folder, lambda content: content.update({TABLE: content[TABLE].astype(np.float16)}))
    assert llm.inspect_adapter(half).ignored_tensors == (TABLE,)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "trained unsaid": (lambda t: t.update({TABLE: t[TABLE] * np.float32(1.001)}), "modules_to_save does not name it"),
    "added tokens": (
        lambda t: t.update({TABLE: np.vstack([t[TABLE], t[TABLE][:2]])}),
        "rows of the added tokens 260 to 261",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_table_is_refused(name: str, make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path) -> None:
    change, reason = CHANGES[name]
    folder = edit(make_adapter(tiny_model, tmp_path / "it", target_modules=["embed_tokens"]), change)
    with pytest.raises(AdapterRejected, match=reason):
        make_llm(memory="8MB").load_adapter("it", folder)


def test_other_trained_modules_are_refused(make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "it", modules_to_save=["up_proj"], target_modules=["q_proj"])
    served = "'up_proj' is not served; modules of this model that are: lm_head, model.embed_tokens, and its norms"
    with pytest.raises(AdapterRejected, match=f"modules_to_save: {served}"):
        make_llm().load_adapter("it", folder)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_converted_initialisations_are_plain_changes_of_the_base_model(
    method: str, make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path
) -> None:
    """Adapters as PEFT converts them when it saves, compared with the trained model. Unconverted ones are refused."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=method)
    trained: Any = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_model), config)
    with quiet():
        trained.peft_config["default"].init_lora_weights = True  # PEFT asks for the initial adapter this way
        trained.save_pretrained(tmp_path / "initial")
        trained.peft_config["default"].init_lora_weights = method
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.data += 0.2 * torch.randn(parameter.shape)
        trained.save_pretrained(tmp_path / "raw")
        trained.save_pretrained(tmp_path / "it", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    llm = make_llm(adapters={"it": str(tmp_path / "it")})
    with pytest.raises(
        AdapterRejected, match=f"init_lora_weights: '{method}' .*path_initial_model_for_weight_conversion"
    ):
        llm.load_adapter("raw", tmp_path / "raw")
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
    output = llm.generate("a prompt", sampling, lora_request="it", use_tqdm=False)[0]
    tokens = output.prompt_token_ids + output.outputs[0].token_ids
    with quiet(), torch.inference_mode():
        converted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_model), tmp_path / "it")
        models = (trained, converted)
        expected = [model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1) for model in models]
    for logprobs in expected:
        for position, entries in enumerate(output.outputs[0].logprobs or ()):
            for token, entry in entries.items():
                row = logprobs[len(output.prompt_token_ids) - 1 + position]
                assert abs(entry.logprob - row[token]) < 5e-4, (position, token)
