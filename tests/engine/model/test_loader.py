"""Loading Hugging Face folders: shards, strictness, ties, dtypes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blora.engine.model_files.open_checkpoint import open_checkpoint
from blora.engine.model_files.read_config import load_model_config
from blora.engine.model_files.tensor_source import CheckpointError

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Changes tensors of a saved model; None removes one."""
    tensors = {**load_file(folder / "model.safetensors"), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors")


def test_sharded_folder(tiny: Any, make_tiny: Any) -> None:
    model = tiny.save("Qwen3ForCausalLM", head_dim=8)
    sharded = make_tiny("sharded")
    model.save_pretrained(sharded.folder, max_shard_size="20KB")
    assert len(list(sharded.folder.glob("model-*.safetensors"))) > 2
    (sharded.folder / "consolidated.safetensors").write_bytes(b"not to be opened")
    assert sharded.worst(model, [9, 1]) <= 1e-4


def test_everything_wrong_is_listed_at_once(tiny: Any) -> None:
    tiny.save("LlamaForCausalLM")
    change = {
        Q_PROJ: torch.zeros(3, 32),
        "model.norm.weight": None,
        "lm_head.weight": None,
        "model.layers.7.mlp.up_proj.weight": torch.zeros(2),
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),  # harmless
    }
    rewrite(tiny.folder, change)
    with pytest.raises(CheckpointError) as caught:
        tiny.driver()
    assert caught.value.problems == [
        "missing: lm_head.weight",
        "missing: model.norm.weight",
        "unused: model.layers.0.self_attn.q_proj.bias",
        "unused: model.layers.7.mlp.up_proj.weight",
        f"shape of {Q_PROJ}: [3, 32], expected [32, 32]",
    ]
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tiny: Any) -> None:
    tiny.save("LlamaForCausalLM", tie_word_embeddings=True)
    embedding = load_file(tiny.folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tiny.folder, {"lm_head.weight": embedding.clone()})
    tiny.driver()
    rewrite(tiny.folder, {"lm_head.weight": embedding + 1})
    with pytest.raises(CheckpointError, match=r"unused: lm_head\.weight"):
        tiny.driver()


def test_weights_are_cast_on_the_way(tiny: Any) -> None:
    model = tiny.save("LlamaForCausalLM")
    tensors = load_file(tiny.folder / "model.safetensors")
    rewrite(tiny.folder, {name: value.bfloat16() for name, value in tensors.items()})
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert tiny.worst(model, [64]) <= 1e-4


def test_missing_files(tiny: Any, tmp_path: Path) -> None:
    model = tiny.save("LlamaForCausalLM")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        open_checkpoint(tmp_path / "sharded")


def test_files_that_cannot_be_read_are_named(tiny: Any) -> None:
    tiny.save("LlamaForCausalLM")
    file = tiny.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*not fully covered"):
        open_checkpoint(tiny.folder)
    file.unlink()
    for content in ("{", "[]", '{"weight_map": 3}'):
        (tiny.folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            open_checkpoint(tiny.folder)


def test_progress_goes_to_stderr(tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from blora.engine.model.loader import load_tensors

    tiny.save("LlamaForCausalLM")
    config, source = load_model_config(tiny.folder), open_checkpoint(tiny.folder)
    capfd.readouterr()
    load_tensors(config, source, torch.float32, progress=True)
    output = capfd.readouterr()
    assert output.out == "" and "loading weights" in output.err
