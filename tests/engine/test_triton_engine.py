"""A whole engine with the GPU's LoRA kernels, in Triton's interpreter: its tokens are the reference's."""

from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_kinds import KINDS, make_kinds
from watched import count_calls

from blora.adapters.device_pool import DevicePool
from blora.adapters.layout import Layout
from blora.adapters.triton.lora import TritonLoRA
from blora.engine import LLM, SamplingParams
from blora.engine.attention.reference import ReferenceAttention
from blora.engine.memory.arena import Arena
from blora.engine.model.decoder import CausalLM
from blora.engine.model.ops import TorchOps
from blora.engine.model.shard_group import ShardGroup
from blora.engine.model.targets import adapter_targets
from blora.engine.model.tensors import ModelTensors
from blora.engine.model_files.config import ModelConfig
from blora.engine.startup import assembly
from blora.engine.step.backend import Backend, BackendChoice
from blora.engine.step.sampler import TORCH_PICKER

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture
def backend() -> str:
    return "reference"


def build(config: ModelConfig, tensors: ModelTensors, arena: Arena, adapters: DevicePool, _: ShardGroup) -> Backend:
    attention = ReferenceAttention(arena, config.num_heads, config.head_dim**-0.5)
    lora = TritonLoRA(adapters, adapter_targets(config))
    return Backend(CausalLM(config, tensors, attention, lora, TorchOps(config)), attention, lora, TORCH_PICKER)


def generate(llm: LLM, adapters: dict[str, Path]) -> list[list[int]]:
    """Generates a base row, a row of each adapter, and one of two adapters with scales."""
    for name, folder in adapters.items():
        llm.load_adapter(name, folder)
    uses = [None, *adapters, {"plain": 0.5, "lora-bias": -1.0}]
    prompts = [f"{index} and so on"[: 3 + index % 4] for index in range(len(uses))]
    outputs = llm.generate(prompts, GREEDY, lora_request=uses, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_every_kind_of_adapter_in_one_batch(
    make_llm: Callable[..., LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapters = make_kinds(tmp_path)
    assert adapters.keys() == KINDS.keys()
    options = {"memory": "16MB", "max_num_batched_tokens": 100}
    expected = generate(make_llm(model, **options), adapters)
    monkeypatch.setattr(assembly, "choose_backend", lambda *_: BackendChoice(build, Layout.GPU))
    planned = count_calls(monkeypatch, TritonLoRA, "plan")
    llm = make_llm(model, **options)
    assert generate(llm, adapters) == expected
    assert planned
    assert len({tuple(tokens) for tokens in expected}) > len(expected) // 2
