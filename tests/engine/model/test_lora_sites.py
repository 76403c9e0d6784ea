"""Where the model calls LoRA, with what, and that the names, shapes and places of the targets are true."""

from typing import Any

import torch
from torch import Tensor

from blora.adapters.lora import LoRABackend, LoRAMetadata
from blora.engine.model.targets import lora_targets
from blora.engine.model_files.read_config import load_model_config


class RecordingLoRA(LoRABackend):
    """Remembers every call and adds what `changes` says to the site's output: site -> (column, matrix [out, in])."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        self.changes: list[tuple[int, int, Tensor]] = []

    def plan(self, *_: Any) -> LoRAMetadata:
        return LoRAMetadata()

    def changes_head(self, *_: Any) -> bool:
        return False

    def embed(self, *_: Any) -> None:
        pass

    def run(self, site: int, x: Tensor, y: Tensor, metadata: LoRAMetadata) -> None:
        assert isinstance(metadata, LoRAMetadata)
        self.calls.append((site, tuple(x.shape), tuple(y.shape)))
        for changed_site, column, matrix in self.changes:
            if changed_site == site:
                y[:, column : column + len(matrix)] += x @ matrix.T


def test_every_site_is_called_once_with_its_shapes(tiny: Any) -> None:
    tiny.save("Qwen3ForCausalLM", head_dim=16, num_hidden_layers=2)
    lora = RecordingLoRA()
    tiny.driver(lora=lora).step({0: [1, 2, 3]}, LoRAMetadata())
    assert lora.calls == [
        (0, (3, 32), (3, 4 * 16 + 2 * 2 * 16)),
        (1, (3, 64), (3, 32)),
        (2, (3, 32), (3, 96)),
        (3, (3, 48), (3, 32)),
        (4, (3, 32), (3, 4 * 16 + 2 * 2 * 16)),
        (5, (3, 64), (3, 32)),
        (6, (3, 32), (3, 96)),
        (7, (3, 48), (3, 32)),
    ]


def test_a_base_batch_never_calls_lora(tiny: Any) -> None:
    tiny.save("LlamaForCausalLM")
    lora = RecordingLoRA()
    tiny.driver(lora=lora).step({0: [1, 2, 3]})
    assert lora.calls == []


def test_targets_are_the_linear_modules_of_transformers(tiny: Any) -> None:
    model = tiny.save("LlamaForCausalLM", head_dim=12)
    modules = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    targets = lora_targets(load_model_config(tiny.folder))
    assert {target.name: (target.in_features, target.out_features) for target in targets} == modules


def test_a_change_at_a_target_is_a_change_of_that_module(tiny: Any) -> None:
    """Adds a matrix at every target in turn; transformers with the same matrix added to the module's weight agrees."""
    model = tiny.save("Qwen2ForCausalLM", num_hidden_layers=2)
    (sequence,) = tiny.sequences(9)
    base = tiny.expected(model, sequence)
    for target in lora_targets(load_model_config(tiny.folder)):
        lora = RecordingLoRA()
        change = torch.randn(target.out_features, target.in_features) * 0.3
        lora.changes.append((target.site, target.offset, change))
        logits = tiny.driver(lora=lora).step({0: sequence}, LoRAMetadata())[0]
        weight = model.get_submodule(target.name).weight.data
        weight += change
        expected = tiny.expected(model, sequence)
        weight -= change
        assert (expected - base).abs().max() > 1e-2, target.name
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)
