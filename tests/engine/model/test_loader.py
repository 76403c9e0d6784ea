"""Loading Hugging Face folders: shards, strictness, ties, dtypes."""

import sys
from collections.abc import Callable
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
        "likely cause: config.json tells of 3 layers, and the checkpoint has 8",
        "missing: lm_head.weight",
        "missing: model.norm.weight",
        "unused: model.layers.0.self_attn.q_proj.bias",
        "unused: model.layers.7.mlp.up_proj.weight",
        f"shape of {Q_PROJ}: [3, 32], expected [32, 32]",
    ]
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({change(name): value for name, value in tensors.items()}, folder / "model.safetensors")


NAMES: dict[str, tuple[Callable[[str], str], str]] = {
    "without the head": (lambda name: name.removeprefix("model."), "'model.' is put before the modules in 29 names"),
    "compiled": (lambda name: f"_orig_mod.{name}", "'_orig_mod.' is left out of 30 names"),
    "data parallel": (lambda name: f"module.{name}", "'module.' is left out of 30 names"),
    "multimodal": (lambda name: f"language_model.{name}", "'language_model.' is left out of 30 names"),
    "an adapter in it": (lambda name: name.replace("proj.", "proj.base_layer."), "saved with an adapter in it"),
    "quantised": (lambda name: name.replace("proj.weight", "proj.qweight"), "quantised by GPTQ or AWQ"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_many_misfits_are_a_few_lines_with_the_cause(kind: str, tiny: Any) -> None:
    change, cause = NAMES[kind]
    tiny.save("LlamaForCausalLM")
    rename(tiny.folder, change)
    with pytest.raises(CheckpointError) as caught:
        tiny.driver()
    first, missing, unused = caught.value.problems
    assert first.startswith("likely cause: ") and cause in first
    number = missing.split()[0]
    assert missing.startswith(f"{number} tensors are missing: ") and "model.layers.0." in missing
    assert unused.startswith(f"{number} tensors of the checkpoint are unused: ") and len(str(caught.value)) < 1500


def test_empty_tensors_are_told_as_zero_3(tiny: Any) -> None:
    tiny.save("LlamaForCausalLM")
    tensors = load_file(tiny.folder / "model.safetensors")
    save_file({name: torch.zeros(0) for name in tensors}, tiny.folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="30 tensors are empty, as DeepSpeed ZeRO-3 leaves them"):
        tiny.driver()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pytorch_model.bin", "a pickle, which is never opened"),
        ("pytorch_model-00001-of-00002.bin", "a pickle, which is never opened"),
        ("model-00001-of-00002.safetensors", "files of weights without their index"),
        ("consolidated.safetensors", "in the format of Mistral or Meta"),
        ("model-q4.gguf", "name the file itself as the model"),
    ],
)
def test_a_folder_without_safetensors_is_told_by_its_files(name: str, kind: str, tiny: Any) -> None:
    tiny.save("LlamaForCausalLM")
    (tiny.folder / "model.safetensors").rename(tiny.folder / name)
    with pytest.raises(CheckpointError, match=kind):
        open_checkpoint(tiny.folder)


def test_a_pointer_of_git_lfs_is_told(tiny: Any) -> None:
    tiny.save("LlamaForCausalLM")
    for name in ("model.safetensors", "config.json"):
        (tiny.folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
        with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer"):
            (open_checkpoint if name == "model.safetensors" else load_model_config)(tiny.folder)


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tiny: Any, value: float) -> None:
    tiny.save("LlamaForCausalLM")
    tensors = load_file(tiny.folder / "model.safetensors")
    spoilt = [Q_PROJ, "model.embed_tokens.weight", "model.norm.weight"]
    for index, name in enumerate(spoilt):
        tensors[name].view(-1)[-1 - index] = value
    rewrite(tiny.folder, dict(tensors))
    with pytest.raises(CheckpointError) as caught:
        tiny.driver()
    told = {f"{name} holds values that are not finite in torch.float32" for name in spoilt}
    assert set(caught.value.problems) == told
    assert len(str(caught.value).splitlines()) == 4 and len(str(CheckpointError(["one"])).splitlines()) == 1


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


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_goes_to_a_terminal_at_stderr(
    is_terminal: bool, tiny: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from blora.engine.model.loader import load_tensors

    tiny.save("LlamaForCausalLM")
    config, source = load_model_config(tiny.folder), open_checkpoint(tiny.folder)
    capfd.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    load_tensors(config, source, torch.float32, progress=True)
    output = capfd.readouterr()
    assert output.out == "" and ("loading weights" in output.err) == is_terminal
